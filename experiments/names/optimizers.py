"""Optimizers by name: what workers do to gradients, and a server to the aggregate.

A factory is given the learning rate and returns (worker's transform, server's).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import byzjax


def _sgd(learning_rate, *, radius=None):
    return optax.identity(), _within(radius, optax.sgd(learning_rate))


def _adam(learning_rate, *, b1=0.9, b2=0.999, eps=1e-8):
    return optax.identity(), optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


def _momentum(learning_rate, *, decay=0.9, radius=None):
    return byzjax.momentum(decay), _within(radius, optax.sgd(learning_rate))


def _heavy_ball(learning_rate, *, decay=0.9):
    return optax.trace(decay), optax.sgd(learning_rate)


def _ema(learning_rate, *, decay=0.9, weight_decay=0.0):
    server = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate)
    )
    return optax.ema(decay, debias=False), server


def _mu2sgd(learning_rate, *, beta=byzjax.authors_beta, mixing=byzjax.authors_mixing):
    server = byzjax.anytime(optax.sgd(learning_rate), weight=1.0, mixing=mixing)
    return byzjax.storm(beta), server


def _mu2sgd_paper(learning_rate):
    return byzjax.storm(), byzjax.anytime(optax.sgd(learning_rate))


def _mu2sgd_exact(learning_rate, *, radius=None):
    return byzjax.storm(), _anytime(learning_rate, radius=radius)[1]


def _storm(learning_rate, *, beta=None, radius=None):
    return byzjax.storm(beta), _within(radius, optax.sgd(learning_rate))


def _anytime(learning_rate, *, mixing=None, radius=None):
    # α_t = t as the authors weigh it: γ_t = t / (1 + … + t), of the count t − 1.
    mixing = (lambda count: 2 / (count + 2)) if mixing is None else mixing
    projection = None if radius is None else lambda tree: _projected(tree, radius)
    server = byzjax.anytime(
        optax.sgd(learning_rate), weight=1.0, mixing=mixing, projection=projection
    )
    return optax.identity(), server


def _projected(tree, radius):
    """Every tensor of a tree scaled down to a norm of `radius`, if it is longer."""

    def of_leaf(x):
        return x * (radius / jnp.maximum(jnp.linalg.norm(x), radius))

    return jax.tree.map(of_leaf, tree)


def _within(radius, optimizer):
    """The optimizer, with every tensor of the parameters kept in a ball."""
    if radius is None:
        return optimizer

    def update(updates, state, params: Any = None):
        steps, state = optimizer.update(updates, state, params)
        moved = _projected(optax.apply_updates(params, steps), radius)
        return jax.tree.map(lambda new, old: new - old, moved, params), state

    return optax.GradientTransformation(optimizer.init, update)


# `learning_rate` is the configuration's; `radius` that of a ball for each tensor.
OPTIMIZERS = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,  # At the server; workers send gradients.
    "heavy_ball": _heavy_ball,  # m ← decay·m + g, undamped.
    "ema": _ema,  # m ← decay·m + (1 − decay)·g from zero, as ByzFL; weights decay.
    # As the authors' code has it: rounded and floored schedules, w moves by η.
    "mu2sgd": _mu2sgd,
    # As their later single-machine code has it: β = 1/t, α = t, w moves by η.
    "mu2sgd_exact": _mu2sgd_exact,
    # As the paper has it: β = 1/t, w moves by η·t. Wants smaller learning rates.
    "mu2sgd_paper": _mu2sgd_paper,
    # Its halves alone: corrected momentum, and averaging of query points.
    "storm": _storm,
    "anytime": _anytime,
}

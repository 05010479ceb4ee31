"""Attacks by name: on the messages, on the data, or both; searches through the rule."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import byzjax


class Dishonesty(NamedTuple):
    """What the Byzantine workers do: to their messages, and to their data."""

    attack: byzjax.Attack | None = None
    poison: Callable[..., Any] | None = None


def dishonesty(made: Any) -> Dishonesty:
    """What a factory of the table made: an attack, a poison, both, or None."""
    if isinstance(made, Dishonesty):
        return made
    if isinstance(made, byzjax.Attack):
        return Dishonesty(attack=made)
    return Dishonesty(poison=made)


def _without_momentum(
    inner: Any = None, *, decay: float, num_byzantine: int
) -> Dishonesty:
    """The inner attack on the attackers' gradients, where the honest send momentum.

    A worker's transform is the same for all: an attacker who follows no momentum is one
    who takes it away again, g_t = m_t − decay·m_{t−1}.
    """
    attack, poison = dishonesty(inner)

    def init(params):
        def of_leaf(p):
            return jnp.zeros((num_byzantine, *jnp.shape(p)), jnp.result_type(p))

        inner_state = None if attack is None else attack.init(params)
        return jax.tree.map(of_leaf, params), inner_state

    def forge(honest, own, state, **extra):
        before, inner_state = state
        sent = jax.tree.map(lambda m, b: m - decay * b, own, before)
        if attack is not None:
            sent, inner_state = attack.forge(honest, sent, inner_state, **extra)
        return sent, (own, inner_state)

    return Dishonesty(byzjax.Attack(forge, init=init, needs_own=True), poison)


def _optimized(inner: Callable[..., byzjax.Attack], aggregator, **options: Any):
    return byzjax.attacks.optimized(inner, aggregator, **options)


_optimized.searches = True


def _adaptive(start: byzjax.Attack | None = None, *, aggregator, **options: Any):
    return byzjax.attacks.adaptive(aggregator, start=start, **options)


# An attack on the messages, a poison of the data, `Dishonesty`, or None. `num_classes`
# is the data set's, `num_byzantine` the configuration's, `aggregator` its rule.
ATTACKS = {
    "none": lambda: None,
    "label_flip": functools.partial(byzjax.poisoning.label_flip, labels="label"),
    "little": byzjax.attacks.alie,
    # ε = 0.5, the default on the authors' command line; their class has 0.1.
    "empire": functools.partial(byzjax.attacks.ipm, scale=0.5),
    "without_momentum": _without_momentum,
    "optimized": _optimized,
    "adaptive": _adaptive,
} | {
    name: getattr(byzjax.attacks, name)
    for name in (
        *("sign_flip", "scaled_sign_flip", "alie", "ipm", "mimic", "min_max"),
        *("min_sum", "small_perturbation", "anti_cge", "fang", "rop", "gaussian"),
        *("constant", "random_garbage", "free_rider", "infinity", "nan"),
        *("bit_flips", "intermittent"),
    )
}

"""How far a message may lie from the honest mean before the distances show it."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.numerics import stacked
from byzjax.trees import Tree

Perturbation = Literal["unit", "sign", "std"]


def perturbed(
    name: str,
    perturbation: Perturbation,
    reach: Callable[[Tree, Tree, Tree], jax.Array],
    *,
    num_byzantine: int | None,
) -> Attack:
    """An attack by μ − γp, with γ = `reach(honest, μ, −p)` and p by its word."""
    checks.word(name, ("unit", "sign", "std"), perturbation=perturbation)

    def message(honest, f):
        center = lift.mean(honest)
        towards = _perturbation(name, honest, center, perturbation)
        return lift.shifted(center, reach(honest, center, towards), towards)

    return lift.one_message(message, num_byzantine=num_byzantine)


def hidden(honest: Tree, center: Tree, towards: Tree) -> jax.Array:
    """The largest γ with ‖x_j − center − γ·towards‖ within the honest diameter, all j.

    For each j this is aγ² − 2b_jγ + c_j <= D², true at γ = 0, with one root γ >= 0.
    """
    geometry = stacked.geometry(honest)
    length = stacked.norm(towards)
    # Over ‖towards‖ and in the geometry's unit a is 1, and the rest in range.
    gaps = jax.tree.map(lambda x, c: lift.wide(x) - c[None], honest, center)
    b = geometry.in_unit(lift.dots(gaps, lift.unit(towards)))
    distances = stacked.distances_to_tree(honest, center).plain()
    c = jnp.square(geometry.in_unit(distances))
    room = jnp.maximum(jnp.max(geometry.squared_distances) - c, 0)
    root = jnp.sqrt(b * b + room)
    # b + root cancels for b < 0; the other form of the same root does not.
    below = room / jnp.where(root - b > 0, root - b, 1)
    gamma = jnp.min(jnp.where(b < 0, below, b + root)) * geometry.unit
    return jnp.where(length > 0, gamma / jnp.where(length > 0, length, 1), 0)


def _perturbation(name: str, honest: Tree, center: Tree, p: Perturbation) -> Tree:
    """−p, the way from the mean."""
    if p == "sign":
        return jax.tree.map(lambda c: -jnp.sign(c), center)
    if p == "std":
        lift.check_spread(name, honest, 1)
        return jax.tree.map(lambda s: -s, lift.std(honest, center, ddof=1))
    return jax.tree.map(jnp.negative, lift.unit(center))

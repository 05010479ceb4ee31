"""Relocated orthogonal perturbation, against centered clipping."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.typing

from byzjax import checks, trees
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.base import Aggregator
from byzjax.numerics import stacked
from byzjax.trees import Tree


class RopState(NamedTuple):
    """State of `rop`."""

    step: jax.Array  # [], int32, steps done.
    reference: Tree  # v, what the server went by last, leaves [...].
    rule_state: Any  # Of the aggregator that the attacker knows, else ().


def rop(
    z: jax.typing.ArrayLike = 1.0,
    *,
    angle: jax.typing.ArrayLike = 90.0,
    relocation: jax.typing.ArrayLike = 1.0,
    mixing: jax.typing.ArrayLike = 0.9,
    aggregator: Aggregator | None = None,
    num_byzantine: int | None = None,
) -> Attack:
    r"""Relocated orthogonal perturbation (ROP), against centered clipping.

    .. math::
      b_i = \pi v + (1 - \pi) \mu
        + z \, (\sin\theta \, p_\perp + \cos\theta \, \hat r), \quad
      r = \lambda v + (1 - \lambda) \mu

    with v the server's last aggregate (centered clipping's centre), μ the honest mean,
    r̂ = r/‖r‖, and p⊥ the part of the all-ones vector orthogonal to r, scaled to norm
    one. Centered clipping does not look at angles: a perturbation right next to its
    own centre is never clipped.

    v is μ in the first step. After that it is the aggregate of what was sent, if the
    attacker is told the `aggregator`, and the honest mean of the step before, as an
    estimate, if not. Defaults: λ and θ as in the authors' library; π = 1 relocates to v
    entirely, as in the name (their library's default is 0), and z is there taken from
    ALIE's formula, here 1, the radius of clipping there.

    Args:
      z: norm of the perturbation; may be traced.
      angle: θ in degrees: 90 is orthogonal to r, 180 straight back; may be traced.
      relocation: π, 0 for an attack around μ, 1 around v; may be traced.
      mixing: λ; may be traced.
      aggregator: the server's rule, to know v exactly.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack` with a `RopState`.

    Raises:
      ValueError: a number that is not finite.
      TypeError: an aggregator that is none.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[3.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
      >>> print(byzjax.attacks.rop(0.5).apply(rows, num_byzantine=1)[-1])
      [3.  0.5]

    Reference:
      Özfatura, Özfatura, Küpçü, Gündüz: Byzantines can also Learn from History: Fall of
      Centered Clipping in Federated Learning, 2024, https://arxiv.org/abs/2208.09894
    """
    lift.any_number("rop", z=z)
    lift.any_number("rop", angle=angle)
    lift.any_number("rop", relocation=relocation)
    lift.any_number("rop", mixing=mixing)
    if aggregator is not None and not isinstance(aggregator, Aggregator):
        raise TypeError(
            "rop needs aggregator to be a byzjax.Aggregator or None, got "
            f"{aggregator!r}"
        )

    def init(params):
        rule_state = () if aggregator is None else aggregator.init(params)
        # In float32 or wider: the reference is a mean, more precise than the leaves.
        zeros = jax.tree.map(lambda p: lift.wide(jnp.zeros_like(p)), params)
        return RopState(jnp.int32(0), zeros, rule_state)

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        mu = lift.mean(honest)
        v = jax.tree.map(
            lambda c, r: jnp.where(state.step == 0, c, r), mu, state.reference
        )
        toward = jax.tree.map(lambda c, r: c + lift.number(mixing, c) * (r - c), mu, v)
        place = jax.tree.map(
            lambda c, r: c + lift.number(relocation, c) * (r - c), mu, v
        )
        turned = _turned(toward, angle)
        sent = lift.to_rows(lift.shifted(place, z, turned), honest, num_byzantine)
        seen, rule_state = mu, state.rule_state
        if aggregator is not None:
            rows = trees.stack_rows(honest, sent, "an attack", "its messages")
            seen, rule_state = aggregator.update(rows, rule_state, params, key=key)
        seen = jax.tree.map(lambda c, r: c.astype(r.dtype), seen, state.reference)
        return sent, RopState(state.step + 1, seen, rule_state)

    return Attack(forge, init=init, num_byzantine=num_byzantine)


def _turned(toward: Tree, angle: jax.typing.ArrayLike) -> Tree:
    """A vector of norm one at this angle to `toward`, in the plane with all ones."""
    toward = lift.unit(toward)
    along = stacked.total([jnp.sum(r) for r in jax.tree.leaves(toward)])
    aside = jax.tree.map(lambda r: 1 - lift.number(along, r) * r, toward)
    theta = checks.in_dtype(angle, along.dtype) * (math.pi / 180)
    sine, cosine = jnp.sin(theta), jnp.cos(theta)
    return jax.tree.map(
        lambda p, r: lift.number(sine, p) * p + lift.number(cosine, r) * r,
        lift.unit(aside),
        toward,
    )

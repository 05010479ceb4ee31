"""Attacks made for one rule: Krum, the trimmed mean, centered clipping."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.typing
from jax import lax

from byzjax import base, columns, order, reductions, stacked
from byzjax.attacks import lift
from byzjax.base import Aggregator, Attack, Tree

# Fang et al. give up on a direction below this step.
_SMALLEST_STEP = 1e-5
_MAX_HALVINGS = 64


def fang(
    against: Literal["krum", "trimmed_mean"],
    *,
    spread: jax.typing.ArrayLike = 2.0,
    random: bool = True,
    num_byzantine: int | None = None,
) -> Attack:
    r"""Local model poisoning: push against the honest direction s = sign(μ).

    Against Krum, all send the same message along −s, as long as Krum still selects it:

    .. math:: b_i = -\lambda s, \qquad
      \lambda \le \frac{\min_j \sum_{k \in N_j} \|x_j - x_k\|}{(m - 2f - 1)\sqrt d}
      + \frac{\max_j \|x_j\|}{\sqrt d}

    from this bound (N_j the m − f − 2 honest rows nearest j) halved until Krum selects
    it, or λ < 1e-5. The rows are changes of the model, so what the paper calls the
    global model is the origin here.

    Against the trimmed mean (and the median), each coordinate lies just outside the
    honest range on the side that −s points to: where s > 0 between min and min/b or
    b·min, whichever is lower, where s < 0 between max and max/b or b·max, whichever is
    higher. The paper draws uniformly in between, for each worker; `random=False` sends
    the far end, as the code of FLTrust's authors does (b = 2).

    Args:
      against: "krum" or "trimmed_mean".
      spread: b > 1; may be traced; read against the trimmed mean only.
      random: draw (needs a `key`) or send the far end; against the trimmed mean only.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`; "trimmed_mean" needs a `key` unless `random=False`.

    Raises:
      ValueError: another word, b <= 1, a missing key; at trace time m < 2f + 3 against
        Krum.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, -1.0], [2.0, -4.0], [0.0, 0.0]])
      >>> attack = byzjax.attacks.fang("trimmed_mean", random=False)
      >>> print(attack.apply(rows, num_byzantine=1)[-1])
      [ 0.5 -0.5]

    Reference:
      Fang, Cao, Jia, Gong: Local Model Poisoning Attacks to Byzantine-Robust Federated
      Learning, 2020, https://arxiv.org/abs/1911.11815
    """
    lift.choice("fang", ("krum", "trimmed_mean"), against=against)
    base.check_number("fang", spread=spread, minimum=1.0, open_interval=True)
    if against == "krum":
        return lift.one_message(_against_krum, num_byzantine=num_byzantine)

    def ends(x):
        """From just at the honest range to the far end, `[...]` each."""
        rows = lift.wide(x)
        h = rows.shape[0]
        low, high = order.order_statistics(rows, [0, h - 1])
        upwards = reductions.row_sum([rows[i] for i in range(h)])
        b = lift.number(spread, rows)
        near = jnp.where(upwards > 0, low, jnp.where(upwards < 0, high, 0))
        outwards = jnp.sign(upwards) * near < 0
        return near, near * jnp.where(outwards, b, 1 / b)

    if not random:

        def message(honest, f):
            return jax.tree.map(lambda x: ends(x)[1], honest)

        return lift.one_message(message, num_byzantine=num_byzantine)

    def drawn(honest, f, key):
        def between(x, part):
            near, far = ends(x)
            return near[None] + part * (far - near)[None]

        parts = lift.draw("fang", honest, f, key, jax.random.uniform)
        return jax.tree.map(between, honest, parts)

    return lift.rows(drawn, num_byzantine=num_byzantine)


def _against_krum(honest: Tree, f: int) -> Tree:
    """−λ·sign(mean) with the largest λ of the search that Krum selects."""
    h = base.num_workers(honest)
    m = h + f
    if not m >= 2 * f + 3:
        raise ValueError(
            "fang against krum needs num_workers >= 2 * num_byzantine + 3, got "
            f"num_workers={m} and num_byzantine={f}"
        )
    direction = jax.tree.map(jnp.sign, lift.mean(honest))
    geometry = stacked.geometry(honest)
    others = jnp.where(jnp.eye(h, dtype=bool), jnp.inf, geometry.squared_distances)
    along = lift.dots(honest, direction)
    length = columns.total([jnp.sum(s * s) for s in jax.tree.leaves(direction)])
    dtype = others.dtype
    along, length = along.astype(dtype), length.astype(dtype)

    def selected(step):
        """Whether Krum selects −step·direction, sent f times."""
        to = geometry.squared_norms + 2 * step * along + step * step * length
        mine = jnp.sum(jnp.sort(to)[: m - 2 * f - 1])  # f − 1 more are at distance 0.
        all_others = jnp.concatenate([others, jnp.repeat(to[:, None], f, axis=1)], 1)
        theirs = jnp.sum(jnp.sort(all_others, axis=1)[:, : m - f - 2], axis=1)
        return mine < jnp.min(theirs)  # On a tie the lower row wins, an honest one.

    size = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(honest))
    near = jnp.sort(jnp.sqrt(others), axis=1)[:, : min(m - f - 2, h - 1)]
    bound = jnp.min(jnp.sum(near, axis=1)) / (m - 2 * f - 1)
    bound = (bound + jnp.sqrt(jnp.max(geometry.squared_norms))) / math.sqrt(size)

    def again(carry):
        tries, step = carry
        return (tries < _MAX_HALVINGS) & (step >= _SMALLEST_STEP) & ~selected(step)

    halve = (jnp.int32(0), bound.astype(dtype))
    _, step = lax.while_loop(again, lambda c: (c[0] + 1, c[1] / 2), halve)
    return jax.tree.map(lambda s: -(lift.number(step, s) * s), direction)


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
            rows = base.stack_rows(honest, sent)
            seen, rule_state = aggregator.update(rows, rule_state, params, key=key)
            seen = jax.tree.map(lift.wide, seen)
        return sent, RopState(state.step + 1, seen, rule_state)

    return Attack(forge, init=init, num_byzantine=num_byzantine)


def _turned(toward: Tree, angle: jax.typing.ArrayLike) -> Tree:
    """A vector of norm one at this angle to `toward`, in the plane with all ones."""

    def over(x, length):
        return jnp.where(length > 0, x / jnp.where(length > 0, length, 1), 0)

    squared = columns.total([jnp.sum(r * r) for r in jax.tree.leaves(toward)])
    along = over(columns.total([jnp.sum(r) for r in jax.tree.leaves(toward)]), squared)
    aside = jax.tree.map(lambda r: 1 - lift.number(along, r) * r, toward)
    length, reach = lift.norm(aside), jnp.sqrt(squared)
    theta = jnp.asarray(angle).astype(squared.dtype) * (math.pi / 180)
    sine, cosine = over(jnp.sin(theta), length), over(jnp.cos(theta), reach)
    return jax.tree.map(
        lambda p, r: lift.number(sine, p) * p + lift.number(cosine, r) * r,
        aside,
        toward,
    )

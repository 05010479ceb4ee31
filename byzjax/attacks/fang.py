"""Local model poisoning of Fang et al., against Krum or the trimmed mean."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import jax.typing

from byzjax import checks, loops
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.numerics import order, stacked
from byzjax.trees import Tree

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
    checks.word("fang", ("krum", "trimmed_mean"), against=against)
    checks.number("fang", spread=spread, minimum=1.0, open_interval=True)
    checks.flag("fang", random=random)
    if against == "krum":
        return lift.one_message(_against_krum, num_byzantine=num_byzantine)

    def ends(x):
        """From just at the honest range to the far end, `[...]` each."""
        rows = lift.wide(x)
        h = rows.shape[0]
        low, high = order.order_statistics(rows, [0, h - 1])
        upwards = order.row_sum([rows[i] for i in range(h)])
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
    h = checks.num_workers(honest)
    m = h + f
    if not m >= 2 * f + 3:
        raise ValueError(
            "fang against krum needs num_workers >= 2 * num_byzantine + 3, got "
            f"num_workers={m} and num_byzantine={f}"
        )
    direction = jax.tree.map(jnp.sign, lift.mean(honest))
    geometry = stacked.geometry(honest)
    others = jnp.where(jnp.eye(h, dtype=bool), jnp.inf, geometry.squared_distances)
    along = geometry.in_unit(lift.dots(honest, direction))
    norms = geometry.norms_in_unit()
    length = stacked.total([jnp.sum(s * s) for s in jax.tree.leaves(direction)])
    dtype = others.dtype
    along, length = along.astype(dtype), length.astype(dtype)

    def selected(step):
        """Whether Krum selects −step·direction, sent f times."""
        to = norms * norms + 2 * step * along + step * step * length
        mine = jnp.sum(jnp.sort(to)[: m - 2 * f - 1])  # f − 1 more are at distance 0.
        all_others = jnp.concatenate([others, jnp.repeat(to[:, None], f, axis=1)], 1)
        theirs = jnp.sum(jnp.sort(all_others, axis=1)[:, : m - f - 2], axis=1)
        return mine < jnp.min(theirs)  # On a tie the lower row wins, an honest one.

    size = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(honest))
    near = jnp.sort(jnp.sqrt(others), axis=1)[:, : min(m - f - 2, h - 1)]
    bound = jnp.min(jnp.sum(near, axis=1)) / (m - 2 * f - 1)
    bound = (bound + jnp.max(norms)) / math.sqrt(size)

    def going(step):
        return step * geometry.unit >= _SMALLEST_STEP

    def again(carry):
        tries, step = carry
        return (tries < _MAX_HALVINGS) & going(step) & ~selected(step)

    halve = (jnp.int32(0), bound.astype(dtype))
    _, step = loops.while_loop(again, lambda c: (c[0] + 1, c[1] / 2), halve)
    step = step * geometry.unit
    return jax.tree.map(lambda s: -(lift.number(step, s) * s), direction)

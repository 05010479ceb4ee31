"""The Centered Trimmed Meta Aggregator."""

import jax.numpy as jnp

from byzjax import base, checks
from byzjax.aggregators import bearing, claims, lift
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked


def ctma(rule: Aggregator, num_byzantine: int, *, ties: str = "lowest") -> Aggregator:
    r"""The Centered Trimmed Meta Aggregator (CTMA).

    .. math::
      x_0 = A(x_1, \dots, x_m), \qquad
      \mathrm{CTMA}(x) = \frac{1}{m - f} \sum_{i \in S} x_i

    with S the m−f rows nearest x₀; of rows equally far the lowest indices, so exactly
    m−f rows enter.

    `ctma(nnm(rule))` trims the *original* rows around the mixed aggregate, which is the
    authors' NNM+CTMA; `nnm(ctma(rule))` trims the mixed rows.

    With weights s: the rows in order of distance, until they hold the fraction 1 − f/m
    of the total weight, the last one in part (ω-CTMA, Dahan and Levy 2024b).

    **Guarantee.** (16δ(1+c_δ), δ)-robust if the base is (c_δ, δ)-robust (Lemma 3.1):
    the optimal O(δ) for a base with c_δ = O(1), δ = f/m < 1/2. No row kept is farther
    from x₀ than the farthest honest one. Rows that are not finite have weight exactly
    0. O(dm + m log m) on top of the base; over a geometric base no further pass over
    the stack.

    Args:
      rule: the base aggregator A.
      num_byzantine: f, no greater than the one that the base is told, if it is.
      ties: "lowest", or "all", the authors' code: every row as near as the (m−f)-th
        enters, and the sum is still divided by m−f. Where rows are equally far the
        result is then no mean, may leave their hull, and the guarantee is void.

    Returns:
      An `Aggregator`; takes `weights` `[m]` if the base does and ties are "lowest".

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: other `ties`, or a rule that is told a smaller f; m < 2f + 1, or
        weights with all ties, at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [4.0], [jnp.inf]])
      >>> print(byzjax.ctma(byzjax.median(), num_byzantine=1).aggregate(rows))
      [2.5]

    Reference:
      Dahan, Levy: Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous
      Training, 2024, https://arxiv.org/abs/2405.14759; Dahan, Levy: Weight for
      Robustness, 2024, https://arxiv.org/abs/2501.09621
    """
    bearing.check_base("ctma", rule)
    f = checks.count("ctma", num_byzantine=num_byzantine)
    bearing.check_told("ctma", rule, f)
    checks.word("ctma", ("lowest", "all"), ties=ties)

    def check(m):
        checks.minority("ctma", f)(m)
        bearing.check_bears("ctma", rule, f, m)
        rule.check(m)

    def trim(distances, weights, n):
        if ties == "all":
            if weights is not None:
                raise ValueError(
                    'ctma needs ties="lowest" with weights, got ties="all"'
                )
            farthest = jnp.sort(distances)[n - f - 1]
            share = 1 / order.as_number(n - f, distances.dtype)
            return jnp.where(distances <= farthest, share, 0)
        if weights is None:
            return order.nearest_shares(distances, n - f)
        by_distance = jnp.argsort(distances, stable=True)
        ordered = weights[by_distance]
        reached = order.cumulative(ordered)
        total = reached[-1]
        left, whole = (order.as_number(x, total.dtype) for x in (n - f, n))
        inside = total * left / whole - reached
        kept = jnp.minimum(inside + ordered, ordered)
        kept = order.without_slivers(kept, inside, total)
        return jnp.zeros_like(kept).at[by_distance].set(kept / jnp.sum(kept))

    keeps = (lambda m: m - f) if ties == "lowest" else None
    bears = bearing.told(f, rule)

    if rule.weigh is not None:
        base_weigh = rule.weigh

        def weigh(geometry, /, *, key=None, weights=None):
            m, n, present = (
                geometry.num_workers,
                geometry.num_present,
                geometry.present,
            )
            weights = claims.check_weights("ctma", weights, m, present)
            center = base_weigh(geometry, key=key, weights=weights)
            center = jnp.where(geometry.finite, center, 0)
            return trim(geometry.squared_distances_to(center), weights, n)

        return lift.from_weigh(
            weigh, check=check, trusted=rule.trusted, bears=bears, keeps=keeps
        )

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        m = checks.num_workers(updates)
        n = claims.num_present(m, present)
        at_most = keeps(m) if keeps and weights is None else None
        weights = claims.check_weights("ctma", weights, m, present)
        center, state = rule.inside(
            updates, state, params, weights=weights, present=present, **extra
        )
        distances = stacked.distances_to_tree(updates, center, present).values
        shares = jnp.where(jnp.isfinite(distances), trim(distances, weights, n), 0)
        return stacked.weighted_sum(updates, shares, at_most=at_most), state

    update = claims.equal_weights_are_none(update)
    return base.around(rule, rule.init, update, check=check, bears=bears)

"""Krum and Multi-Krum: the rows that are closest to their nearest others."""

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


def krum(
    num_byzantine: int,
    *,
    num_neighbors: int | None = None,
    squared: bool | str = True,
) -> Aggregator:
    r"""Krum: the row that is closest to its nearest others.

    .. math:: A(x) = x_{i^*}, \quad i^* = \arg\min_i \sum_{j \in N_i} \|x_i - x_j\|^2

    with N_i the m−f−2 nearest *others* of i.

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 3. (c_δ, δ)-robust with c_δ ≤ 6(1 +
    f/(m−2f)) (Allouah et al. 2023). The row chosen lies within √(q/(q−f+1)) times the
    largest distance between honest rows from one of them, for q neighbours. A row that
    is not finite is never chosen; ties go to the lowest index. Two passes over the
    stack and O(m² log m).

    Args:
      num_byzantine: f.
      num_neighbors: m−f−2 by default, as in the paper; ByzFL and ByzPy take m−f−1.
        Given explicitly, from f to m−f−1, the paper's m ≥ 2f + 3 is not asked for,
        only m ≥ 2f + 1.
      squared: True sums squared distances (the paper), False plain ones, and "twice"
        fourth powers; both occur in published code. They choose different rows.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: m < 2f + 3, or more neighbours than m−f−1, at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [1.0], [1.2], [9.0], [jnp.nan]])
      >>> print(byzjax.krum(num_byzantine=1).aggregate(rows))
      [1.]

    Reference:
      Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries:
      Byzantine Tolerant Gradient Descent, 2017, https://arxiv.org/abs/1703.02757
    """
    f = checks.count("krum", num_byzantine=num_byzantine)
    if num_neighbors is not None:
        num_neighbors = checks.count("krum", num_neighbors=num_neighbors, minimum=1)
    check_squared("krum", squared)

    def weigh(geometry):
        count = num_neighbors or geometry.num_present - f - 2
        scores = krum_scores(geometry.squared_distances, count, squared)
        return order.mark_nearest(scores, 1)

    check = _krum_check("krum", f, num_neighbors)
    bears = bearing.told(f)
    return lift.geometric(
        "krum", weigh, check=check, bears=bears, absent=True, keeps=lambda m: 1
    )


def multi_krum(
    num_byzantine: int,
    *,
    num_selected: int | None = None,
    num_neighbors: int | None = None,
    squared: bool | str = True,
) -> Aggregator:
    r"""Multi-Krum: the mean of the rows with the best Krum scores.

    .. math:: A(x) = \frac{1}{q} \sum_{i \in S} x_i, \quad S = \text{the } q
      \text{ rows of least score}

    **Guarantee.** As `krum` for q ≤ m−f: breakdown point f/m for m ≥ 2f + 3. A row that
    is not finite has weight exactly 0; ties go to the lowest index.

    Args:
      num_byzantine: f.
      num_selected: q, m−f by default (the paper, ByzFL); some code takes m−2f−3.
      num_neighbors: as in `krum`.
      squared: as in `krum`.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: m < 2f + 3, or q > m, at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [1.0], [2.0], [1.0], [jnp.nan]])
      >>> print(byzjax.multi_krum(num_byzantine=1).aggregate(rows))
      [1.]

    Reference:
      Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries:
      Byzantine Tolerant Gradient Descent, 2017, https://arxiv.org/abs/1703.02757
    """
    name = "multi_krum"
    f = checks.count(name, num_byzantine=num_byzantine)
    if num_selected is not None:
        num_selected = checks.count(name, num_selected=num_selected, minimum=1)
    if num_neighbors is not None:
        num_neighbors = checks.count(name, num_neighbors=num_neighbors, minimum=1)
    check_squared(name, squared)

    def weigh(geometry):
        n = geometry.num_present
        scores = krum_scores(
            geometry.squared_distances, num_neighbors or n - f - 2, squared
        )
        return order.nearest_shares(scores, num_selected or n - f)

    check = _krum_check(name, f, num_neighbors, num_selected)
    return lift.geometric(
        name,
        weigh,
        check=check,
        bears=bearing.told(f),
        absent=True,
        keeps=lambda m: min(num_selected or m - f, m),
    )


def krum_scores(
    squared_distances: jax.Array,
    num_neighbors: int | jax.Array,
    squared: bool | str = True,
) -> jax.Array:
    """Krum's score [m]: the sum of distances to the nearest other rows.

    Rows out of the running have score +inf and are nobody's neighbours, so that asking
    for more neighbours than there are finite ones does not make all scores equal.

    Args:
      squared_distances: `[m, m]`, +inf for rows out of the running.
      num_neighbors: how many of the nearest others.
      squared: True, False for plain distances, or "twice" for fourth powers.
    """
    m = squared_distances.shape[0]
    finite = jnp.isfinite(jnp.diagonal(squared_distances))
    ordered = jnp.sort(
        krum_distances(squared_distances, num_neighbors, squared), axis=1
    )
    read = np.arange(m) < jnp.minimum(num_neighbors, jnp.sum(finite) - 1)
    scores = jnp.sum(jnp.where(read[None, :], ordered, 0), axis=1)
    return jnp.where(finite, scores, jnp.inf)


def krum_distances(
    squared_distances: jax.Array,
    num_neighbors: int | jax.Array,
    squared: bool | str = True,
) -> jax.Array:
    """What Krum sums, [m, m], +inf on the diagonal; `squared` as in `krum_scores`."""
    m = squared_distances.shape[0]
    others = jnp.where(np.eye(m, dtype=bool), jnp.inf, squared_distances)
    if squared is False:
        return jnp.sqrt(others)
    if squared is True:
        return others
    # Fourth powers leave float32's range at distances of 1e9 and 1e-10. In units of the
    # least farthest of as many neighbours as are summed every sum is one or more, and
    # the least one fits. Where some row has that many at no distance, in units of the
    # least distance that is one, so that others' sums are not zero as well.
    ordered = jnp.sort(others, axis=1)
    reach = jnp.min(jnp.take(ordered, num_neighbors - 1, axis=1))
    least = jnp.min(jnp.where(others > 0, others, jnp.inf))
    unit = jnp.where(reach > 0, reach, least)
    others = others / jnp.where(unit < jnp.inf, unit, 1)
    return others * others


def check_squared(name, squared):
    """Says what may be summed."""
    if not (
        isinstance(squared, bool) or (isinstance(squared, str) and squared == "twice")
    ):
        raise ValueError(
            f'{name} needs squared to be True, False or "twice", got '
            f"squared={squared!r}"
        )


def _krum_check(name, f, num_neighbors, num_selected=None):
    """The requirements of Krum, those of its proof unless the caller overrides them."""
    if num_neighbors is not None and num_neighbors < f:
        raise ValueError(
            f"{name} needs num_neighbors >= num_byzantine, as else the attackers are "
            f"each other's, got num_neighbors={num_neighbors} and num_byzantine={f}"
        )

    def check(m):
        if num_neighbors is None:
            if not m >= 2 * f + 3:
                raise ValueError(
                    f"{name} needs num_workers >= 2 * num_byzantine + 3, got "
                    f"num_workers={m} and num_byzantine={f}"
                )
        else:
            checks.minority(name, f)(m)
            if not num_neighbors <= m - f - 1:
                raise ValueError(
                    f"{name} needs num_neighbors <= num_workers - num_byzantine - 1, "
                    "as with more each honest row would count attackers, got "
                    f"num_neighbors={num_neighbors}, num_workers={m} and "
                    f"num_byzantine={f}"
                )
        if num_selected is not None and not num_selected <= m:
            raise ValueError(
                f"{name} needs num_selected <= num_workers, got "
                f"num_selected={num_selected} and num_workers={m}"
            )

    return check

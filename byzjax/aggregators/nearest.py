"""Means of what lies nearest a centre: per coordinate, or of whole rows."""

import jax
import jax.numpy as jnp
import optax

from byzjax import base, lifts, order, stacked
from byzjax.base import Aggregator


def meamed(num_byzantine: int, *, even: str = "midpoint") -> Aggregator:
    r"""The mean around the median (Meamed).

    .. math:: A(x)_k = \frac{1}{m - f} \sum_{i \in S_k} x_{ik}, \quad
      S_k = \text{the } m - f \text{ values nearest } \operatorname{median}(x)_k

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 1: every value kept is no farther
    from the median than some honest one. Values that are not finite are never kept; of
    values equally far the lowest rows are. O(dm log² m) elementwise operations in one
    pass over the stack.

    Args:
      num_byzantine: f.
      even: the median of an even number of workers, as in `median`; code built on
        torch takes the "lower" one.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: another `even`; m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [9.0], [jnp.nan]])
      >>> print(byzjax.meamed(num_byzantine=2).aggregate(rows))
      [2.]

    Reference:
      Xie, Koyejo, Gupta: Generalized Byzantine-tolerant SGD, 2018,
      https://arxiv.org/abs/1802.10116
    """
    f = base.check_count("meamed", num_byzantine=num_byzantine)
    check_even("meamed", even)

    def reduce(rows):
        center = order.middle(rows, even=even)
        return order.nearest_mean(rows, center, rows.shape[0] - f)

    check = base.check_minority("meamed", f)
    return lifts.coordinatewise("meamed", reduce, check=check)


def phocas(num_byzantine: int) -> Aggregator:
    r"""Phocas: the mean around the trimmed mean.

    .. math:: A(x)_k = \frac{1}{m - f} \sum_{i \in S_k} x_{ik}, \quad
      S_k = \text{the } m - f \text{ values nearest } \operatorname{CWTM}_f(x)_k

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 1, by the argument for `meamed`.
    Values that are not finite are never kept; of values equally far the lowest rows
    are. O(dm log² m) elementwise operations in one pass over the stack.

    Args:
      num_byzantine: f, both what is trimmed at each end and what is left out.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [jnp.inf]])
      >>> print(byzjax.phocas(num_byzantine=1).aggregate(rows))
      [2.]

    Reference:
      Xie, Koyejo, Gupta: Phocas: Dimensional Byzantine-resilient Stochastic Gradient
      Descent, 2018, https://arxiv.org/abs/1805.09682
    """
    f = base.check_count("phocas", num_byzantine=num_byzantine)

    def reduce(rows):
        center = order.trimmed_mean(rows, f)
        return order.nearest_mean(rows, center, rows.shape[0] - f)

    check = base.check_minority("phocas", f)
    return lifts.coordinatewise("phocas", reduce, check=check)


def aksel(
    num_byzantine: int, *, num_selected: int | None = None, even: str = "midpoint"
) -> Aggregator:
    r"""AKSEL: the mean of the rows nearest the coordinate-wise median.

    .. math:: A(x) = \frac{1}{q} \sum_{i \in S} x_i, \quad
      S = \text{the } q \text{ rows nearest } \operatorname{median}(x)

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 1 and q ≤ m−f: no row kept is
    farther from the median than some honest row. A row that is not finite has weight
    exactly 0; ties go to the lowest index. Three passes over the stack.

    Args:
      num_byzantine: f.
      num_selected: q, m−f by default; the authors' code also has ⌊(m+1)/2⌋, the rows
        within the median distance.
      even: the median of an even number of workers, as in `median`; the authors' code,
        built on torch, takes the "lower" one.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: another `even`; m < 2f + 1 or q > m at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [2.0, 1e9]])
      >>> print(byzjax.aksel(num_byzantine=1).aggregate(rows))
      [2. 0.]

    Reference:
      Boussetta, El Mhamdi, Guerraoui, Maurer, Rouault: AKSEL: Fast Byzantine SGD,
      OPODIS 2020, https://doi.org/10.4230/LIPIcs.OPODIS.2020.8
    """
    f = base.check_count("aksel", num_byzantine=num_byzantine)
    if num_selected is not None:
        base.check_count("aksel", num_selected=num_selected, minimum=1)
    check_even("aksel", even)
    median = lifts.coordinatewise("aksel", lambda rows: order.middle(rows, even=even))

    def update(updates, state, params=None, *, weights=None, **extra):
        lifts.refuse_weights("aksel", weights)
        m = base.num_workers(updates)
        base.check_minority("aksel", f)(m)
        count = num_selected or m - f
        if not count <= m:
            raise ValueError(
                f"aksel needs num_selected <= num_workers, got num_selected={count} "
                f"and num_workers={m}"
            )
        center, _ = median.update(updates, optax.EmptyState())
        distances = stacked.squared_distances_to_tree(updates, center)
        shares = order.mark_nearest(distances, count) / count
        shares = jnp.where(jnp.isfinite(distances), shares, 0)
        return stacked.weighted_sum(updates, shares, at_most=count), state

    return Aggregator(optax.init_empty_state, update)


def monna(num_byzantine: int, *, pivot: int = 0) -> Aggregator:
    r"""MoNNA: the mean of the rows nearest one trusted row, itself included.

    .. math:: A(x) = \frac{1}{m - f} \sum_{i \in S} x_i, \quad
      S = \text{the } m - f \text{ rows nearest } x_p

    Made for decentralised training, where every worker takes its own message as pivot.

    **Guarantee.** As good as its pivot: if that one is honest, every row kept is no
    farther from it than some honest row. With a Byzantine pivot there is none, except
    that a row that is not finite has weight exactly 0, and all have if the pivot is
    not. Ties go to the lowest index. Two
    passes over the stack.

    Args:
      num_byzantine: f.
      pivot: p, the index of the trusted row.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: m < 2f + 1 or p ≥ m at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [1.0], [2.0], [50.0]])
      >>> print(byzjax.monna(num_byzantine=1).aggregate(rows))
      [1.]

    Reference:
      Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan: Robust Collaborative
      Learning with Linear Gradient Overhead, 2023, https://arxiv.org/abs/2209.10931
    """
    f = base.check_count("monna", num_byzantine=num_byzantine)
    base.check_count("monna", pivot=pivot)

    def check(m):
        base.check_minority("monna", f)(m)
        if not pivot < m:
            raise ValueError(
                f"monna needs pivot < num_workers, got pivot={pivot} and "
                f"num_workers={m}"
            )

    def shares(squared_distances):
        count = squared_distances.shape[0] - f
        chosen = order.mark_nearest(squared_distances, count) / count
        return jnp.where(jnp.isfinite(squared_distances), chosen, 0)

    def weigh(geometry):
        return shares(geometry.squared_distances[pivot])

    def update(updates, state, params=None, *, weights=None, **extra):
        m = base.num_workers(updates)
        check(m)
        lifts.refuse_weights("monna", weights)
        squared = stacked.squared_distances_to_row(updates, pivot)
        return stacked.weighted_sum(updates, shares(squared), at_most=m - f), state

    # By itself it needs the distances to one row only; composed, the geometry is there.
    geometric = lifts.geometric("monna", weigh, check=check)
    return Aggregator(geometric.init, update, weigh=geometric.weigh)


def medoid() -> Aggregator:
    r"""The medoid: the row with the least sum of distances to all others.

    .. math:: A(x) = x_{i^*}, \quad i^* = \arg\min_i \sum_j \|x_i - x_j\|

    **Guarantee.** Breakdown point ⌊(m−1)/2⌋/m: the geometric median restricted to the
    rows. A row that is not finite is never chosen and counts in no sum; ties go to the
    lowest index. Two passes over the stack.

    Returns:
      An `Aggregator`.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [1.0], [3.0], [jnp.nan], [100.0]])
      >>> print(byzjax.medoid().aggregate(rows))
      [1.]

    Reference:
      El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in
      Byzantium, 2018, https://arxiv.org/abs/1802.07927
    """

    def weigh(geometry):
        finite = geometry.finite
        distances = jnp.sqrt(jax.lax.stop_gradient(geometry.squared_distances))
        sums = jnp.sum(jnp.where(finite[None, :], distances, 0), axis=1)
        return order.mark_nearest(jnp.where(finite, sums, jnp.inf), 1)

    return lifts.geometric("medoid", weigh, keeps=lambda m: 1)


def cge(num_byzantine: int) -> Aggregator:
    r"""Comparative gradient elimination (CGE): the mean of the rows of least norm.

    .. math:: A(x) = \frac{1}{m - f} \sum_{i \in S} x_i, \quad
      S = \text{the } m - f \text{ rows of least norm}

    **Guarantee.** For m ≥ 2f + 1 no row kept is longer than the longest honest one, so
    the result is bounded by the honest norms; it is not within the honest rows, and a
    small −x_i passes. A row that is not finite has weight exactly 0; ties go to the
    lowest index. Two passes over the stack, and no distances.

    Args:
      num_byzantine: f.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [-9.0], [jnp.inf]])
      >>> print(byzjax.cge(num_byzantine=2).aggregate(rows))
      [2.]

    Reference:
      Gupta, Liu, Vaidya: Byzantine Fault-Tolerant Distributed Machine Learning with
      Norm-Based Comparative Gradient Elimination, 2021,
      https://arxiv.org/abs/2008.04699
    """
    f = base.check_count("cge", num_byzantine=num_byzantine)

    def weigh(geometry):
        count = geometry.num_workers - f
        return order.mark_nearest(geometry.squared_norms, count) / count

    check = base.check_minority("cge", f)
    return lifts.geometric(
        "cge", weigh, check=check, distances=False, keeps=lambda m: m - f
    )


def check_even(name: str, even: str) -> None:
    """Says what the convention for the median of an even number may be."""
    if even not in ("midpoint", "lower"):
        raise ValueError(
            f'{name} needs even to be "midpoint" or "lower", got even={even!r}'
        )

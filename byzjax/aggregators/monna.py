"""MoNNA: the mean of the rows nearest a trusted one."""

import jax.numpy as jnp

from byzjax import checks
from byzjax.aggregators import bearing, claims, lift
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked


def monna(num_byzantine: int, *, pivot: int = 0) -> Aggregator:
    r"""MoNNA: the mean of the rows nearest one trusted row, itself included.

    .. math:: A(x) = \frac{1}{m - f} \sum_{i \in S} x_i, \quad
      S = \text{the } m - f \text{ rows nearest } x_p

    Made for decentralised training, where every worker takes its own message as pivot.

    **Guarantee.** As good as its pivot: if that one is honest, every row kept is no
    farther from it than some honest row. With a Byzantine pivot there is none, except
    that a row that is not finite has weight exactly 0, and all have if the pivot is
    not. Ties go to the lowest index. Two passes over the stack.

    Args:
      num_byzantine: f.
      pivot: p, the index of the trusted row, which has to be present.

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
    f = checks.count("monna", num_byzantine=num_byzantine)
    pivot = checks.count("monna", pivot=pivot)

    def check(m):
        checks.minority("monna", f)(m)
        if not pivot < m:
            raise ValueError(
                f"monna needs pivot < num_workers, got pivot={pivot} and "
                f"num_workers={m}"
            )

    def shares(distances, count):
        chosen = order.nearest_shares(distances, count)
        return jnp.where(jnp.isfinite(distances), chosen, 0)

    def weigh(geometry):
        return shares(geometry.squared_distances[pivot], geometry.num_present - f)

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        m = checks.num_workers(updates)
        claims.refuse_weights("monna", weights)
        distances = stacked.distances_to_row(updates, pivot, present).values
        count = claims.num_present(m, present)
        kept = shares(distances, count - f)
        return stacked.weighted_sum(updates, kept, at_most=m - f), state

    # By itself it needs the distances to one row only; composed, the geometry is there.
    geometric = lift.geometric("monna", weigh, absent=True)
    return Aggregator(
        *(geometric.init, update),
        check=check,
        trusted=(pivot,),
        bears=bearing.told(f),
        weigh=geometric.weigh,
    )

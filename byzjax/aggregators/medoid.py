"""The medoid: the row nearest to all others."""

import jax
import jax.numpy as jnp

from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


def medoid() -> Aggregator:
    r"""The medoid: the row with the least sum of distances to all others.

    .. math:: A(x) = x_{i^*}, \quad i^* = \arg\min_i \sum_j \|x_i - x_j\|

    **Guarantee.** Breakdown point ⌊(m−1)/2⌋/m: the geometric median restricted to the
    rows. The row chosen lies within 2(h−1)/(h−f) times the largest distance between the
    h honest rows from each of them. A row that is not finite is never chosen and counts
    in no sum; ties go to the lowest index. Two passes over the stack.

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
        ones = jnp.ones_like(geometry.norms)
        sums = jax.lax.stop_gradient(geometry.summed_distances(ones))
        return order.mark_nearest(sums, 1)

    return lift.geometric(
        "medoid", weigh, bears=bearing.minority, absent=True, keeps=lambda m: 1
    )

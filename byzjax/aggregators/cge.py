"""Comparative gradient elimination: the mean of the shortest rows."""

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


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
    f = checks.count("cge", num_byzantine=num_byzantine)

    def weigh(geometry):
        return order.nearest_shares(geometry.norms, geometry.num_present - f)

    check = checks.minority("cge", f)
    return lift.geometric(
        "cge",
        weigh,
        check=check,
        bears=bearing.told(f),
        absent=True,
        distances=False,
        keeps=lambda m: m - f,
    )

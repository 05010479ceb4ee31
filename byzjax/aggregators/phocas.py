"""The mean around the trimmed mean, per coordinate."""

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


def phocas(num_byzantine: int) -> Aggregator:
    r"""Phocas: the mean around the trimmed mean.

    .. math:: A(x)_k = \frac{1}{m - f} \sum_{i \in S_k} x_{ik}, \quad
      S_k = \text{the } m - f \text{ values nearest } \operatorname{CWTM}_f(x)_k

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 1, by the argument for `meamed`, and
    within the same bounds. Values that are not finite are never kept; of values equally
    far the lowest rows are. O(dm log² m) elementwise operations in one pass over the
    stack.

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
    f = checks.count("phocas", num_byzantine=num_byzantine)

    def reduce(rows, present=None):
        center = order.trimmed_mean(rows, f, present)
        return order.nearest_mean(rows, center, f, present)

    check = checks.minority("phocas", f)
    bears = bearing.told(f)
    return lift.coordinatewise(
        "phocas", order.summable(reduce), check=check, bears=bears
    )

"""The coordinate-wise trimmed mean."""

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


def trimmed_mean(num_byzantine: int) -> Aggregator:
    r"""The coordinate-wise trimmed mean (CWTM).

    .. math:: A(x)_k = \frac{1}{m - 2f} \sum_{r = f+1}^{m-f} x_{(r)k}

    The values kept are summed themselves, never "all minus the extremes", which
    cancels; of more than 64 rows their distances from one that is kept are, less those
    of the extremes, which adds m/(m − 2f) roundings of the spread. With weights, the
    mass f/m of the total weight is cut from each end of the sorted values, the values
    at the cuts in part.

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 1. (c_δ, δ)-robust with
    c_δ ≤ 6f/(m−2f)·(1 + f/(m−2f)) (Allouah et al. 2023). NaN is ordered as +inf, so up
    to f non-finite rows are cut. O(dm log² m) elementwise operations in one pass.

    Args:
      num_byzantine: f, how many values to drop at each end.

    Returns:
      An `Aggregator`; takes `weights` `[m]`.

    Raises:
      ValueError: f < 0, or m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [jnp.inf], [-jnp.inf]])
      >>> print(byzjax.trimmed_mean(num_byzantine=1).aggregate(rows))
      [2.]

    Reference:
      Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards
      Optimal Statistical Rates, 2018, https://arxiv.org/abs/1803.01498
    """
    f = checks.count("trimmed_mean", num_byzantine=num_byzantine)

    def reduce(rows, weights=None, present=None):
        if weights is not None:
            return order.weighted_trimmed_mean(rows, weights, f, present)
        return order.trimmed_mean(rows, f, present)

    return lift.coordinatewise(
        "trimmed_mean",
        order.summable(reduce),
        check=checks.minority("trimmed_mean", f),
        bears=bearing.told(f),
        weighted=True,
    )

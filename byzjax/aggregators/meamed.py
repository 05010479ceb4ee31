"""The mean around the median, per coordinate."""

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


def meamed(num_byzantine: int, *, even: str = "midpoint") -> Aggregator:
    r"""The mean around the median (Meamed).

    .. math:: A(x)_k = \frac{1}{m - f} \sum_{i \in S_k} x_{ik}, \quad
      S_k = \text{the } m - f \text{ values nearest } \operatorname{median}(x)_k

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 1: every value kept is no farther
    from the median than some honest one, so a coordinate lies within the honest ones,
    widened by at most f/(m−f) of their width. Values that are not finite are never
    kept; of values equally far the lowest rows are. O(dm log² m) elementwise operations
    in one pass over the stack.

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
    f = checks.count("meamed", num_byzantine=num_byzantine)
    checks.word("meamed", ("midpoint", "lower"), even=even)

    def reduce(rows, present=None):
        center = order.middle(rows, even=even, present=present)
        return order.nearest_mean(rows, center, f, present)

    check = checks.minority("meamed", f)
    bears = bearing.told(f)
    return lift.coordinatewise(
        "meamed", order.summable(reduce), check=check, bears=bears
    )

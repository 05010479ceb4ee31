"""The coordinate-wise median."""

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


def median(*, even: str = "midpoint") -> Aggregator:
    r"""The coordinate-wise median (CWMed).

    .. math:: A(x)_k = \operatorname{median}(x_{1k}, \dots, x_{mk})

    With weights, the first value in sorted order whose cumulative weight exceeds half
    of the total (the weighted CWMed of Dahan and Levy 2024b); equal weights are none.

    **Guarantee.** Breakdown point ⌊(m−1)/2⌋/m. (c_δ, δ)-robust for the spread of the
    coordinates with c_δ ≤ 4(1 + f/(m−2f))² (Allouah et al. 2023). NaN is ordered as
    +inf, so up to f non-finite rows leave every coordinate between honest values.
    O(dm log² m) elementwise operations in one pass over the stack.

    Args:
      even: for an even number of workers, "midpoint" of the two middle values (NumPy
        and most libraries), or the "lower" one (torch, the CTMA authors' code).

    Returns:
      An `Aggregator`; takes `weights` `[m]`.

    Raises:
      ValueError: if `even` is something else.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 5.0], [2.0, 6.0], [jnp.nan, 1e30]])
      >>> print(byzjax.median().aggregate(rows))
      [2. 6.]

    Reference:
      Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards
      Optimal Statistical Rates, 2018, https://arxiv.org/abs/1803.01498
    """
    checks.word("median", ("midpoint", "lower"), even=even)

    def reduce(rows, weights=None, present=None):
        if weights is None:
            return order.middle(rows, even=even, present=present)
        return order.weighted_median(rows, weights)

    return lift.coordinatewise("median", reduce, bears=bearing.minority, weighted=True)

"""Rules that act on every coordinate by itself: mean, median, trimmed mean."""

import jax
import jax.numpy as jnp

from byzjax import base, columns, lifts, order, stacked
from byzjax.base import Aggregator


def mean() -> Aggregator:
    r"""The average of the workers: no defence, the baseline of every comparison.

    .. math:: A(x) = \frac{1}{m} \sum_i x_i, \qquad \sum_i w_i x_i / \sum_i w_i

    **Guarantee.** None: breakdown point 0, one non-finite row makes the result
    non-finite. The only rule of the library that can be poisoned. O(dm).

    Returns:
      An `Aggregator`; takes `weights` `[m]`.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> print(byzjax.mean().aggregate(jnp.array([[1.0, 2.0], [3.0, 6.0]])))
      [2. 4.]
    """

    def update(updates, state, params=None, *, weights=None, **extra):
        m = base.num_workers(updates)
        dtype = columns.widest_accumulator(jax.tree.leaves(updates))
        checked = lifts.check_weights("mean", weights, m)
        if checked is None:
            shares = jnp.full((m,), 1 / m, dtype)
        else:
            shares = checked.astype(dtype) / jnp.sum(checked.astype(dtype))
        return stacked.weighted_sum(updates, shares), state

    def weigh(geometry, weights):
        shares = jnp.where(geometry.finite, 1.0 if weights is None else weights, 0)
        return stacked.normalized(shares)

    # Inside a meta-rule the mean is a weighting like any other, of the finite rows.
    inside = lifts.geometric("mean", weigh, weighted=True, distances=False)
    return Aggregator(inside.init, update, weigh=inside.weigh, distances=False)


def median(*, even: str = "midpoint") -> Aggregator:
    r"""The coordinate-wise median (CWMed).

    .. math:: A(x)_k = \operatorname{median}(x_{1k}, \dots, x_{mk})

    With weights, the first value in sorted order whose cumulative weight exceeds half
    of the total (the weighted CWMed of Dahan and Levy 2024b).

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
    if even not in ("midpoint", "lower"):
        raise ValueError(
            f'median needs even to be "midpoint" or "lower", got even={even!r}'
        )

    def reduce(rows, weights=None):
        if weights is None:
            return order.middle(rows, even=even)
        return order.weighted_median(rows, weights)

    return lifts.coordinatewise("median", reduce, weighted=True)


def trimmed_mean(num_byzantine: int) -> Aggregator:
    r"""The coordinate-wise trimmed mean (CWTM).

    .. math:: A(x)_k = \frac{1}{m - 2f} \sum_{r = f+1}^{m-f} x_{(r)k}

    The values kept are summed themselves, never "all minus the extremes", which
    cancels. With weights, the mass f/m of the total weight is cut from each end of the
    sorted values, the values at the cuts in part.

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
    f = base.check_count("trimmed_mean", num_byzantine=num_byzantine)

    def reduce(rows, weights=None):
        m = rows.shape[0]
        if weights is not None:
            return order.weighted_trimmed_mean(rows, weights, f / m)
        return order.trimmed_mean(rows, f)

    return lifts.coordinatewise(
        "trimmed_mean",
        reduce,
        check=base.check_minority("trimmed_mean", f),
        weighted=True,
    )

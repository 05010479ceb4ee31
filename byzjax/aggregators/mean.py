"""The average of the workers: no defence."""

import jax
import jax.numpy as jnp

from byzjax import checks
from byzjax.aggregators import claims, lift
from byzjax.base import Aggregator
from byzjax.numerics import stacked


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

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        m = checks.num_workers(updates)
        dtype = stacked.widest_accumulator(jax.tree.leaves(updates))
        checked = claims.check_weights("mean", weights, m, present)
        if present is not None and checked is None:
            shares = present.astype(dtype) / jnp.sum(present).astype(dtype)
        elif checked is None:
            shares = jnp.full((m,), 1 / m, dtype)
        else:
            shares = checked.astype(dtype) / jnp.sum(checked.astype(dtype))
        return stacked.weighted_sum(updates, shares), state

    update = claims.equal_weights_are_none(update)
    # It bears nobody, and does not say so: a meta-rule may be all the defence there is.
    return Aggregator(_INSIDE.init, update, weigh=_INSIDE.weigh, distances=False)


def _weigh(geometry, weights):
    shares = jnp.where(geometry.finite, 1.0 if weights is None else weights, 0)
    return stacked.normalized(shares)


# Inside a meta-rule the mean is a weighting like any other, of the finite rows.
_INSIDE = lift.geometric("mean", _weigh, weighted=True, absent=True, distances=False)

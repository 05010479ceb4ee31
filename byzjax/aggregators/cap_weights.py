"""Weights of the workers with no share above a bound."""

import jax
import jax.numpy as jnp
import jax.typing
import numpy as np
import optax
from jax import lax

from byzjax import checks
from byzjax.aggregators import claims
from byzjax.numerics import stacked


def cap_weights(weights: jax.typing.ArrayLike, max_share: float) -> jax.Array:
    r"""Cuts claimed weights down, so that no worker has more than a share of their sum.

    .. math:: u_i = \min(w_i, c), \quad c \text{ the largest with }
      c \le s \sum_j \min(w_j, c)

    Weights are claims of the workers: one that claims 10³⁰ samples owns every weighted
    rule, by definition. A bound takes its word for no more than a share s.

    **Guarantee.** Every u_i ≤ s Σ u, and what is not cut keeps its ratios. A weight
    that is negative or not finite is zero. Where fewer than 1/s workers have a weight,
    all have the same. f workers hold at most the share f s, and rules with weights bear
    less than a half. O(m log m).

    Args:
      weights: `[m]`, as in `aggregate(..., weights=...)`; counts or floats.
      max_share: s, at least 1/m and at most 1.

    Returns:
      `[m]`, in a unit of their own: only ratios count.

    Raises:
      ValueError: weights that are no vector, s < 1/m or s > 1.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> counts = jnp.array([100.0, 200.0, 100.0, 1e6])
      >>> capped = byzjax.cap_weights(counts, max_share=0.5)
      >>> print(capped / capped[0])
      [1. 2. 1. 4.]
    """
    share = checks.number(
        "cap_weights", max_share=max_share, open_interval=True, static=True
    )
    if isinstance(weights, optax.GradientTransformation):
        raise TypeError(
            f"cap_weights needs weights, one number a worker, got {weights!r}: it is "
            "no meta-rule, give rule.aggregate(updates, weights=cap_weights(...))"
        )
    shape = np.shape(weights)
    if len(shape) != 1:
        raise ValueError(
            f"cap_weights needs weights of shape (num_workers,), got {shape}"
        )
    (m,) = shape
    if not 1 - 1e-9 <= m * share <= m:  # 49 · (1/49) is less than one.
        raise ValueError(
            "cap_weights needs 1 / num_workers <= max_share <= 1, got "
            f"max_share={max_share} and num_workers={m}"
        )
    claimed = claims.real_weights("cap_weights", weights, m)
    # Over the last that can be the first not to be cut: beside the largest claim others
    # may be no floats. Those 10^30 times as large are cut, whatever they are.
    last = sum(k * share < 1 for k in range(m)) - 1
    size = -jnp.sort(-claimed)[last]
    unit = stacked.power_of_two(size)
    claimed = jnp.minimum(claimed * stacked.inverse(unit), 1e30)
    ordered = -jnp.sort(-claimed)
    above = jnp.arange(m).astype(ordered.dtype) * share
    rest = lax.cumsum(ordered, reverse=True)
    caps = share * rest / jnp.where(above < 1, 1 - above, 1)
    # The first cap that cuts as many as it was made for.
    fits = (caps >= ordered) & (above < 1) & (rest > 0)
    cut = jnp.minimum(claimed, caps[jnp.argmax(fits)])
    return jnp.where(jnp.any(fits) & (size > 0), cut, 1)

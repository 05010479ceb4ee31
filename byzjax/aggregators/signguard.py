"""SignGuard: plausible norms, and the largest cluster of sign statistics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax import checks, loops
from byzjax.aggregators import claims, lift
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked
from byzjax.trees import accumulator_dtype

# Fractions of few coordinates are often equally far: up to this they count as equal.
_ROUNDING = 1e-6


def signguard(*, lower: float = 0.1, upper: float = 3.0) -> Aggregator:
    r"""SignGuard: plausible norms, and the largest cluster of sign statistics.

    .. math:: A(x) = \frac{1}{|S_1 \cap S_2|} \sum_{i \in S_1 \cap S_2}
      \min(1, s / \|x_i\|) \, x_i, \quad s = \operatorname{median}_i \|x_i\|

    with S₁ the rows of norm between `lower` · s and `upper` · s, and S₂ the largest
    cluster, by mean shift, of the fractions of positive, zero and negative entries. If
    no row is in both, S₁. Differs from the paper in that the fractions are over all
    coordinates, which costs one pass, and not over a random tenth.

    **Guarantee.** For m ≥ 2f + 1 the result is no longer than the longest honest row.
    Whether S₂ leaves the attackers out is an assumption on their signs. A row that is
    not finite has weight exactly 0. Three passes over the stack and O(m³).

    Args:
      lower: L ≥ 0.
      upper: R > 0, at least L.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: a bound that is negative or not finite, or `lower` above `upper`.
      TypeError: a bound that is no number.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [-1.0, -2.0]])
      >>> print(byzjax.signguard().aggregate(rows).round(3))
      [1.333 1.333]

    Reference:
      Xu, Huang, Song, Lan: Byzantine-robust Federated Learning through Collaborative
      Malicious Gradient Filtering, ICDCS 2022, https://arxiv.org/abs/2109.05872
    """
    least = checks.number("signguard", lower=lower)
    most = checks.number("signguard", upper=upper, open_interval=True)
    known = isinstance(least, float) and isinstance(most, float)
    if known and not least <= most:
        raise ValueError(
            f"signguard needs lower <= upper, got lower={lower} and upper={upper}"
        )

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        claims.refuse_weights("signguard", weights)
        geometry = stacked.norms(updates, present)
        norms = geometry.norms
        typical = order.middle(norms, present=present)
        low, high = (checks.in_dtype(x, norms.dtype) for x in (least, most))
        plausible = (norms >= low * typical) & (norms <= high * typical)
        plausible &= geometry.finite
        alike = _mean_shift_cluster(_sign_fractions(updates), geometry.finite)
        member = jnp.where(jnp.any(plausible & alike), plausible & alike, plausible)
        shares = lift.clipped_mean(member, geometry, typical)
        shares = jnp.where(geometry.finite, shares, 0)
        return stacked.weighted_sum(updates, shares), state

    return Aggregator(optax.init_empty_state, update)


def _sign_fractions(updates):
    """The fractions of positive, zero and negative entries of each row, [m, 3]."""

    def terms(x):
        counts = jnp.stack([x > 0, x == 0, x < 0], axis=1)  # [m, 3, b]
        return counts.astype(accumulator_dtype(x.dtype))

    counts = stacked.column_sums(terms, lax.stop_gradient(updates))
    size = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(updates))
    return counts / max(1, size)


def _mean_shift_cluster(points, usable):
    """Marks [m] the largest cluster of points [m, 3] by mean shift with a flat kernel.

    As scikit-learn has it, with every usable point as a seed, the bandwidth estimated
    from the nearer half of the neighbours, and points out of every reach in no cluster.
    """
    m = points.shape[0]

    def distances_to(centers):
        gap = points[None, :, :] - centers[:, None, :]
        squares = jnp.sum(gap * gap, axis=2)
        return jnp.where(usable[None, :], jnp.sqrt(squares), jnp.inf)

    neighbors = jnp.maximum(jnp.sum(usable) // 2, 1)
    reach = jnp.take(jnp.sort(distances_to(points), axis=1), neighbors - 1, axis=1)
    weights = stacked.normalized(usable.astype(points.dtype))
    bandwidth = jnp.sum(jnp.where(usable, reach, 0) * weights) + _ROUNDING

    def shift(_, centers):
        inside = (distances_to(centers) <= bandwidth).astype(points.dtype)
        count = jnp.maximum(jnp.sum(inside, axis=1), 1)
        total = jnp.matmul(inside, points, precision=lax.Precision.HIGHEST)
        return jnp.where(usable[:, None], total / count[:, None], centers)

    centers = loops.fori_loop(0, 100, shift, points)
    mass = jnp.where(usable, jnp.sum(distances_to(centers) <= bandwidth, axis=1), -1)
    # A centre stays unless a heavier one is within reach.
    ranked = jnp.lexsort((*(-centers.T[::-1]), -mass))
    gap = centers[:, None, :] - centers[None, :, :]
    near = jnp.sum(gap * gap, axis=2) <= bandwidth * bandwidth

    def thin(i, kept):
        at = ranked[i]
        return kept.at[at].set(usable[at] & ~jnp.any(kept & near[at]))

    kept = loops.fori_loop(0, m, thin, jnp.zeros((m,), bool))
    distances = jnp.where(kept[:, None], distances_to(centers), jnp.inf)
    least = jnp.min(distances, axis=0)
    reached = usable & (least <= bandwidth)
    # Between centres equally near, the heavier one.
    rank = jnp.argsort(ranked)[:, None]
    tied = distances <= least[None, :] + _ROUNDING
    nearest = jnp.argmin(jnp.where(tied, rank, m), axis=0)
    mine = nearest[None, :] == np.arange(m)[:, None]
    sizes = jnp.sum(mine & reached[None, :], axis=1)
    largest = ranked[jnp.argmax(sizes[ranked])]
    return reached & (nearest == largest)

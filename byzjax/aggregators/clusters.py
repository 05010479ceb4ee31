"""Rules that keep the largest cluster of workers: FLAME, SignGuard, clipped clustering.

The clusterings are those of the papers, on m×m arrays with a fixed number of steps.
"""

from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax import base, columns, lifts, order, stacked
from byzjax.aggregators.trust import cosine_distances
from byzjax.base import Aggregator
from byzjax.columns import accumulator_dtype, flat_rows

# Fractions of few coordinates are often equally far: up to this they count as equal.
_ROUNDING = 1e-6


def flame(*, noise: float = 0.001) -> Aggregator:
    r"""FLAME: the majority cluster by cosine, clipped to the median norm, plus noise.

    .. math:: A(x) = \frac{1}{|S|} \sum_{i \in S} \min(1, s / \|x_i\|) \, x_i
      + \mathcal{N}(0, \lambda^2 s^2), \quad s = \operatorname{median}_i \|x_i\|

    with S what HDBSCAN finds at a least cluster size of ⌊m/2⌋ + 1: the first cluster of
    more than half of the workers that forms when pairs are joined in the order of their
    cosine distances. (For this size alone it need not be run: two such clusters cannot
    be.) The paper takes cosines between models, here they are between updates.

    **Guarantee.** For m ≥ 2f + 1 the result, before the noise, is no longer than the
    longest honest row. Whether S leaves the attackers out is an assumption on their
    directions. A row that is not finite has weight exactly 0. Two passes over the
    stack and O(m³), and one pass to draw the noise.

    Args:
      noise: λ ≥ 0, the standard deviation of the noise in units of s; the paper's 0.001
        is for images. With 0 no key is needed.

    Returns:
      An `Aggregator` that needs a `key` if `noise` is not 0.

    Raises:
      ValueError: negative noise; a missing key.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1e6]])
      >>> print(byzjax.flame(noise=0.0).aggregate(rows).round(3))
      [1.833 0.   ]

    Reference:
      Nguyen, Rieger, Chen, Yalame, Möllering, Fereidooni et al.: FLAME: Taming
      Backdoors in Federated Learning, USENIX Security 2022,
      https://arxiv.org/abs/2101.02281
    """
    base.check_number("flame", noise=noise)

    def weigh(geometry):
        member = _majority_cluster(cosine_distances(geometry)) & geometry.finite
        norms = stacked.root(geometry.squared_norms)
        return _clipped_mean(member, norms, order.middle(norms))

    without = lifts.geometric("flame", weigh)
    if isinstance(noise, int | float) and noise == 0:
        return without

    def update(updates, state, params=None, *, key=None, weights=None, **extra):
        key = base.check_key("flame", key)
        out, state = without.update(updates, state, params, weights=weights)
        scale = noise * order.middle(stacked.root(stacked.norms(updates).squared_norms))
        leaves, structure = jax.tree.flatten(out)
        keys = jax.random.split(key, len(leaves))
        noisy = []
        for own, leaf in zip(keys, leaves, strict=True):
            dtype = accumulator_dtype(leaf.dtype)
            drawn = jax.random.normal(own, leaf.shape, dtype) * scale.astype(dtype)
            noisy.append((leaf.astype(dtype) + drawn).astype(leaf.dtype))
        return jax.tree.unflatten(structure, noisy), state

    return Aggregator(optax.init_empty_state, update)


def _majority_cluster(distances):
    """Marks [m] the first connected majority as pairs are joined by distance [m, m]."""
    m = distances.shape[0]

    # The longest step on the best path between each two: what single linkage joins at.
    def through(i, reach):
        return jnp.minimum(reach, jnp.maximum(reach[:, i, None], reach[i, None, :]))

    reach = lax.fori_loop(0, m, through, lax.stop_gradient(distances))
    joined = jnp.sort(reach, axis=1)[:, m // 2]
    first = jnp.argmin(joined)
    return reach[first] <= joined[first]


def _clipped_mean(member, norms, most):
    """Weights [m] of the mean of the members, each clipped to a norm of `most`."""
    long = member & (norms > most)
    kept = jnp.where(long, most / jnp.where(long, norms, 1), 1)
    member = member.astype(norms.dtype)
    return stacked.normalized(member) * kept


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
      upper: R > 0.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: negative bounds.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [-1.0, -2.0]])
      >>> print(byzjax.signguard().aggregate(rows).round(3))
      [1.333 1.333]

    Reference:
      Xu, Huang, Song, Lan: Byzantine-robust Federated Learning through Collaborative
      Malicious Gradient Filtering, ICDCS 2022, https://arxiv.org/abs/2109.05872
    """
    base.check_number("signguard", lower=lower)
    base.check_number("signguard", upper=upper, open_interval=True)

    def update(updates, state, params=None, *, weights=None, **extra):
        lifts.refuse_weights("signguard", weights)
        geometry = stacked.norms(updates)
        norms = stacked.root(geometry.squared_norms)
        typical = order.middle(norms)
        plausible = (norms >= lower * typical) & (norms <= upper * typical)
        plausible &= geometry.finite
        alike = _mean_shift_cluster(_sign_fractions(updates), geometry.finite)
        member = jnp.where(jnp.any(plausible & alike), plausible & alike, plausible)
        shares = _clipped_mean(member, norms, typical)
        shares = jnp.where(geometry.finite, shares, 0)
        return stacked.weighted_sum(updates, shares), state

    return Aggregator(optax.init_empty_state, update)


def _sign_fractions(updates):
    """The fractions of positive, zero and negative entries of each row, [m, 3]."""

    def of_block(x):
        counts = jnp.stack([x > 0, x == 0, x < 0], axis=1)  # [m, 3, b]
        return (), counts.astype(accumulator_dtype(x.dtype))

    leaves = jax.tree.leaves(lax.stop_gradient(updates))
    rows = [flat_rows(leaf) for leaf in leaves]
    _, counts = columns.fold(of_block, *columns.bundled(rows))
    return counts / max(1, sum(x.shape[1] for x in rows))


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

    centers = lax.fori_loop(0, 100, shift, points)
    mass = jnp.where(usable, jnp.sum(distances_to(centers) <= bandwidth, axis=1), -1)
    # A centre stays unless a heavier one is within reach.
    ranked = jnp.lexsort((*(-centers.T[::-1]), -mass))
    gap = centers[:, None, :] - centers[None, :, :]
    near = jnp.sum(gap * gap, axis=2) <= bandwidth * bandwidth

    def thin(i, kept):
        at = ranked[i]
        return kept.at[at].set(usable[at] & ~jnp.any(kept & near[at]))

    kept = lax.fori_loop(0, m, thin, jnp.zeros((m,), bool))
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


class ClippedClusteringState(NamedTuple):
    """State of `clipped_clustering`."""

    norms: jax.Array  # The latest norms, latest first, [window].
    count: jax.Array  # How many of them there are so far.


def clipped_clustering(
    *,
    max_norm: float | None = None,
    linkage: str = "average",
    window: int = 4096,
) -> Aggregator:
    r"""Clipped clustering: rows clipped to the median norm, the larger of two clusters.

    .. math:: A(x) = \frac{1}{|S|} \sum_{i \in S} \min(1, s / \|x_i\|) \, x_i

    with s the median of all norms seen so far, which are kept in the state, and S the
    larger of the two clusters that agglomerative clustering by cosine distance ends in;
    of equals the one of the lowest index.

    **Guarantee.** For m ≥ 2f + 1 in every round the result is no longer than an honest
    row has ever been. Whether S leaves the attackers out is an assumption on their
    directions. A row that is not finite has weight exactly 0 and no part in the
    clustering. Two passes over the stack and O(m³).

    Args:
      max_norm: an upper bound for s, in units of the updates; None for none.
      linkage: "average" distance between clusters, or of their nearest rows ("single").
      window: how many norms are kept; the paper keeps all.

    Returns:
      An `Aggregator` with a `ClippedClusteringState`.

    Raises:
      ValueError: another `linkage`; a `max_norm` that is not positive; no window; more
        workers than `window` at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [-9.0, 0.0]])
      >>> print(byzjax.clipped_clustering().aggregate(rows).round(3))
      [1.833 0.   ]

    Reference:
      Li, Ngai, Voigt: An Experimental Study of Byzantine-Robust Aggregation Schemes in
      Federated Learning, 2023, https://arxiv.org/abs/2302.07173
    """
    name = "clipped_clustering"
    if max_norm is not None:
        base.check_number(name, max_norm=max_norm, open_interval=True)
    if linkage not in ("average", "single"):
        raise ValueError(
            f'{name} needs linkage to be "average" or "single", got linkage={linkage!r}'
        )
    base.check_count(name, window=window, minimum=1)

    def init(params):
        norms = jnp.full((window,), jnp.inf, float)
        return ClippedClusteringState(norms, jnp.int32(0))

    def update(updates, state, params=None, *, weights=None, **extra):
        lifts.refuse_weights(name, weights)
        m = base.num_workers(updates)
        if not m <= window:
            raise ValueError(
                f"{name} needs window >= num_workers, got window={window} and "
                f"num_workers={m}"
            )
        geometry = stacked.geometry(updates)
        norms = stacked.root(geometry.squared_norms)
        # Places not filled yet hold +inf and come last.
        history = jnp.concatenate(
            [norms.astype(state.norms.dtype), state.norms[: window - m]]
        )
        count = jnp.minimum(state.count + m, window)
        ordered = jnp.sort(history)
        most = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
        most = most.astype(norms.dtype)
        if max_norm is not None:
            most = jnp.minimum(most, max_norm)
        labels = _two_clusters(cosine_distances(geometry), geometry.finite, linkage)
        same = (labels[:, None] == labels[None, :]) & geometry.finite[None, :]
        largest = jnp.argmax(jnp.where(geometry.finite, jnp.sum(same, axis=1), 0))
        member = geometry.finite & (labels == labels[largest])
        shares = _clipped_mean(member, norms, most)
        shares = jnp.where(geometry.finite, shares, 0)
        history = lax.stop_gradient(history)
        out = stacked.weighted_sum(updates, shares)
        return out, ClippedClusteringState(history, count)

    return Aggregator(init, update)


def _two_clusters(distances, usable, linkage):
    """Labels [m] of the two clusters that agglomerative clustering ends in."""
    m = distances.shape[0]
    off = ~np.eye(m, dtype=bool)
    # Rows that are of no use join first, and weigh nothing in what they join.
    both = usable[:, None] & usable[None, :]
    distances = jnp.where(both, lax.stop_gradient(distances), -1)
    sizes = usable.astype(distances.dtype)

    def merge(_, carry):
        distances, sizes, labels, there = carry
        open_ = there[:, None] & there[None, :] & off
        at = jnp.argmin(jnp.where(open_, distances, jnp.inf)).astype(jnp.int32)
        i, j = at // m, at % m  # i < j, for the matrix is symmetric.
        one, two = sizes[i], sizes[j]
        if linkage == "average":
            joint = one * distances[i] + two * distances[j]
            joint = joint / jnp.maximum(one + two, 1)
        else:
            joint = jnp.minimum(distances[i], distances[j])
        joint = jnp.where(two > 0, joint, distances[i])
        joint = jnp.where(one > 0, joint, distances[j])
        distances = distances.at[i, :].set(joint).at[:, i].set(joint)
        sizes = sizes.at[i].set(one + two)
        labels = jnp.where(labels == j, i, labels)
        return distances, sizes, labels, there.at[j].set(False)

    start = distances, sizes, jnp.arange(m, dtype=jnp.int32), jnp.ones((m,), bool)
    return lax.fori_loop(0, max(0, m - 2), merge, start)[2]

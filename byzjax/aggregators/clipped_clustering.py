"""Clipped clustering: rows clipped to the median norm, the larger of two clusters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax import checks, loops
from byzjax.aggregators import claims, lift
from byzjax.base import Aggregator
from byzjax.numerics import stacked


class ClippedClusteringState(NamedTuple):
    """State of `clipped_clustering`.

    Attributes:
      norms: the norms of the latest rounds, latest first, `[window]`; +inf where there
        are none yet.
      rounds: the number of the round that each is of, `[window]`, int32.
      count: how many norms there are, of whole rounds, `[]`, int32.
    """

    norms: jax.Array  # The norms of the latest rounds, latest first, [window].
    rounds: jax.Array  # The number of the round of each, [window]; int32.
    count: jax.Array  # How many of them there are, of whole rounds.


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
    clustering, and is not remembered. Two passes over the stack and O(m³).

    Args:
      max_norm: an upper bound for s, in units of the updates; None for none.
      linkage: "average" distance between clusters, or of their nearest rows ("single").
      window: how many norms are kept at most, of whole rounds; the paper keeps all.

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
        max_norm = checks.number(name, max_norm=max_norm, open_interval=True)
    checks.word(name, ("average", "single"), linkage=linkage)
    window = checks.count(name, window=window, minimum=1)

    def init(params):
        norms = jnp.full((window,), jnp.inf, float)
        rounds = jnp.zeros((window,), jnp.int32)
        return ClippedClusteringState(norms, rounds, jnp.int32(0))

    def check(m):
        if not m <= window:
            raise ValueError(
                f"{name} needs window >= num_workers, got window={window} and "
                f"num_workers={m}"
            )

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        claims.refuse_weights(name, weights)
        m = checks.num_workers(updates)
        geometry = stacked.geometry(updates, present=present)
        # Places not filled yet hold +inf and come last.
        norms = geometry.plain_norms().astype(state.norms.dtype)
        history = jnp.concatenate([norms, state.norms])
        number = state.rounds[0] + 1
        rounds = jnp.append(jnp.full((m,), number, jnp.int32), state.rounds)
        # As if the round had only the rows that are there and finite.
        there = jnp.isfinite(norms)
        if present is not None:
            there &= present
        first = jnp.argsort(~there, stable=True).astype(jnp.int32)
        places = jnp.arange(m + window, dtype=jnp.int32)
        new = jnp.sum(there, dtype=jnp.int32)
        moved = jnp.minimum(places + m - new, m + window - 1)
        places = jnp.where(places < new, jnp.resize(first, places.shape), moved)
        history, rounds = history[places], rounds[places]
        # Of whole rounds only: what is left of one could be attackers' rows.
        cut = jnp.where(state.count + new > window, rounds[window], -1)
        history, rounds = history[:window], rounds[:window]
        history = jnp.where(rounds == cut, jnp.inf, history)
        count = jnp.minimum(state.count + new, window)
        left = jnp.arange(window, dtype=jnp.int32) < count
        count -= jnp.sum((rounds == cut) & left, dtype=jnp.int32)
        ordered = jnp.sort(history)
        # Halved first: of the sum the largest float may be less.
        most = ordered[(count - 1) // 2] / 2 + ordered[count // 2] / 2
        most = most.astype(geometry.norms.dtype)
        if max_norm is not None:
            most = jnp.minimum(most, checks.in_dtype(max_norm, most.dtype))
        labels = _two_clusters(geometry.cosine_distances(), geometry.finite, linkage)
        same = (labels[:, None] == labels[None, :]) & geometry.finite[None, :]
        largest = jnp.argmax(jnp.where(geometry.finite, jnp.sum(same, axis=1), 0))
        member = geometry.finite & (labels == labels[largest])
        most = geometry.in_norm_unit(most)
        shares = lift.clipped_mean(member, geometry, most)
        shares = jnp.where(geometry.finite, shares, 0)
        history = lax.stop_gradient(history)
        out = stacked.weighted_sum(updates, shares)
        return out, ClippedClusteringState(history, rounds, count)

    return Aggregator(init, update, check=check)


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
    return loops.fori_loop(0, max(0, m - 2), merge, start)[2]

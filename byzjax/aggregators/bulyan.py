"""Bulyan: Krum chooses rows, a mean around the median chooses values."""

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax import checks, loops
from byzjax.aggregators import bearing, claims, krum
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked


def bulyan(
    num_byzantine: int,
    *,
    selection: str = "repeated",
    squared: bool | str = True,
    even: str = "midpoint",
) -> Aggregator:
    r"""Bulyan: the mean around the median of the rows that Krum chooses.

    .. math:: A(x)_k = \frac{1}{\theta - 2f} \sum_{i \in S_k} x_{ik}, \quad
      S_k = \text{the } \theta - 2f \text{ values of } S \text{ nearest }
      \operatorname{median}(S)_k

    with S the θ = m−2f rows chosen by Krum one after the other, each time among the r
    rows that are left and with their r−f−2 nearest others (at least one).

    **Guarantee.** Breakdown point f/m for m ≥ 4f + 3, and every coordinate lies within
    the honest ones, widened by at most min(1, f/(m−4f)) times their width: what Krum
    alone cannot promise in high dimension (El Mhamdi et al. 2018). A row that is not
    finite is never chosen; ties go to the lowest index. Two passes over the stack and
    O(m² (θ + log m)).

    Args:
      num_byzantine: f.
      selection: "repeated" as in the paper, or "once": the θ best scores of a single
        round with m−f−2 neighbours, as multi-Krum has them and some code takes.
      squared: the distances that Krum sums, as in `krum`.
      even: the median of an even number of values, as in `median`; code built on torch
        takes the "lower" one.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: another `selection`, `squared` or `even`; m < 4f + 3 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, jnp.nan])[:, None]
      >>> print(byzjax.bulyan(num_byzantine=1).aggregate(rows))
      [3.]

    Reference:
      El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in
      Byzantium, 2018, https://arxiv.org/abs/1802.07927
    """
    f = checks.count("bulyan", num_byzantine=num_byzantine)
    checks.word("bulyan", ("repeated", "once"), selection=selection)
    krum.check_squared("bulyan", squared)
    checks.word("bulyan", ("midpoint", "lower"), even=even)

    def check(m):
        if not m >= 4 * f + 3:
            raise ValueError(
                "bulyan needs num_workers >= 4 * num_byzantine + 3, got "
                f"num_workers={m} and num_byzantine={f}"
            )

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        claims.refuse_weights("bulyan", weights)
        geometry = stacked.geometry(updates, present=present)
        distances = lax.stop_gradient(geometry.squared_distances)
        m, n = geometry.num_workers, geometry.num_present
        if selection == "once":
            scores = krum.krum_scores(distances, n - f - 2, squared)
            chosen = order.mark_nearest(scores, n - 2 * f) > 0
        else:
            start = jnp.ones((m,), bool) if present is None else present
            chosen = _repeated_krum(distances, start, n, f, squared)
        # In their order: of values equally far the lowest row's is taken.
        listed = jnp.argsort(~chosen, stable=True)[: m - 2 * f]
        there = None if present is None else chosen[listed]

        @order.summable
        def around_median(kept):
            center = order.middle(kept, even=even, present=there)
            return order.nearest_mean(kept, center, 2 * f, there)

        def reduce(rows):
            return around_median(order.take(rows, listed))

        return stacked.along_workers(reduce, updates), state

    return Aggregator(
        optax.init_empty_state, update, check=check, bears=bearing.told(f)
    )


def _repeated_krum(squared_distances, present, n, f, squared):
    """Which n − 2f rows [m] Krum takes, each out of those left, in turn."""
    m = squared_distances.shape[0]
    distances = krum.krum_distances(squared_distances, n - f - 2, squared)
    by_distance = jnp.argsort(distances, axis=1, stable=True)
    ordered = jnp.take_along_axis(distances, by_distance, axis=1)
    largest = jnp.finfo(distances.dtype).max

    def step(i, left):
        neighbors = jnp.maximum(n - i - f - 2, 1)
        # Sorted once: a removed row only moves the others up. Itself it comes last.
        there = left[by_distance] & (by_distance != np.arange(m)[:, None])
        read = there & (jnp.cumsum(there, axis=1) <= neighbors)
        scores = jnp.sum(jnp.where(read, ordered, 0), axis=1)
        scores = jnp.where(left, jnp.minimum(scores, largest), jnp.inf)
        return left.at[jnp.argmin(scores)].set(False)

    return present & ~loops.fori_loop(0, n - 2 * f, step, present)

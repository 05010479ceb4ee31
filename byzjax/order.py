"""Exact order statistics along the worker axis, without sorting whole columns.

`jnp.sort`, `jnp.median` and `jnp.mean` along a leading axis are 30 to 300 times slower
on XLA:CPU than the memory allows (jax issues 4379, 10434, 25187). A sorting network of
elementwise minima and maxima over the rows, pruned to the ranks wanted, fuses
into one pass. Networks grow as m·log²m, so above `NETWORK_LIMIT` rows values are found
bit by bit (`byzjax/selection.py`): linear in m, in a program that hardly grows with it.

NaN is ordered as +inf everywhere.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from byzjax.reductions import larger, nan_last, row_sum, smaller, sum_of_rows
from byzjax.selection import select

NETWORK_LIMIT = 64


@functools.cache
def _batcher(m: int, ranks: tuple[int, ...]) -> tuple[tuple[int, int, bool, bool], ...]:
    """Batcher's odd-even merge sort for m rows, pruned to the wanted ranks.

    Returns:
      Comparators (i, j, low, high) in order: row i takes the minimum if `low`, row j
      the maximum if `high`; a half that nobody reads is left out.
    """
    comparators = []
    p = 1
    while p < m:
        k = p
        while k >= 1:
            for j in range(k % p, m - k, 2 * k):
                for i in range(min(k, m - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        comparators.append((i + j, i + j + k))
            k //= 2
        p *= 2
    needed = set(ranks)
    kept = []
    for i, j in reversed(comparators):
        low, high = i in needed, j in needed
        if low or high:
            kept.append((i, j, low, high))
            needed |= {i, j}
    return tuple(reversed(kept))


def order_statistics(rows: jax.Array, ranks: Sequence[int]) -> list[jax.Array]:
    """The values of the given ranks along axis 0, exactly.

    Args:
      rows: `[m, ...]`.
      ranks: 0-based, ascending order; rank 0 is the minimum.

    Returns:
      One array `[...]` for each rank.
    """
    m = rows.shape[0]
    if m > NETWORK_LIMIT:
        return select(rows, tuple(ranks))
    return _network([nan_last(rows[i]) for i in range(m)], tuple(ranks))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _network(values: list[jax.Array], ranks: tuple[int, ...]) -> list[jax.Array]:
    """The values of the given ranks, by a network; nothing may be NaN.

    On a GPU a minimum is one operation as well, and twice as many operations would take
    ten times as long to compile.
    """

    def on_cpu(values):
        return _compared(values, ranks, smaller, larger)

    def elsewhere(values):
        return _compared(values, ranks, jnp.minimum, jnp.maximum)

    return lax.platform_dependent(values, cpu=on_cpu, default=elsewhere)


@_network.defjvp
def _network_jvp(ranks, primals, tangents):
    # Equal values share a derivative, as they do in jnp.minimum: all of it to one of
    # several equal workers would say that the others do not matter.
    network = functools.partial(
        _compared, ranks=ranks, smaller=jnp.minimum, larger=jnp.maximum
    )
    return jax.jvp(network, primals, tangents)


def _compared(values, ranks, smaller, larger):
    values = list(values)
    for i, j, low, high in _batcher(len(values), ranks):
        a, b = values[i], values[j]
        if low:
            values[i] = smaller(a, b)
        if high:
            values[j] = larger(a, b)
    return [values[rank] for rank in ranks]


def middle(rows: jax.Array, *, even: str = "midpoint") -> jax.Array:
    """The median along axis 0; for an even number the midpoint or the lower middle."""
    m = rows.shape[0]
    low, high = (m - 1) // 2, m // 2
    if low == high or even == "lower":
        return order_statistics(rows, [low])[0]
    a, b = order_statistics(rows, [low, high])
    half = jnp.asarray(0.5, rows.dtype)
    # Not (a + b) / 2, which may overflow, and a maximum that changes nothing (a <= b),
    # as XLA would factor the half out again.
    return a * half + jnp.maximum(a * half, b * half)


def take(rows: jax.Array, indices: jax.Array) -> jax.Array:
    """Some rows of `[m, ...]`, read one by one where a network is to follow."""
    count = indices.shape[0]
    if count > NETWORK_LIMIT:
        return jnp.take(rows, indices, axis=0)
    return jnp.stack(
        [
            lax.dynamic_index_in_dim(rows, indices[i], keepdims=False)
            for i in range(count)
        ]
    )


def mark_nearest(distances: jax.Array, count: int) -> jax.Array:
    """Marks the `count` smallest of `[m]` by 1, the rest by 0; lowest index first."""
    chosen = jnp.argsort(distances, stable=True)[:count]
    return jnp.zeros_like(distances).at[chosen].set(1)


def nearest_mean(rows: jax.Array, center: jax.Array, count: int) -> jax.Array:
    """Per coordinate the mean of the `count` values nearest `center`.

    Of values equally far the lowest rows are taken, exactly `count` in all.

    Args:
      rows: `[m, ...]`, floating point.
      center: `[...]`.
      count: how many values to keep, 1 <= count <= m.
    """
    m = rows.shape[0]
    if m > NETWORK_LIMIT:
        return _nearest_of_many(rows, center, count)
    distances = [_gap(rows[i], center) for i in range(m)]
    # The nearest are neighbours in order, so of every `count`-th value in order they
    # hold one, the nearest of these. The farthest of them is the threshold.
    gaps = [_gap(value, center) for value in order_statistics(rows, range(m))]
    chosen = [functools.reduce(smaller, gaps[i::count]) for i in range(count)]
    threshold = functools.reduce(larger, chosen)
    one, zero = jnp.ones_like(threshold), jnp.zeros_like(threshold)

    def count_closer(closer, distance):
        return closer + jnp.where(distance < threshold, one, zero)

    def add(carry, item):
        total, free = carry
        row, distance = item
        tie = (distance == threshold) & (free > 0)
        free = free - jnp.where(tie, one, zero)
        kept = jnp.where((distance < threshold) | tie, row, zero)
        return total + kept, free

    closer = functools.reduce(count_closer, distances, zero)
    items = zip([rows[i] for i in range(m)], distances, strict=True)
    return functools.reduce(add, items, (zero, count - closer))[0] / count


def _gap(rows, center):
    return nan_last(jnp.abs(rows - center))


def _nearest_of_many(rows, center, count):
    """`nearest_mean` in a program that does not grow with the rows."""
    distances = _gap(rows, center[None])
    (threshold,) = order_statistics(distances, [count - 1])

    def number(chosen):
        return sum_of_rows(chosen.astype(rows.dtype))

    def mean(chosen):
        return sum_of_rows(jnp.where(chosen, rows, 0)) / count

    def lowest():
        closer, tie = distances < threshold[None], distances == threshold[None]
        free = count - number(closer)
        place = jnp.cumsum(tie.astype(rows.dtype), axis=0)
        return mean(closer | (tie & (place <= free[None])))

    near = distances <= threshold[None]
    exactly = jnp.all(number(near) == count)
    return lax.cond(exactly, lambda: mean(near), lowest)


def trimmed_mean(rows: jax.Array, trim: int) -> jax.Array:
    """The mean along axis 0 of all but the `trim` smallest and `trim` largest."""
    m = rows.shape[0]
    if m <= NETWORK_LIMIT:
        kept = order_statistics(rows, range(trim, m - trim))
        return row_sum(kept) / len(kept)
    low, high = order_statistics(rows, [trim, m - trim - 1])
    # What is gone counts as `low` or `high`, `trim` times each, and is taken off again:
    # as distances from that of their range which is nearest to zero, so that little is.
    near = lax.stop_gradient(larger(smaller(jnp.zeros_like(low), high), low))
    huge = larger(jnp.abs(low), jnp.abs(high)) > jnp.finfo(rows.dtype).max / m
    scale = jnp.where(huge, jnp.asarray(0.5 ** m.bit_length(), rows.dtype), 1)

    def distance(values):
        return (values - near) * scale

    below = jnp.where(rows < high[None], rows, high[None])  # NaN is `high`.
    inside = jnp.where(below > low[None], below, low[None])
    total = sum_of_rows(jax.vmap(distance)(inside))
    rest = (total - trim * (distance(low) + distance(high))) / (m - 2 * trim)
    finite = jnp.isfinite(low) & jnp.isfinite(high)
    return jnp.where(finite, near + rest / scale, low + high)


def weighted_median(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """The first value in sorted order whose cumulative weight exceeds one half."""
    half = jnp.sum(weights) / 2
    reached = _weight_up_to(rows, weights)
    # The smallest value that reaches half; compared as values, so ties are no matter.
    values = nan_last(rows)
    far = jnp.asarray(jnp.inf, rows.dtype)
    return jnp.min(jnp.where(reached > half, values, far), axis=0)


def weighted_trimmed_mean(
    rows: jax.Array, weights: jax.Array, fraction: float
) -> jax.Array:
    """The mean of the weight mass left when `fraction` of it is cut at each end."""
    total = jnp.sum(weights)
    low, high = fraction * total, (1 - fraction) * total
    end = _weight_up_to(rows, weights, break_ties=True)
    start = end - _column(weights, rows)
    kept = jnp.maximum(jnp.minimum(end, high) - jnp.maximum(start, low), 0)
    kept = jnp.where(kept > 0, kept, 0)
    values = jnp.where(kept > 0, nan_last(rows), 0)
    terms = [kept[i] * values[i] for i in range(rows.shape[0])]
    return row_sum(terms) / row_sum([kept[i] for i in range(rows.shape[0])])


def _column(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Weights `[m]` shaped to go with `[m, ...]`."""
    return weights.reshape(weights.shape + (1,) * (rows.ndim - 1))


def _weight_up_to(
    rows: jax.Array, weights: jax.Array, *, break_ties: bool = False
) -> jax.Array:
    """For every value the total weight of the values not above it, `[m, ...]`.

    With `break_ties`, equal values are ordered by row, so every value has a place of
    its own in the order.
    """
    values = nan_last(rows)
    index = _column(jnp.arange(rows.shape[0]), rows)

    def add(total, item):
        value, weight, at = item
        below = value[None] < values
        tie = value[None] == values
        if break_ties:
            tie &= at <= index
        return total + jnp.where(below | tie, weight, 0), None

    items = (values, weights, jnp.arange(rows.shape[0]))
    return lax.scan(add, jnp.zeros_like(values), items)[0]

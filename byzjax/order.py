"""Exact order statistics along the worker axis, without sorting whole columns.

`jnp.sort`, `jnp.median` and `jnp.mean` along a leading axis are 30 to 300 times slower
on XLA:CPU than the memory allows (jax issues 4379, 10434, 25187). A sorting network of
elementwise `minimum` and `maximum` over the rows, pruned to the ranks wanted, fuses
into one pass. Networks grow as m·log²m, so above `NETWORK_LIMIT` rows a bitonic sort
moves all rows at once, in a program of log²m steps.

NaN is ordered as +inf everywhere.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

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


def _bitonic_sort(rows: jax.Array) -> jax.Array:
    """Sorts `[m, ...]` along axis 0, in log² m steps over all rows at once."""
    m = rows.shape[0]
    n = 1 << (m - 1).bit_length()
    if n > m:
        pad = jnp.full((n - m, *rows.shape[1:]), jnp.inf, rows.dtype)
        rows = jnp.concatenate([rows, pad], axis=0)
    size = 2
    while size <= n:
        half = size // 2
        while half:
            # The two halves of a group, ascending both: the first step of a merge
            # compares with the second half turned round.
            pairs = rows.reshape(n // (2 * half), 2, half, *rows.shape[1:])
            low, high = pairs[:, 0], pairs[:, 1]
            if 2 * half == size:
                high = high[:, ::-1]
            pairs = jnp.stack([jnp.minimum(low, high), jnp.maximum(low, high)], axis=1)
            # Steps must not fuse: each would be computed again for all that read it.
            rows = lax.optimization_barrier(pairs.reshape(rows.shape))
            half //= 2
        size *= 2
    return rows


def nan_last(rows: jax.Array) -> jax.Array:
    """NaN replaced by +inf, so that comparisons order it last."""
    return jnp.where(jnp.isnan(rows), jnp.asarray(jnp.inf, rows.dtype), rows)


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
        ordered = _bitonic_sort(nan_last(rows))
        return [ordered[rank] for rank in ranks]
    return _network([nan_last(rows[i]) for i in range(m)], ranks)


def _network(values: list[jax.Array], ranks: Sequence[int]) -> list[jax.Array]:
    """The values of the given ranks, by a network; nothing may be NaN."""
    for i, j, low, high in _batcher(len(values), tuple(ranks)):
        a, b = values[i], values[j]
        if low:
            values[i] = jnp.minimum(a, b)
        if high:
            values[j] = jnp.maximum(a, b)
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


def row_sum(rows: Sequence[jax.Array]) -> jax.Array:
    """The sum of arrays, added pairwise: one fused pass, rounded as in a tree."""
    values = list(rows)
    while len(values) > 1:
        pairs = [a + b for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + ([values[-1]] if len(values) % 2 else [])
    return values[0]


def nearest_mean(
    rows: jax.Array, center: jax.Array, count: int, among: jax.Array | None = None
) -> jax.Array:
    """Per coordinate the mean of the `count` values nearest `center`.

    Of values equally far the lowest rows are taken, exactly `count` in all.

    Args:
      rows: `[m, ...]`, floating point.
      center: `[...]`.
      count: how many values to keep, 1 <= count <= m.
      among: `[m]`, bool, at least `count` rows to choose from; all when None.
    """
    m = rows.shape[0]

    def gap(row, where):
        distance = nan_last(jnp.abs(row - center))
        return distance if among is None else jnp.where(where, distance, jnp.inf)

    everyone = jnp.ones((m,), bool) if among is None else among
    # The network row by row: ten times faster than on slices of a stack of distances.
    if m > NETWORK_LIMIT:
        distances = jax.vmap(gap)(rows, everyone)
        (threshold,) = order_statistics(distances, [count - 1])
    else:
        distances = [gap(rows[i], everyone[i]) for i in range(m)]
        (threshold,) = _network(list(distances), [count - 1])
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

    if m > NETWORK_LIMIT:
        closer = _scan(count_closer, zero, distances)
        return _scan(add, (zero, count - closer), (rows, distances))[0] / count
    closer = functools.reduce(count_closer, distances, zero)
    items = zip([rows[i] for i in range(m)], distances, strict=True)
    return functools.reduce(add, items, (zero, count - closer))[0] / count


def _scan(function, start, items):
    """functools.reduce over the rows of arrays, in a loop."""
    return lax.scan(lambda c, item: (function(c, item), None), start, items)[0]


def trimmed_mean(rows: jax.Array, trim: int) -> jax.Array:
    """The mean along axis 0 of all but the `trim` smallest and `trim` largest."""
    m = rows.shape[0]
    kept = order_statistics(rows, range(trim, m - trim))
    return row_sum(kept) / len(kept)


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

"""Exact order statistics along the worker axis, without sorting whole columns.

`jnp.sort`, `jnp.median` and `jnp.mean` along a leading axis are 30 to 300 times slower
on XLA:CPU than the memory allows (jax issues 4379, 10434, 25187). A sorting network of
elementwise minima and maxima over the rows, pruned to the ranks wanted, fuses
into one pass. Networks grow as m·log²m, so above `NETWORK_LIMIT` rows the bits of a
value are found one after another, each by counting the rows below: linear in m, in a
program that does not grow with it.

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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _select(rows: jax.Array, ranks: tuple[int, ...]) -> list[jax.Array]:
    """The values of ascending ranks along axis 0; nothing may be NaN."""
    values: list[jax.Array] = []
    for before, rank in zip((None, *ranks), ranks, strict=False):
        if before is not None and rank - before <= 1:
            values.append(_successor(rows, values[-1], rank))
        else:
            values.append(_by_bits(rows, rank))
    return values


@_select.defjvp
def _select_jvp(ranks, primals, tangents):
    # A value is that of a row: of all rows that have it, in equal parts.
    (rows,), (tangent,) = primals, tangents
    values = _select(rows, ranks)

    def moved(value):
        same = rows == value[None]
        share = sum_of_rows(jnp.where(same, tangent, 0))
        return share / sum_of_rows(same.astype(rows.dtype))

    return values, [moved(value) for value in values]


def _by_bits(rows, rank):
    """A bit is set if, with it, no more rows lie below the value than the rank says."""
    size = 8 * rows.dtype.itemsize
    integer = jnp.dtype(f"int{size}")
    one, lowest, highest = (
        jnp.asarray(x, integer) for x in (1, -(2 ** (size - 1)), 2 ** (size - 1) - 1)
    )

    def turned(bits):  # Floats as integers of the same order, and back.
        return jnp.where(bits < 0, bits ^ highest, bits)

    keys = turned(lax.bitcast_convert_type(rows, integer))

    def step(i, found):
        higher = found ^ (one << (size - 1 - i).astype(integer))
        below = sum_of_rows((keys < higher[None]).astype(jnp.float32))
        return jnp.where(below <= rank, higher, found)

    found = lax.fori_loop(0, size, step, jnp.full(rows.shape[1:], lowest))
    return lax.bitcast_convert_type(turned(found), rows.dtype)


def _successor(rows, value, rank):
    """The value of a rank from that of the rank before, or of the same."""
    up_to = sum_of_rows((rows <= value[None]).astype(jnp.float32))
    above = reduce_rows(smaller, jnp.where(rows > value[None], rows, jnp.inf))
    return jnp.where(up_to > rank, value, above)


def reduce_rows(function, rows: jax.Array) -> jax.Array:
    """`function` of two over all rows, in a program that grows as their logarithm.

    Half against half: XLA:CPU is several times slower along axis 0 with `jnp.max`.
    """
    while rows.shape[0] > 1:
        half = rows.shape[0] // 2
        reduced = function(rows[:half], rows[half : 2 * half])
        rows = jnp.concatenate([reduced, rows[2 * half :]])
    return rows[0]


def sum_of_rows(rows: jax.Array) -> jax.Array:
    """The sum along axis 0, in a program that does not grow with the rows."""
    m = rows.shape[0]
    if m >= 8:  # Four at once: a product then has less to read.
        quarter = m // 4
        parts = rows[: 4 * quarter].reshape(4, quarter, *rows.shape[1:])
        first = row_sum([parts[i] for i in range(4)])
        rows = jnp.concatenate([first, rows[4 * quarter :]])
    ones = jnp.ones((rows.shape[0],), rows.dtype)
    flat = rows.reshape(rows.shape[0], -1)
    total = jnp.matmul(ones, flat, precision=lax.Precision.HIGHEST)
    return total.reshape(rows.shape[1:])


def nan_last(rows: jax.Array) -> jax.Array:
    """NaN replaced by +inf, so that comparisons order it last."""
    return jnp.where(jnp.isnan(rows), jnp.asarray(jnp.inf, rows.dtype), rows)


def smaller(a: jax.Array, b: jax.Array) -> jax.Array:
    """The minimum; nothing may be NaN.

    One instruction on a CPU, where `jnp.minimum` takes several, to let NaN through.
    """
    return lax.select(a < b, a, b)


def larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum, as `smaller`; of equals the other one, so that none is lost."""
    return lax.select(a < b, b, a)


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
        return _select(nan_last(rows), tuple(ranks))
    return _network([nan_last(rows[i]) for i in range(m)], tuple(ranks))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _network(values: list[jax.Array], ranks: tuple[int, ...]) -> list[jax.Array]:
    """The values of the given ranks, by a network; nothing may be NaN."""
    return _compared(values, ranks, smaller, larger)


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


def row_sum(rows: Sequence[jax.Array]) -> jax.Array:
    """The sum of arrays, added pairwise: one fused pass, rounded as in a tree."""
    values = list(rows)
    while len(values) > 1:
        pairs = [a + b for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + ([values[-1]] if len(values) % 2 else [])
    return values[0]


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


def nearest_mean(rows: jax.Array, center: jax.Array, count: int) -> jax.Array:
    """Per coordinate the mean of the `count` values nearest `center`.

    Of values equally far the lowest rows are taken, exactly `count` in all.

    Args:
      rows: `[m, ...]`, floating point.
      center: `[...]`.
      count: how many values to keep, 1 <= count <= m.
    """
    m = rows.shape[0]

    def gap(value):
        return nan_last(jnp.abs(value - center))

    if m > NETWORK_LIMIT:
        distances = jax.vmap(gap)(rows)
        (threshold,) = order_statistics(distances, [count - 1])
    else:
        distances = [gap(rows[i]) for i in range(m)]
        # The nearest are neighbours in order, so of every `count`-th value in order
        # they hold one, the nearest of these. The farthest of them is the threshold.
        gaps = [gap(value) for value in order_statistics(rows, range(m))]
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
    if m <= NETWORK_LIMIT:
        kept = order_statistics(rows, range(trim, m - trim))
        return row_sum(kept) / len(kept)
    low, high = order_statistics(rows, [trim, m - trim - 1])
    rows = nan_last(rows)
    above_low, below_high = rows > low[None], rows < high[None]
    between = sum_of_rows(jnp.where(above_low & below_high, rows, 0))
    # What is left of the values equal to either end, when `trim` have gone.
    num_above = sum_of_rows(above_low.astype(rows.dtype))
    num_below = sum_of_rows(below_high.astype(rows.dtype))
    ends = low * (m - trim - num_above) + high * (m - trim - num_below)
    return jnp.where(low < high, (between + ends) / (m - 2 * trim), low)


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

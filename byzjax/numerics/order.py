"""Along the worker axis, every coordinate by itself: order statistics and their means.

`jnp.sort`, `jnp.median` and `jnp.mean` along a leading axis are 30 to 300 times slower
on XLA:CPU than the memory allows (jax issues 4379, 10434, 25187), so nothing here sorts
whole columns. NaN is ordered as +inf everywhere.

Where only some rows are `present` `[m]`, n of them, the others count as −inf or +inf,
so that ranks counted from the other end, or from the middle, are those of all m.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from byzjax import loops
from byzjax.numerics._ranks import NETWORK_LIMIT, exact, mean_of_middle
from byzjax.numerics._reductions import (
    as_number,
    column,
    larger,
    nan_last,
    reduce_rows,
    row_sum,
    smaller,
    sum_of_rows,
)
from byzjax.numerics._weighted import (
    cumulative,
    weighted_median,
    weighted_trimmed_mean,
    without_slivers,
)

__all__ = [
    "NETWORK_LIMIT",
    "as_number",
    "cumulative",
    "larger",
    "mark_nearest",
    "middle",
    "nearest_mean",
    "nearest_shares",
    "order_statistics",
    "reduce_rows",
    "row_sum",
    "summable",
    "take",
    "trimmed_mean",
    "weighted_median",
    "weighted_trimmed_mean",
    "without_slivers",
]


def order_statistics(rows: jax.Array, ranks: Sequence[int]) -> list[jax.Array]:
    """The values of the given ranks along axis 0, exactly.

    The way it takes is chosen here, with the sizes at which it changes:

    * Up to 64 rows a network of comparisons (`_network.py`), pruned to the ranks: one
      pass, 1.2 reads of the stack for the median of 17, 7.2 for that of 64.
    * More rows on a CPU: words of the bits of 32 rows (`_words.py`), linear in the
      rows, 7 reads for the median of 128 and of 512, where counting takes 2 to 3 times
      as long.
    * More rows elsewhere: the same bits in a short program (`_planes.py`), about 15
      reads and writes of the stack by its operands, which was not measured.
    * Of float64, in fewer than 64 columns and of more than 4096 rows: counting rows for
      every bit (`_counting.py`), a short program. On a GPU 82 reads for the median of
      128.

    Measured on two CPU cores with jax 0.10.2 and on one H100; see docs/performance.md.

    Args:
      rows: `[m, ...]`, floating point.
      ranks: 0-based, ascending order; rank 0 is the minimum.

    Returns:
      One array `[...]` for each rank. Rows that have the value share its derivative.
    """
    return exact(rows, tuple(ranks))


def summable(reduce: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function of rows `[m, ...]`, whose sums then stay in range.

    For one that commutes with a factor: it is given all rows over a power of two, so
    that a sum of the largest is finite as their mean is. That is exact, but for values
    of 10^-35 and less, which may become zeros.
    """

    @functools.wraps(reduce)
    def in_range(rows, *weights, **present):
        m = rows.shape[0]
        unit = jnp.asarray(2.0 ** m.bit_length(), rows.dtype)
        return reduce(_over(rows, unit), *weights, **present) * unit

    return in_range


@jax.custom_jvp
def _over(rows, unit):
    # One by one where a network is to follow, as in `take`.
    few = rows.shape[0] <= NETWORK_LIMIT
    return jnp.stack([row / unit for row in rows]) if few else rows / unit


@_over.defjvp
def _over_jvp(primals, tangents):
    # Of all rows at once: backwards, m single ones would be m stacks to add up.
    (rows, unit), (tangent, _) = primals, tangents
    return _over(rows, unit), tangent / unit


def middle(
    rows: jax.Array, *, even: str = "midpoint", present: jax.Array | None = None
) -> jax.Array:
    """The median along axis 0; for an even number the midpoint or the lower middle."""
    m = rows.shape[0]
    low, high = (m - 1) // 2, m // 2
    if present is not None and m > 1:
        # Half of the absent on either side, and where that leaves one over, such that
        # the lower middle is where it is without any absent.
        high = low + 1
        absent = jnp.cumsum(~present)
        first = absent <= (absent[-1] + m % 2) // 2
        rows = _filled(rows, present, jnp.where(first, -jnp.inf, jnp.inf))
    if low == high or even == "lower":
        return order_statistics(rows, [low])[0]
    a, b = order_statistics(rows, [low, high])
    half = jnp.asarray(0.5, rows.dtype)
    # Not (a + b) / 2, which may overflow, and a maximum that changes nothing (a <= b),
    # as XLA would factor the half out again.
    between = a * half + jnp.maximum(a * half, b * half)
    if present is None:
        return between
    return jnp.where(jnp.sum(present) % 2 == 1, a, between)


def _filled(rows, present, fill):
    """Rows `[m, ...]`, with `fill`, one or one a row, where they are not present."""
    fill = jnp.broadcast_to(jnp.asarray(fill, rows.dtype), present.shape)
    if present.shape[0] > NETWORK_LIMIT:
        return jnp.where(column(present, rows), rows, column(fill, rows))
    # One by one where a network is to follow, as in `take`.
    filled = zip(present, rows, fill, strict=True)
    return jnp.stack([jnp.where(*one) for one in filled])


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


def mark_nearest(distances: jax.Array, count: int | jax.Array) -> jax.Array:
    """Marks the `count` smallest of `[m]` by 1, the rest by 0; lowest index first."""
    ordered = jnp.argsort(distances, stable=True)
    if isinstance(count, int):
        return jnp.zeros_like(distances).at[ordered[:count]].set(1)
    marks = jnp.arange(distances.shape[0]) < count
    return jnp.zeros_like(distances).at[ordered].set(marks.astype(distances.dtype))


def nearest_shares(distances: jax.Array, count: int | jax.Array) -> jax.Array:
    """Weights [m] of the mean of the `count` nearest, as `mark_nearest` marks them."""
    return mark_nearest(distances, count) / as_number(count, distances.dtype)


def nearest_mean(
    rows: jax.Array,
    center: jax.Array,
    dropped: int,
    present: jax.Array | None = None,
) -> jax.Array:
    """Per coordinate the mean of all values but the `dropped` farthest from `center`.

    Of values equally far the lowest rows are taken, exactly m − `dropped` in all. For
    rows and a centre that are `summable`.

    Args:
      rows: `[m, ...]`, floating point.
      center: `[...]`.
      dropped: how many values to leave out, less than there are.
      present: which rows `[m]` there are.
    """
    m = rows.shape[0]
    if m > NETWORK_LIMIT:
        return _nearest_of_many(rows, center, dropped, present)
    distances = [_gap(rows[i], center) for i in range(m)]
    count = m - dropped
    if present is None:
        # The nearest are neighbours in order, so of every `count`-th value in order
        # they hold one, the nearest of these. The farthest of them is the threshold.
        gaps = [_gap(value, center) for value in order_statistics(rows, range(m))]
        chosen = [functools.reduce(smaller, gaps[i::count]) for i in range(count)]
        threshold = functools.reduce(larger, chosen)
    else:
        gaps = _filled(jnp.stack(distances), present, -jnp.inf)
        (threshold,) = order_statistics(gaps, [count - 1])
        distances = list(_filled(jnp.stack(distances), present, jnp.nan))
        count = as_number(jnp.sum(present) - dropped, rows.dtype)
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


def _nearest_of_many(rows, center, dropped, present):
    """`nearest_mean` in a program that does not grow with the rows."""
    distances = _gap(rows, center[None])
    count = rows.shape[0] - dropped
    if present is None:
        (threshold,) = order_statistics(distances, [count - 1])
    else:
        gaps = _filled(distances, present, -jnp.inf)
        (threshold,) = order_statistics(gaps, [count - 1])
        distances = _filled(distances, present, jnp.nan)  # Not compared.
        count = as_number(jnp.sum(present) - dropped, rows.dtype)

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
    return loops.cond(exactly, lambda: mean(near), lowest)


def trimmed_mean(
    rows: jax.Array, trim: int, present: jax.Array | None = None
) -> jax.Array:
    """The mean along axis 0 of all but the `trim` smallest and `trim` largest.

    For rows that are `summable`.
    """
    m = rows.shape[0]
    count = m - 2 * trim
    if present is not None:
        fewer = jnp.sum(present) - 2 * trim
        last = _filled(rows, present, jnp.inf)
        if m <= NETWORK_LIMIT:
            kept = order_statistics(last, range(trim, m - trim))
            kept = [jnp.where(i < fewer, one, 0) for i, one in enumerate(kept)]
            return row_sum(kept) / fewer.astype(rows.dtype)
        (low,) = order_statistics(last, [trim])
        first = _filled(rows, present, -jnp.inf)
        (high,) = order_statistics(first, [m - trim - 1])
        count = fewer.astype(rows.dtype)
    elif m <= NETWORK_LIMIT:
        return mean_of_middle(rows, trim)
    else:
        low, high = order_statistics(rows, [trim, m - trim - 1])
    # What is gone counts as `low` or `high`, `trim` times each, and is taken off again:
    # as distances from that of their range which is nearest to zero, so that little is.
    near = lax.stop_gradient(larger(smaller(jnp.zeros_like(low), high), low))
    below = jnp.where(rows < high[None], rows, high[None])  # NaN is `high`.
    inside = jnp.where(below > low[None], below, low[None])
    beyond = inside - near[None]
    if present is not None:
        beyond = _filled(beyond, present, 0)
    total = sum_of_rows(beyond)
    rest = (total - trim * ((low - near) + (high - near))) / count
    finite = jnp.isfinite(low) & jnp.isfinite(high)
    return jnp.where(finite, near + rest, low + high)

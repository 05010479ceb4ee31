"""The values of given ranks, and their derivatives: `exact`, `mean_of_middle`.

The derivative of a value goes to the rows that have it, in equal parts. A program that
compares rows with values says so in a few lines, whatever found the values: that of a
network's own derivative is so long that XLA:CPU compiles it, for 20 rows, for a quarter
of a minute and more.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from byzjax.numerics._counting import by_count
from byzjax.numerics._network import by_network
from byzjax.numerics._planes import by_planes
from byzjax.numerics._reductions import nan_last, row_sum, sum_of_rows
from byzjax.numerics._words import by_words

# Rows of a network; of more its program takes too long to compile.
NETWORK_LIMIT = 64
# Words of more rows make a long program, and are not worth one in fewer columns.
_MOST_ROWS_OF_WORDS = 4096
_LEAST_COLUMNS_OF_WORDS = 64


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def exact(rows: jax.Array, ranks: tuple[int, ...]) -> list[jax.Array]:
    """`order.order_statistics`, which says when each way is taken."""
    m = rows.shape[0]
    if m > NETWORK_LIMIT:
        return _by_bits(rows, ranks)
    return by_network([nan_last(rows[i]) for i in range(m)], ranks)


@exact.defjvp
def exact_jvp(ranks, primals, tangents):
    # All of it to one of several equal workers would say that the others do not matter.
    (rows,), (tangent,) = primals, tangents
    values = exact(rows, ranks)
    # NaN is ordered as +inf, and does not move.
    tangent = jnp.where(jnp.isnan(rows), 0, tangent)
    # Barriers: XLA would find values and counts anew for every row that reads them.
    ordered, *known = lax.optimization_barrier((nan_last(rows), *values))
    m = rows.shape[0]

    def share_of(value):
        if m > NETWORK_LIMIT:
            return 1 / sum_of_rows((ordered == value[None]).astype(rows.dtype))
        return 1 / row_sum([(ordered[i] == value).astype(rows.dtype) for i in range(m)])

    def moved(value, share):
        mine = jnp.where(ordered == value[None], tangent, 0)
        # Of a product the terms would be written first. Backwards, a sum is a broadcast
        # into one pass, which is what matters: few ask for derivatives forwards.
        total = sum_of_rows(mine) if m > NETWORK_LIMIT else jnp.sum(mine, axis=0)
        return total * share

    shares = lax.optimization_barrier([share_of(value) for value in known])
    return values, [moved(*pair) for pair in zip(known, shares, strict=True)]


def _by_bits(rows: jax.Array, ranks: tuple[int, ...]) -> list[jax.Array]:
    """`exact` in a program that hardly grows with the rows."""
    flat = rows.reshape(rows.shape[0], -1)
    m, n = flat.shape
    count = functools.partial(by_count, ranks=ranks)
    in_words = rows.dtype.itemsize <= 4 and m <= _MOST_ROWS_OF_WORDS
    if in_words and n >= _LEAST_COLUMNS_OF_WORDS:
        words, planes = (
            functools.partial(way, ranks=ranks) for way in (by_words, by_planes)
        )
        values = lax.platform_dependent(flat, cpu=words, default=planes)
    else:
        values = count(flat)
    return [value.reshape(rows.shape[1:]) for value in values]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def mean_of_middle(rows: jax.Array, trim: int) -> jax.Array:
    """`order.trimmed_mean` of few rows."""
    kept = exact(rows, tuple(range(trim, rows.shape[0] - trim)))
    return row_sum(kept) / len(kept)


@mean_of_middle.defjvp
def mean_of_middle_jvp(trim, primals, tangents):
    # All values between the ends count fully, those equal to an end have equal parts of
    # what is kept of them: a pass for both ends, not one for each value that is kept.
    (rows,), (tangent,) = primals, tangents
    m = rows.shape[0]
    kept = exact(rows, tuple(range(trim, m - trim)))
    tangent = jnp.where(jnp.isnan(rows), 0, tangent)
    ends = nan_last(rows), kept[0], kept[-1]
    ordered, low, high = lax.optimization_barrier(ends)

    def number(holds, end):
        return row_sum([holds(ordered[i], end).astype(rows.dtype) for i in range(m)])

    upto_low, equal_low = number(jnp.less_equal, low), number(jnp.equal, low)
    from_high, equal_high = number(jnp.greater_equal, high), number(jnp.equal, high)
    of_low = (jnp.minimum(upto_low, m - trim) - trim) / equal_low
    of_high = (jnp.minimum(from_high, m - trim) - trim) / equal_high
    of_low, of_high = lax.optimization_barrier((of_low, of_high))
    inside = (ordered > low[None]) & (ordered < high[None])
    weights = jnp.where(ordered == high[None], of_high[None], inside.astype(rows.dtype))
    weights = jnp.where(ordered == low[None], of_low[None], weights) / len(kept)
    return row_sum(kept) / len(kept), jnp.sum(weights * tangent, axis=0)

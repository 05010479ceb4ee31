"""Order statistics of many rows by counting: a value is found bit by bit.

A bit is set if, with it, no more rows lie below the value than its rank says.
"""

import jax
import jax.numpy as jnp
from jax import lax

from byzjax import loops
from byzjax.numerics._loops import on_all_cores
from byzjax.numerics._reductions import nan_last, reduce_rows, smaller, sum_of_rows


def by_count(rows, ranks):
    """The values of ascending ranks of `[m, n]`; NaN is ordered as +inf."""
    rows = nan_last(rows)
    values: list[jax.Array] = []
    for before, rank in zip((None, *ranks), ranks, strict=False):
        if before is not None and rank - before <= 1:
            values.append(_successor(rows, values[-1], rank))
        else:
            values.append(_counted(rows, rank))
    return values


def _counted(rows, rank):
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
        bit = size - 1 - on_all_cores(i)
        higher = found ^ (one << bit.astype(integer))
        below = sum_of_rows((keys < higher[None]).astype(jnp.float32))
        return jnp.where(below <= rank, higher, found)

    found = loops.fori_loop(0, size, step, jnp.full(rows.shape[1:], lowest))
    return lax.bitcast_convert_type(turned(found), rows.dtype)


def _successor(rows, value, rank):
    """The value of a rank from that of the rank before, or of the same."""
    up_to = sum_of_rows((rows <= value[None]).astype(jnp.float32))
    above = reduce_rows(smaller, jnp.where(rows > value[None], rows, jnp.inf))
    return jnp.where(up_to > rank, value, above)

"""Rows made of others: their sums, read one by one, or a product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax import loops
from byzjax.numerics import order
from byzjax.numerics._columns import flat_rows
from byzjax.numerics._gram import product
from byzjax.numerics._loops import on_all_cores
from byzjax.numerics._reductions import row_sum
from byzjax.trees import accumulator_dtype

_GROUP = 8  # Rows of many that are added up at once: with more, memory is slower.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def summed(few: int | None, x, w, first):
    """Σ w_i x_i of one leaf, of the `first` few rows if these are all that count."""
    rows = range(len(w)) if few is None else [first[i] for i in range(few)]
    if len(rows) <= order.NETWORK_LIMIT:
        return _sum_of(rows, x, w)
    # All at once the program would grow with m.
    count = -(-x.shape[0] // _GROUP)
    # Rows that the last group lacks are the last row again, of weight zero.
    w = jnp.pad(w, (0, count * _GROUP - x.shape[0]))

    def add(k, total):
        start = on_all_cores(k) * _GROUP
        return total + _sum_of([start + j for j in range(_GROUP)], x, w)

    return loops.fori_loop(0, count, add, jnp.zeros(x.shape[1:], w.dtype))


@summed.defjvp
def summed_jvp(few, primals, tangents):
    # As products: backwards, a sum of single rows would be one of as many stacks.
    (x, w, first), (moved, lighter, _) = primals, tangents
    counts = beside(w, x) != 0
    flat = [flat_rows(jnp.where(counts, y, 0)).astype(w.dtype) for y in (x, moved)]
    still, moved = (y.T for y in flat)
    change = product(w, moved) + product(lighter, still)
    return summed(few, x, w, first), change.reshape(x.shape[1:])


def _sum_of(rows, x, w):
    def term(i):
        row = lax.dynamic_index_in_dim(x, i, keepdims=False)
        return w[i] * jnp.where(w[i] != 0, row.astype(w.dtype), 0)

    return row_sum([term(i) for i in rows])


def beside(weights, rows):
    """Weights `[m]` shaped to go with `[m, ...]`."""
    return weights.reshape((-1,) + (1,) * (rows.ndim - 1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def means(sizes, x, members, finite, counts):
    """Means `[n, b]` of the rows that `members` `[n, ...]` lists, `sizes` of them.

    Of the first `counts` `[n]` of these, if given, and zeros where it is none. Read row
    by row: what reduces them fuses with them into one pass.
    """
    x = x.astype(accumulator_dtype(x.dtype))
    # Sums of finite rows are finite over a power of two. It is no constant: XLA would
    # take one out of the sum again.
    unit = jnp.asarray(2.0 ** max(sizes).bit_length(), x.dtype)
    shares = jnp.where(finite, 1 / unit, jnp.nan)

    def mean(i):
        rows = order.take(x, members[i, : sizes[i]])
        terms = [row * shares[i] for row in rows]
        if counts is None:
            return row_sum(terms) / sizes[i] * unit
        # A select of rows, for one that is not listed may be infinite.
        terms = [jnp.where(j < counts[i], term, 0) for j, term in enumerate(terms)]
        return row_sum(terms) / jnp.maximum(counts[i], 1).astype(x.dtype) * unit

    return jnp.stack([mean(i) for i in range(len(sizes))])


@means.defjvp
def means_jvp(sizes, primals, tangents):
    # A product: backwards, a sum of so many single rows would be slow.
    x, members, finite, counts = primals
    moved = tangents[0].astype(accumulator_dtype(x.dtype))
    number = jnp.asarray(sizes) if counts is None else counts
    listed = jnp.arange(members.shape[1])[None] < number[:, None]
    hits = members[:, :, None] == np.arange(x.shape[0])[None, None]
    matrix = jnp.any(hits & listed[:, :, None], axis=1).astype(moved.dtype)
    matrix = jnp.where(finite[:, None], matrix, 0)
    matrix = matrix / jnp.maximum(number, 1).astype(moved.dtype)[:, None]
    return means(sizes, x, members, finite, counts), product(matrix, moved.T)


def mixed(x, matrix, finite):
    """A block of y = `matrix` x, `[m, b]` → `[n, b]`."""
    x = x.astype(accumulator_dtype(x.dtype))
    read = jnp.any(matrix != 0, axis=0)
    clean = jnp.where(read[:, None] & jnp.isfinite(x), x, 0)
    matrix = jnp.where(finite[:, None], matrix, 0).astype(x.dtype)
    mixed = jnp.matmul(matrix, clean, precision=lax.Precision.HIGHEST)
    return jnp.where(finite[:, None], mixed, jnp.nan)

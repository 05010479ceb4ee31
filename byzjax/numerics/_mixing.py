"""Rows made of others: their means, read one by one, or a product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax.numerics import order
from byzjax.numerics._gram import product
from byzjax.numerics._reductions import row_sum
from byzjax.trees import accumulator_dtype


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

"""Sums and extremes along the worker axis, and what they compare.

`jnp.sum`, `jnp.max` and `jnp.minimum` of rows are several times slower on XLA:CPU.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_AT_ONCE = 16


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
    """The sum along axis 0, in a program that does not grow with the rows.

    Sixteen at once, so that a product has less to read. With eight XLA:CPU would fuse
    what is summed, cut out of a stack, with the sum, in a kernel that takes one number
    at a time; what has sixteen uses is written by a kernel of its own.
    """
    m = rows.shape[0]
    if m >= 2 * _AT_ONCE:
        size = m // _AT_ONCE
        parts = rows[: size * _AT_ONCE].reshape(_AT_ONCE, size, *rows.shape[1:])
        first = row_sum([parts[i] for i in range(_AT_ONCE)])
        rows = jnp.concatenate([first, rows[size * _AT_ONCE :]])
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


def row_sum(rows: Sequence[jax.Array]) -> jax.Array:
    """The sum of arrays, added pairwise: one fused pass, rounded as in a tree."""
    values = list(rows)
    while len(values) > 1:
        pairs = [a + b for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + ([values[-1]] if len(values) % 2 else [])
    return values[0]


def column(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Weights `[m]` shaped to go with `[m, ...]`."""
    return weights.reshape(weights.shape + (1,) * (rows.ndim - 1))


def as_number(count: int | jax.Array, dtype) -> int | jax.Array:
    """A count as what goes with arrays of a dtype."""
    return count if isinstance(count, int) else count.astype(dtype)

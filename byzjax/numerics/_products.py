"""Inner products of all rows of a stack with each other, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax.numerics import _columns
from byzjax.trees import accumulator_dtype


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a bᵀ at full precision: the sum over the last axes of both."""
    return lax.dot_general(
        a,
        b,
        (((a.ndim - 1,), (b.ndim - 1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=a.dtype,
    )


def distances_in(gram: jax.Array) -> jax.Array:
    """‖y_i − y_j‖² from inner products, what rounding leaves below zero cut off."""
    squares = jnp.diagonal(gram)
    distances = squares[:, None] + squares[None, :] - 2 * gram
    same = np.eye(gram.shape[0], dtype=bool)
    return jnp.where(same, 0, jnp.maximum(distances, 0))


def around_row(rows, origins, center, *, parts, scale=None):
    """Inner products around a row [m, m], with the origin [m], squared norms [m].

    Each row may have a center of its own, `[m]`: products between rows of one are
    right then, and no others.
    """
    m = rows[0].shape[0]
    # A product of 16 rows takes two thirds of the time of one of 18 on CPU, whose
    # vectors hold 16 numbers: the centre and the origin need no part in it.
    is_last = isinstance(center, int) and center == m - 1

    def of_block(x, *beside):
        # A scale may be none of the floats of a leaf that is narrower than others.
        dtype = accumulator_dtype(x.dtype) if scale is None else scale.dtype
        x, *o, c = (v.astype(dtype) for v in (x, *beside))
        if scale is not None:
            x, c, o = x * scale, c * scale, [v * scale for v in o]
        o = o[0] if o else jnp.zeros_like(x[0])
        c = jnp.atleast_2d(c)
        y = (x[:-1] if is_last else x) - c
        z = x - o[None]
        return (product(y, y), product(y, o - c[0])), z * z

    (inner, towards), squared_norms = _columns.fold(
        of_block,
        *_columns.bundled(rows, origins),
        center=center,
        parts=parts,
    )
    if is_last:
        inner = jnp.pad(inner, (0, 1))
        towards = jnp.pad(towards, (0, 1))
    return inner, towards, squared_norms

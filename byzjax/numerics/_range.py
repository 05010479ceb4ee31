"""Lengths whose squares leave the range of floats though they do not.

The ordinary pass takes squares as they are. Where they may have left the range, one
more takes those of rows over a power of two, which is exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax.trees import accumulator_dtype

# A squared distance above this makes its row an outlier: sums of a few stay finite.
LARGEST_SQUARE = 1e36
# Sums of squares between these have lost nothing, nor have the squares of what is ten
# thousand times smaller than they: 10^9 coordinates may fall short by 10^-29 in all.
_LEAST, _MOST = 1e-20, 1e33
# A row of 2^60 coordinates, or the difference of two, is no longer than the largest
# float times this. What it makes too short for a float is 10^60 times as short.
_LONGER = 2.0**32


def is_safe(squares: jax.Array) -> jax.Array:
    """Whether sums of squares are in the range in which they are right."""
    return (squares >= _LEAST) & (squares <= _MOST)  # False for NaN.


def power_of_two(size: jax.Array) -> jax.Array:
    """The power of two at or below a size; 1 for zero and what is not finite.

    Where that leaves the range in which its inverse is a float too, the nearest in it.
    """
    size = lax.stop_gradient(size)
    usable = (size > 0) & (size < jnp.inf)
    info = jnp.finfo(size.dtype)
    most = 2.0 ** (info.maxexp - 8)
    size = jnp.clip(jnp.where(usable, size, 1), 1 / most, most)
    mantissa = (1 << info.nmant) - 1
    return _from_bits(_bits(size) & ~mantissa, size)


def inverse(power: jax.Array) -> jax.Array:
    """1 / `power`, for a `power_of_two`.

    From its bits: of quotients XLA would make products of units, which underflow.
    """
    power = lax.stop_gradient(power)
    one = int(np.ones((), power.dtype).view(f"i{power.dtype.itemsize}"))
    return _from_bits(2 * one - _bits(power), power)


def _bits(values):
    return lax.bitcast_convert_type(values, np.dtype(f"i{values.dtype.itemsize}"))


def _from_bits(bits, like):
    return lax.bitcast_convert_type(bits, like.dtype)


def in_reach(lengths: jax.Array) -> jax.Array:
    """Lengths of finite rows, no greater than the largest float."""
    return jnp.minimum(lengths, jnp.finfo(lengths.dtype).max)


class Lengths(NamedTuple):
    """Lengths [m] in a unit, so that those beyond the largest float have an order too.

    Attributes:
      values: `[m]`, +inf for outliers.
      unit: 1, or 2^32 where one of them would be no float in 1; or one for each, `[m]`.
    """

    values: jax.Array
    unit: jax.Array

    def plain(self) -> jax.Array:
        """As they are, those beyond the largest float as that."""
        finite = self.values < jnp.inf
        return jnp.where(finite, in_reach(self.values * self.unit), self.values)


def lengths_of(roots: jax.Array, units: jax.Array, there: jax.Array) -> Lengths:
    """roots · units [m] in one unit, where `there`, else +inf."""
    beyond = there & (roots < jnp.inf) & ~(roots * units < jnp.inf)
    unit = jnp.where(jnp.any(beyond), _LONGER, 1).astype(roots.dtype)
    values = roots * (units * inverse(unit))
    return Lengths(jnp.where(there, values, jnp.inf), unit)


def largest(rows: Sequence[jax.Array], beside: Sequence[jax.Array | None]) -> jax.Array:
    """The largest |x_k − c| [m] of each row, +inf where one is no number.

    Args:
      rows: `[m, n]` each.
      beside: what is taken off, `[n]` for each of `rows`, or None.
    """
    found = []
    for x, c in zip(rows, beside, strict=True):
        x = x.astype(accumulator_dtype(x.dtype))
        if c is not None:
            x = x - c.astype(x.dtype)[None]
        found.append(jnp.max(jnp.abs(x), axis=1, initial=0))
    dtype = np.result_type(*found)
    tops = jnp.max(jnp.stack([top.astype(dtype) for top in found]), axis=0)
    return jnp.where(jnp.isnan(tops), jnp.inf, tops)


def unfolded(arrays):
    """The same, of which XLA folds no constants: their squares would be out of range.

    Of rows known when a program is compiled it would make (c x)² into c² x².
    """
    # A barrier each: jax 0.12 cannot go back through one of what is differentiated and
    # what is not, such as the centre in a rule's state.
    return jax.tree.map(lax.optimization_barrier, arrays)


def middle(sizes: jax.Array, present: jax.Array | None = None) -> jax.Array:
    """The middle of sizes [m]: no minority leads it out of the majority's."""
    if present is None:
        return jnp.sort(sizes)[sizes.shape[0] // 2]
    return jnp.sort(jnp.where(present, sizes, jnp.inf))[jnp.sum(present) // 2]

"""Order statistics of many rows from planes of the bits of their values, off a CPU.

The idea of `_words.py` in a program of a dozen kernels: an accelerator writes several
results in one, but takes half a minute to compile all bits of all words at once. 32
rows are transposed to words in five passes, each of which reads and writes the stack;
a turn of a loop then reads one bit of all rows, a 32nd of it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from byzjax import loops
from byzjax.numerics._reductions import nan_last

_BITS = 32
_ALL = 0xFFFFFFFF


def by_planes(rows: jax.Array, ranks: tuple[int, ...]) -> list[jax.Array]:
    """The values of ranks of `[m, n]`, at most float32; NaN is ordered as +inf."""
    planes = _planes(rows.astype(jnp.float32))
    _, count, n = planes.shape

    def step(i, state):
        alive, left, keys = state  # [ranks, words, n], and [ranks, n] twice.
        plane = lax.dynamic_index_in_dim(planes, i, keepdims=False)[None]
        zeros = alive & ~plane
        number = jnp.sum(lax.population_count(zeros), axis=1, dtype=jnp.uint32)
        one = left >= number
        alive = jnp.where(one[:, None], alive & plane, zeros)
        bit = one.astype(jnp.uint32)
        return alive, left - bit * number, keys << _u32(1) | bit

    alive = jnp.full((len(ranks), count, n), _ALL, jnp.uint32)
    left = jnp.broadcast_to(_u32(ranks)[:, None], (len(ranks), n))
    start = alive, left, jnp.zeros_like(left)
    keys = loops.fori_loop(0, _BITS, step, start)[2]
    positive = _u32(1 << (_BITS - 1))
    found = keys ^ jnp.where(keys < positive, _u32(_ALL), positive)
    values = lax.bitcast_convert_type(found, jnp.float32)
    return list(values.astype(rows.dtype))


def _planes(rows):
    """The bits of keys, `[32, words, n]`, the sign first; 32 rows a word.

    Keys order as integers as the values do; what fills up the last word comes last.
    """
    m, n = rows.shape
    count = -(-m // _BITS)
    bits = lax.bitcast_convert_type(nan_last(rows), jnp.uint32)
    positive = _u32(1 << (_BITS - 1))
    keys = bits ^ jnp.where(bits < positive, positive, _u32(_ALL))
    keys = jnp.pad(keys, ((0, count * _BITS - m), (0, 0)), constant_values=_u32(_ALL))
    words = keys.reshape(_BITS, count, n)
    # Halves change places, then their halves, as in a transposition of blocks.
    size, low = _BITS // 2, _ALL >> (_BITS // 2)
    while size:
        halves = words.reshape(_BITS // (2 * size), 2, size, count, n)
        a, b = halves[:, 0], halves[:, 1]
        low_half, high_half, by = _u32(low), _u32(low ^ _ALL), _u32(size)
        first = (a & low_half) | ((b & low_half) << by)
        second = ((a & high_half) >> by) | (b & high_half)
        words = jnp.stack([first, second], axis=1).reshape(_BITS, count, n)
        # A kernel of its own: together, each word would be made of 32 read again.
        words = lax.optimization_barrier(words if size > 1 else words[::-1])
        size //= 2
        low ^= (low << size) & _ALL
    return words


def _u32(number):
    return jnp.asarray(number, jnp.uint32)

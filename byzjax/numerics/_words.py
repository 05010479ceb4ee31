"""Order statistics of many rows from words of the bits of their values, on a CPU.

A value is found bit by bit, the highest first: the rows that may still be the one of a
rank are counted that have a zero there, which tells the bit of the value and which of
the rows remain. 32 rows are transposed to words, one for each bit of a float: what is a
comparison and an addition for every row and bit is then one for 32 rows.
"""

import functools

import jax.numpy as jnp
from jax import lax

from byzjax import loops
from byzjax.numerics._loops import on_all_cores
from byzjax.numerics._reductions import nan_last, row_sum

# The operators of arrays take longer to trace and to lower.
_and, _or, _xor, _select = lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor, lax.select
_left, _right = lax.shift_left, lax.shift_right_logical

_BITS = 32
_ALL = 0xFFFFFFFF
_NAN = 0x7FFFFFFF
# Words whose counts are taken in one kernel. XLA:CPU would fuse those of all bits of 16
# words too, and run them for minutes.
_MOST_FUSED = 128
# Words of one bit, above which the bits are taken in a loop, as kernels for each would
# take long to compile. 16 words are 512 rows.
_MOST_UNROLLED = 16


def by_words(rows, ranks):
    """The values of ascending ranks of `[m, n]`, at most float32; NaN as +inf."""
    words = _words(rows.astype(jnp.float32))
    num_words = words[0].shape[0]
    if num_words * _BITS <= _MOST_FUSED:  # One by one is faster than together.
        keys = jnp.concatenate([_unrolled(words, (rank,)) for rank in ranks])
    elif num_words <= _MOST_UNROLLED:
        keys = _unrolled(words, ranks)
    else:
        keys = _loop(words, ranks)
    # In a kernel of its own: else whatever reads a value would find it again.
    (found,) = _at_once(_bits, [keys])
    values = nan_last(lax.bitcast_convert_type(found, jnp.float32))
    return list(values.astype(rows.dtype))


def _unrolled(words, ranks):
    """The keys of ranks, `[ranks, n]`: some bits in one kernel, then the next.

    The rank and the bits found share a word, so that a kernel has one result.
    """
    num_words, n = words[0].shape
    size = min(_BITS, 1 << ((_MOST_FUSED // num_words).bit_length() - 1))
    alive = jnp.full((len(ranks), num_words, n), _ALL, jnp.uint32)
    left = jnp.broadcast_to(jnp.asarray(ranks, jnp.uint32)[:, None], (len(ranks), n))
    keys = jnp.zeros_like(left)
    for first in range(0, _BITS, size):
        some = words[first : first + size]
        rows = _split(alive)
        digit = jnp.zeros_like(left)
        for word in some:
            of_bit = _split(lax.broadcast_in_dim(word, alive.shape, (1, 2)))
            rows, left, bit = _step(rows, left, of_bit)
            digit = _or(_left(digit, lax.full_like(digit, 1)), bit)
        if size == _BITS:
            return digit
        # In kernels of their own: else the next bits would find them again.
        (both,) = _at_once(list, [left << _u32(size) | digit])
        left, digit = both >> _u32(size), both & _u32((1 << size) - 1)
        keys = keys << _u32(size) | digit
        for i, word in enumerate(some):
            alive = alive & _same(word, digit >> _u32(size - 1 - i))
        (alive,) = _at_once(list, [alive])
    return keys


def _split(words):
    """`[ranks, words, n]` as `[ranks, n]` each."""
    return [lax.index_in_dim(words, j, 1, False) for j in range(words.shape[1])]


def _same(words, keys):
    """Words of the rows whose bit is the last of a key, `[ranks, words, n]`."""
    zero = jnp.where((keys & _u32(1)) == _u32(0), _u32(_ALL), _u32(0))
    return words[None] ^ zero[:, None]


def _step(alive, left, words):
    """One bit of a value.

    Args:
      alive: words of the rows whose higher bits are the value's.
      left: the rank among these.
      words: of this bit.

    Returns:
      The same for the next bit, and the bit found.
    """
    zeros = [_and(a, lax.bitwise_not(w)) for a, w in zip(alive, words, strict=True)]
    count = row_sum([lax.population_count(zero) for zero in zeros])
    one = left >= count
    alive = [_select(one, _xor(a, z), z) for a, z in zip(alive, zeros, strict=True)]
    return alive, _select(one, left - count, left), one.astype(jnp.uint32)


def _loop(words, ranks):
    """The keys of ranks, `[ranks, n]`, bit by bit. A step is two kernels on a CPU.

    The rank and the bit share a word, so that the first has one result.
    """
    num_words, n = words[0].shape
    words = jnp.concatenate(words)

    def step(i, state):
        alive, left, keys = state
        start = on_all_cores(i) * num_words
        # Each row by itself: all of them cut out at once took 6 % longer.
        row = functools.partial(lax.dynamic_slice_in_dim, words, slice_size=1)
        of_bit = [row(start + j) for j in range(num_words)]
        of_bit = [lax.broadcast_in_dim(x, left.shape, (0, 1)) for x in of_bit]
        _, new, bit = _step(_split(alive), left >> _u32(1), of_bit)
        left = new << _u32(1) | bit
        keys = keys << _u32(1) | (left & _u32(1))
        word = lax.dynamic_slice_in_dim(words, start, num_words)
        return alive & _same(word, keys), left, keys

    alive = jnp.full((len(ranks), num_words, n), _ALL, jnp.uint32)
    left = jnp.asarray([[2 * rank] for rank in ranks], jnp.uint32)
    left = jnp.broadcast_to(left, (len(ranks), n))
    return loops.fori_loop(0, _BITS, step, (alive, left, jnp.zeros_like(left)))[2]


def _words(rows):
    """Words of the bits of 32 rows each, `[words, n]` for every bit, the sign first.

    Of keys, whose order as integers is that of the values.
    """
    m, n = rows.shape
    count = -(-m // _BITS)
    bits = lax.bitcast_convert_type(rows, jnp.uint32)
    missing = jnp.full((count, n), _NAN, jnp.uint32)  # Comes last.
    slabs = [bits[i * count : (i + 1) * count] for i in range(_BITS)]
    whole = [jnp.concatenate([slab, missing[slab.shape[0] :]]) for slab in slabs]
    return _at_once(_transposed, whole)


def _transposed(words):
    """32 words, bit by bit: the first has the sign of each, and so on.

    Halves change places, then their halves, as in a transposition of blocks.
    """
    words = list(words)
    size = _BITS // 2
    low = _ALL >> size
    while size:
        low_half, high_half, by = _u32(low), _u32(low ^ _ALL), _u32(size)
        for i in (i for i in range(_BITS) if not i & size):
            a, b = words[i], words[i + size]
            words[i] = _or(_and(a, low_half), _left(_and(b, low_half), by))
            words[i + size] = _or(_right(_and(a, high_half), by), _and(b, high_half))
        size //= 2
        low ^= (low << size) & _ALL
    sign, *rest = words[::-1]
    exponent = functools.reduce(jnp.bitwise_and, rest[:8])
    fraction = functools.reduce(jnp.bitwise_or, rest[8:])
    # A NaN counts as positive, and so comes after +inf, whatever its sign.
    sign = sign & ~(exponent & fraction)
    return [~sign, *(word ^ sign for word in rest)]


def _bits(keys):
    """The bits of floats from their keys."""
    positive = _u32(1 << (_BITS - 1))
    return [key ^ jnp.where(key < positive, _u32(_ALL), positive) for key in keys]


def _at_once(function, arrays):
    """`function` of as many scalars as results, for all elements, in one kernel.

    XLA:CPU makes a kernel for each result of elementwise operations, which computes
    all that it needs again; of a reduction of windows, here of one element, it makes
    one.
    """
    zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)
    ones = (1,) * arrays[0].ndim

    def reduced(_, window):
        return tuple(function(window))

    return lax.reduce_window(tuple(arrays), zeros, reduced, ones, ones, "VALID")


def _u32(number):
    return jnp.asarray(number, jnp.uint32)

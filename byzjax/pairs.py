"""Squared distances between all rows of a stack, measured pair by pair, for a CPU.

Every column is read from memory once. A tile of columns stays in the nearest cache
while all pairs of rows are compared there, and nothing is written but sums of lanes: a
matrix product would want centred copies of the rows, which cost as much as they save
up to a few dozen rows, and half as much again where the cores share no cache.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax import columns

# More rows are compared faster by a matrix product.
MOST_ROWS = 48
# Elements of a tile: 34 kB of float32, what most cores' nearest cache holds.
_TILE = 8500
# How many pieces a tile is made of at most, each as many terms of the program.
_MOST_PIECES = 16
# Elements that are kept of a block of tiles: 1 MB of float32.
_KEPT = 1 << 18


def measured(rows: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Squared norms [m] and squared distances [m, m] of rows `[m, n]`, side by side.

    Neither is finite for rows that are not, or whose square overflows.
    """
    m = rows[0].shape[0]
    dtype = columns.widest_accumulator(rows)
    whole, _ = columns.bundled(rows)
    total = jnp.zeros((m * (m + 1) // 2,), dtype)
    rest = []
    for group in columns.loops(whole, len(whole)):
        arrays = [whole[k] for k in group]
        turns, tiles, pieces = _blocks(m, arrays[0].shape[1])
        if turns:
            total += _compared(arrays, turns, tiles, pieces, dtype)
        done = turns * tiles * pieces * _lanes(m)
        rest += [x[:, done:].astype(dtype) for x in arrays if done < x.shape[1]]
    if rest:
        together = jnp.concatenate(rest, axis=1)
        turns, tiles, pieces = _blocks(m, together.shape[1], up=True)
        lacking = turns * tiles * pieces * _lanes(m) - together.shape[1]
        together = jnp.pad(together, ((0, 0), (0, lacking)))
        total += _compared([together], turns, tiles, pieces, dtype)
    first, second = np.triu_indices(m)
    distances = jnp.zeros((m, m), dtype).at[first, second].set(total)
    norms = jnp.diagonal(distances)
    distances = jnp.where(np.eye(m, dtype=bool), 0, distances + distances.T)
    return norms, distances


def _lanes(m: int) -> int:
    """Columns side by side, for every pair a sum of its own in each."""
    return 64 if m <= 24 else 32


def _blocks(m: int, n: int, *, up: bool = False) -> tuple[int, int, int]:
    """How many turns of how many tiles of how many pieces, of n columns at most.

    Two turns at least, or none: outside of a loop XLA writes out what is compared.
    `up`: of n columns at least. The pieces of a tile lie a block of lanes apart: of no
    multiple of four tiles, or many would compete for the same places in the cache.
    """
    lanes = _lanes(m)
    most = max(1, min(_MOST_PIECES, _TILE // (m * lanes)))
    pieces = max(1, min(most, n // (2 * lanes)))
    unit = lanes * pieces
    at_once = _KEPT // (m * (m + 1) // 2 * lanes)
    at_once = max(1, min(at_once, -(-n // (2 * unit)) if up else n // (2 * unit)))
    sizes = [t for t in range(max(1, at_once // 2), at_once + 1) if t % 4 or t < 4]
    tiles = min(sizes, key=lambda t: (-n if up else n) % (t * unit))
    turns = -(-n // (tiles * unit)) if up else n // (tiles * unit)
    return (max(2, turns) if up else turns if turns > 1 else 0), tiles, pieces


def _compared(arrays, turns, tiles, pieces, dtype):
    """Sums over columns of `(x_i − x_j)²` [pairs], of `x_i²` in place of i = j."""
    m = arrays[0].shape[0]
    lanes = _lanes(m)
    first, second = np.triu_indices(m)
    apart = np.asarray(first != second, dtype)[None, :, None]

    def piece(x, start):
        # Each cut out by itself: it fuses with what reads it, a block would be copied.
        x = lax.dynamic_slice_in_dim(x, start, tiles * lanes, axis=1)
        x = x.reshape(m, tiles, lanes).swapaxes(0, 1).astype(dtype)
        one, other = (
            x.at[:, rows].get(mode="promise_in_bounds") for rows in (first, second)
        )
        gap = one - apart * other
        return gap * gap

    def step(x, i, kept):
        for k in range(pieces):
            kept += piece(x, (i * pieces + k) * (tiles * lanes))
        return kept

    kept = jnp.zeros((tiles, len(first), lanes), dtype)
    for x in arrays:
        kept = lax.fori_loop(0, turns, functools.partial(step, x), kept)
    return jnp.sum(kept, axis=(0, 2))

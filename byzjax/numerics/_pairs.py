"""Distances and products of all rows of a stack, taken pair by pair, for a CPU.

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

from byzjax import loops
from byzjax.numerics import _columns, devices
from byzjax.numerics._loops import on_all_cores

# More rows are compared faster by a matrix product.
MOST_ROWS = 48
# Elements of a tile: 34 kB of float32, what most cores' nearest cache holds.
_TILE = 8500
# How many pieces a tile is made of at most, each as many terms of the program.
_MOST_PIECES = 16
_MOST_PIECES_OF_PRODUCTS = 4  # Which have three rows in hand.
# Elements that are kept of a block of tiles: 1 MB of float32.
_KEPT = 1 << 18


def measured(rows: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Squared norms [m] and squared distances [m, m] of rows `[m, n]`, side by side.

    Neither is finite for rows that are not, or whose square overflows.
    """
    of_pairs = devices.each(lambda rows: _pass(rows, None), rows, sums=True)
    distances, norms = _matrix(of_pairs, rows[0].shape[0])
    return norms, distances


def multiplied(rows: list[jax.Array], center: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inner products seen from the row of index `center`.

    Returns:
      `(x_i − c)·(x_j − c)` [m, m] with zeros in place of i = j, and `(x_i − c)·(−c)`
      [m], towards the origin.
    """
    return _matrix(devices.each(_pass, rows, center, sums=True), rows[0].shape[0])


def _matrix(of_pairs, m):
    """Pairs as a symmetric matrix, zeros on its diagonal; what they had there."""
    first, second = np.triu_indices(m)
    upper = jnp.zeros((m, m), of_pairs.dtype).at[first, second].set(of_pairs)
    return jnp.where(np.eye(m, dtype=bool), 0, upper + upper.T), jnp.diagonal(upper)


def _pass(rows, center):
    """`_compared` over all columns of the stack."""
    m = rows[0].shape[0]
    dtype = _columns.widest_accumulator(rows)
    whole, _ = _columns.bundled(rows)
    total = jnp.zeros((m * (m + 1) // 2,), dtype)
    most = _MOST_PIECES if center is None else _MOST_PIECES_OF_PRODUCTS
    rest = []
    for group in _columns.sharing_a_loop(whole, len(whole)):
        arrays = [whole[k] for k in group]
        turns, tiles, pieces = _blocks(m, arrays[0].shape[1], most)
        if turns:
            total += _compared(arrays, center, turns, tiles, pieces, dtype)
        done = turns * tiles * pieces * _lanes(m)
        rest += [x[:, done:].astype(dtype) for x in arrays if done < x.shape[1]]
    if rest:
        together = jnp.concatenate(rest, axis=1)
        turns, tiles, pieces = _blocks(m, together.shape[1], most, up=True)
        lacking = turns * tiles * pieces * _lanes(m) - together.shape[1]
        together = jnp.pad(together, ((0, 0), (0, lacking)))
        total += _compared([together], center, turns, tiles, pieces, dtype)
    return total


def _lanes(m: int) -> int:
    """Columns side by side, for every pair a sum of its own in each."""
    return 64 if m <= 24 else 32


def _blocks(m: int, n: int, most: int, *, up: bool = False) -> tuple[int, int, int]:
    """How many turns of how many tiles of how many pieces, of n columns at most.

    Two turns at least, or none: outside of a loop XLA writes out what is compared.
    `up`: of n columns at least. The pieces of a tile lie a block of lanes apart: of no
    multiple of four tiles, or many would compete for the same places in the cache.
    """
    lanes = _lanes(m)
    most = max(1, min(most, _TILE // (m * lanes)))
    pieces = max(1, min(most, n // (2 * lanes)))
    unit = lanes * pieces
    at_once = _KEPT // (m * (m + 1) // 2 * lanes)
    at_once = max(1, min(at_once, -(-n // (2 * unit)) if up else n // (2 * unit)))
    sizes = [t for t in range(max(1, at_once // 2), at_once + 1) if t % 4 or t < 4]
    tiles = min(sizes, key=lambda t: (-n if up else n) % (t * unit))
    turns = -(-n // (tiles * unit)) if up else n // (tiles * unit)
    return (max(2, turns) if up else turns if turns > 1 else 0), tiles, pieces


def _compared(arrays, center, turns, tiles, pieces, dtype):
    """Sums over columns for all pairs of rows i ≤ j, and the origin in place of i = j.

    Of `(x_i − x_j)²`, or around a row c of `(x_i − c)(x_j − c)`.
    """
    m = arrays[0].shape[0]
    lanes = _lanes(m)
    first, second = np.triu_indices(m)
    apart = np.asarray(first != second, dtype)[None, :, None]

    def tiled(x):
        return x.reshape(-1, tiles, lanes).swapaxes(0, 1).astype(dtype)

    def piece(x, start):
        # Each cut out by itself: it fuses with what reads it, a block would be copied.
        width = tiles * lanes
        rows = tiled(lax.dynamic_slice_in_dim(x, start, width, axis=1))
        one, other = (
            rows.at[:, at].get(mode="promise_in_bounds") for at in (first, second)
        )
        other = apart * other
        if center is None:
            gap = one - other
            return gap * gap
        at = center.astype(start.dtype), start
        c = tiled(lax.dynamic_slice(x, at, (1, width)))
        return (one - c) * (other - c)

    def step(x, i, kept):
        i = on_all_cores(i)
        for k in range(pieces):
            kept += piece(x, (i * pieces + k) * (tiles * lanes))
        return kept

    kept = jnp.zeros((tiles, len(first), lanes), dtype)
    for x in arrays:
        kept = loops.fori_loop(0, turns, functools.partial(step, x), kept)
    return jnp.sum(kept, axis=(0, 2))

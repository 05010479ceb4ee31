"""Passes over the coordinates of a stack, in blocks of columns.

A pass reads every block once, does all it has to do while the block is in cache, and
keeps sums or writes columns; no second copy of the stack is made.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax import loops
from byzjax.numerics import devices
from byzjax.numerics._loops import by_platform, on_all_cores
from byzjax.numerics._reductions import row_sum
from byzjax.trees import accumulator_dtype

# Elements of a block of columns, which stays in cache on CPU, one that is read often in
# half of it: in less, many kernels would be started for little each. Elsewhere it only
# bounds the memory of what is computed from it.
_CPU_BLOCK = 1 << 20
_CPU_PART_TO_REREAD = 1 << 19
_DEVICE_BLOCK = 1 << 25
# XLA:CPU runs the operations of a loop's body on one core if there are few of them, and
# on all cores if there are many. So on CPU a block is cut into parts: a dozen at least
# of one product each, fewer where a part is many operations.
PRODUCTS = 16
SUMS = 8
_REDUCTIONS = 4
# Columns more than a power of two: a vector of a CPU.
_ODD = 8
# Blocks of an array that are worth a block more of memory, in which they are added up.
_MANY = 16
# Elements of a part that are worth another core; and columns, for each row: a product
# of many rows is work for all cores in itself, and parts take long to compile.
_LEAST_PART = 1 << 15
_LEAST_PART_OF_A_ROW = 30
# Columns of a leaf that is copied into a bundle of others.
_SMALL = 1 << 12


def widest_accumulator(arrays: Iterable[jax.Array]) -> Any:
    """The widest of their accumulators' dtypes."""
    return functools.reduce(
        np.promote_types, (accumulator_dtype(x.dtype) for x in arrays)
    )


def flat_rows(leaf: jax.Array) -> jax.Array:
    """`[m, ...]` as `[m, n]`."""
    return leaf.reshape(leaf.shape[0], -1)


def _bundles(rows, vectors) -> list[list[int]]:
    """Which arrays go side by side: small ones of one dtype; others by themselves.

    A tree of a hundred leaves would make a hundred loops, slow to compile. On several
    devices they are side by side already, each device's own.
    """
    groups: dict[object, list[int]] = {}
    for k, x in enumerate(rows):
        small = math.prod(x.shape[1:]) <= _SMALL and not devices.is_split()
        kinds = x.dtype, None if vectors is None else vectors[k].dtype
        groups.setdefault(kinds if small else k, []).append(k)
    return list(groups.values())


def _side_by_side(arrays):
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=-1)


def bundled(
    rows: list[jax.Array], vectors: list[jax.Array] | None = None
) -> tuple[list[jax.Array], list[tuple[jax.Array, ...]]]:
    """The same columns in fewer arrays: small ones of one dtype side by side.

    Args:
      rows: `[m, n]` each.
      vectors: `[n]` each, one beside each of `rows`.

    Returns:
      Rows, and for each a tuple of its vector, empty without vectors.
    """
    groups = _bundles(rows, vectors)
    joined = [_side_by_side([rows[k] for k in group]) for group in groups]
    if vectors is None:
        return joined, [()] * len(joined)
    return joined, [(_side_by_side([vectors[k] for k in group]),) for group in groups]


def map_bundles(function, tree, *others):
    """`function` on the leaves of trees, small ones side by side.

    Args:
      function: of `[m, ...]` and a `[...]` for each of `others`, a `[...]`, in which
        every column is a function of that column.
      tree: stacked tree, leaves `[m, ...]`.
      *others: at most one tree `[...]`.
    """
    return _of_bundles(lambda bundles: [function(*x) for x in bundles], tree, *others)


def _of_bundles(function, tree, *others):
    """`map_bundles` with a function of the list of all bundles, each a tuple."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    beside = [structure.flatten_up_to(other) for other in others]
    groups = _bundles(leaves, beside[0] if beside else None)

    def bundle(group):
        if len(group) == 1:
            return tuple(x[group[0]] for x in (leaves, *beside))
        rows = _side_by_side([flat_rows(leaves[k]) for k in group])
        return rows, *(_side_by_side([x[k].ravel() for k in group]) for x in beside)

    out = list(leaves)
    results = function([bundle(group) for group in groups])
    for group, result in zip(groups, results, strict=True):
        ends = np.cumsum([math.prod(leaves[k].shape[1:]) for k in group])
        parts = jnp.split(result, ends[:-1]) if len(group) > 1 else [result]
        for k, part in zip(group, parts, strict=True):
            out[k] = part.reshape(leaves[k].shape[1:])
    return structure.unflatten(out)


def total(parts: list[jax.Array]) -> jax.Array:
    """The sum of arrays of perhaps different widths, in the widest."""
    dtype = functools.reduce(np.promote_types, (part.dtype for part in parts))
    return row_sum([part.astype(dtype) for part in parts])


def _block_columns(m: int, elements: int) -> int:
    return max(128, 1 << (max(1, elements // m).bit_length() - 1))


def fold(of_block, rows, vectors, *, center=None, parts=SUMS):
    """Sums over all columns of some arrays, block by block.

    Args:
      of_block: (`[m, b]`, `[b]` of each vector) → a tree of sums over the b columns,
        and a tree of terms `[..., b]` that are summed here.
      rows: `[m, n]` each.
      vectors: a tuple of `[n]` beside each of `rows`.
      center: the index of a row that `of_block` takes too, `[b]` after the vectors:
        XLA:CPU is slow to cut it out of the block. Or of m rows, `[m]`: `[m, b]`.
      parts: into how many a block is cut on CPU: `PRODUCTS` for matrix products.

    Returns:
      The two trees, of sums over all columns, in the widest of the dtypes.
    """
    dtype = widest_accumulator(rows)
    add = functools.partial(jax.tree.map, jnp.add)

    def zeros(shapes):
        return jax.tree.map(lambda part: jnp.zeros(part.shape, dtype), shapes)

    def whole_pass(rows, vectors, centers, *, on_cpu):
        elements = _CPU_BLOCK if on_cpu else _DEVICE_BLOCK
        at_once = parts if on_cpu else 1

        def at(k, start, size):
            x = rows[k]
            beside = [lax.dynamic_slice_in_dim(v, start, size) for v in vectors[k]]
            block = lax.dynamic_slice_in_dim(x, start, size, axis=1)
            for row in centers:
                row = row.astype(jnp.result_type(start))
                beside.append(
                    block.at[row].get(mode="promise_in_bounds")
                    if row.ndim
                    else lax.dynamic_slice(x, (row, start), (1, size))[0]
                )
            return jax.tree.map(lambda t: t.astype(dtype), of_block(block, *beside))

        def along(terms):
            if not on_cpu:
                return jnp.sum(terms, axis=-1)
            # XLA:CPU is slow at sums along rows, and fast at the same as a product.
            ones = jnp.ones(terms.shape[-1:], dtype)
            return jnp.matmul(terms, ones, precision=lax.Precision.HIGHEST)

        def summed(found):
            return found[0], jax.tree.map(along, found[1])

        first = min(1, rows[0].shape[1])
        total = zeros(jax.eval_shape(lambda: summed(at(0, 0, first))))
        for group in sharing_a_loop(rows, at_once):
            m, n = rows[group[0]].shape
            turns, cut, size = _blocks(
                m, n, elements // len(group), max(1, at_once // len(group))
            )

            def at_all(i, group=group, cut=cut, size=size):
                i = on_all_cores(i)
                places = [(k, i * cut + p) for p in range(cut) for k in group]
                return functools.reduce(add, [at(k, j * size, size) for k, j in places])

            if turns >= _MANY:  # Terms of blocks are added up, and along rows once.
                kept = zeros(jax.eval_shape(at_all, 0))
                kept = loops.fori_loop(0, turns, lambda i, t: add(t, at_all(i)), kept)
                total = add(total, summed(kept))
            elif turns:
                total = loops.fori_loop(
                    0, turns, lambda i, t: add(t, summed(at_all(i))), total
                )
            done = turns * cut * size
            for k in group if done < n else ():
                total = add(total, summed(at(k, done, n - done)))
        return total

    centers = () if center is None else (jnp.asarray(center, jnp.int32),)
    count = len(rows)

    def local(columns, centers):
        beside = structure.unflatten(columns[count:])
        return by_platform(whole_pass, columns[:count], beside, centers)

    flat, structure = jax.tree.flatten(vectors)
    return devices.each(local, [*rows, *flat], centers, sums=True)


def sharing_a_loop(rows, parts: int) -> list[list[int]]:
    """Which arrays share a loop: at most `parts`, of one width.

    Each is a part of the blocks: large ones would be cut up, and the program of a tree
    of a hundred leaves is one of the few widths that they have.
    """
    widths: dict[int, list[int]] = {}
    for k, x in enumerate(rows):
        widths.setdefault(x.shape[1], []).append(k)
    return [
        same[i : i + parts]
        for same in widths.values()
        for i in range(0, len(same), parts)
    ]


def _blocks(m: int, n: int, elements: int, parts: int) -> tuple[int, int, int]:
    """How many blocks, of how many parts, of how many columns; a few are left over.

    Two blocks at least: XLA would take a single turn of a loop out of it, and then keep
    the temporary memory of all arrays at once.
    """
    turns = max(2, -(-n // _block_columns(m, elements)))
    least = max(_LEAST_PART // m, _LEAST_PART_OF_A_ROW * m)
    if n // (turns * parts) < least:  # Too small for all cores: larger parts cost less.
        parts = max(1, n // (turns * 2 * least))
    size = n // (turns * parts)
    size -= size % (128 if parts == 1 else 16)
    # What the rounding leaves over is less than a block as well.
    return (n // (size * parts), parts, size) if size else (0, 1, 0)


def map_blocks(of_block, tree, *scalars):
    """`of_block`, `[m, b]` → `[b]`, on blocks of the columns of all leaves `[m, ...]`.

    For long programs, whose kernels are work for all cores each: leaves of a dtype
    share a loop, which reads a block of one of them.
    """

    def of_bundles(bundles):
        arrays = [flat_rows(x) for (x,) in bundles]
        out: list[jax.Array] = list(arrays)
        groups: dict[object, list[int]] = {}
        for k, x in enumerate(arrays):
            groups.setdefault(x.dtype, []).append(k)
        for group in groups.values():
            loop = functools.partial(_one_loop, of_block)
            loop = functools.partial(by_platform, loop)
            results = devices.each(loop, [arrays[k] for k in group], *scalars)
            for k, result in zip(group, results, strict=True):
                out[k] = result
        return out

    return _of_bundles(of_bundles, tree)


def _one_loop(of_block, arrays, *scalars, on_cpu):
    widths = [x.shape[1] for x in arrays]
    size = max(1, min(_block_to_reread(arrays[0].shape[0], on_cpu), max(widths)))
    first = np.cumsum([0, *(-(-n // size) for n in widths)])
    begin = np.cumsum([0, *widths])

    def read(x, start):
        missing = max(0, size - x.shape[1])
        if missing:
            return jnp.pad(x, ((0, 0), (0, missing)))
        return lax.dynamic_slice_in_dim(x, start, size, axis=1)

    def step(i, out):
        i = on_all_cores(i)
        firsts, begins, ends = (
            jnp.asarray(x, i.dtype) for x in (first, begin[:-1], widths)
        )
        k = jnp.sum(i >= firsts[1:-1], dtype=i.dtype)
        # The last block may overlap the one before, and writes the same again; what an
        # array lacks to a block is written over by the next.
        start = jnp.minimum((i - firsts[k]) * size, jnp.maximum(ends[k] - size, 0))
        block = lax.switch(k, [functools.partial(read, x) for x in arrays], start)
        found = of_block(block, *scalars)
        return lax.dynamic_update_slice_in_dim(out, found, begins[k] + start, axis=0)

    out = jnp.zeros((begin[-1] + max(0, size - widths[-1]),), arrays[0].dtype)
    out = loops.fori_loop(0, int(first[-1]), step, out)
    return jnp.split(out, begin[1:])[:-1]


def _block_to_reread(m, on_cpu):
    """Columns of a block, more than a power of two.

    Else rows lie on the same lines of a cache.
    """
    elements = _CPU_PART_TO_REREAD if on_cpu else _DEVICE_BLOCK
    return _block_columns(m, elements) + _ODD


def map_columns(of_block, num_rows, x, *scalars):
    """`of_block` on blocks of columns, `[m, b]` → `[num_rows, b]`, side by side."""

    def whole_pass(x, *scalars, on_cpu):
        m, n = x.shape
        cut = _REDUCTIONS if on_cpu else 1
        size = _block_to_reread(m, on_cpu)
        block = cut * size
        if n <= block:
            return of_block(x, *scalars)

        def at(start):
            columns = lax.dynamic_slice_in_dim(x, start, size, axis=1)
            return of_block(columns, *scalars)

        def step(i, out):
            i = on_all_cores(i)
            # The last block may overlap the one before, and writes the same again.
            start = jnp.minimum(i * block, n - block)
            done = _side_by_side([at(start + p * size) for p in range(cut)])
            return lax.dynamic_update_slice_in_dim(out, done, start, axis=1)

        out = jnp.zeros((num_rows, n), jax.eval_shape(of_block, x, *scalars).dtype)
        return loops.fori_loop(0, -(-n // block), step, out)

    def local(columns, *scalars):
        return [by_platform(whole_pass, *columns, *scalars)]

    return devices.each(local, [x], *scalars)[0]

"""Columns that lie on many devices: the passes over them, and which is which.

Between the doors of `byzjax.sharding` a stack is a global array `[m, n]` of which every
device holds some columns, all m rows of them. Elementwise code needs to know nothing of
that, and code that does not is right: XLA moves what it has to. Passes that cut columns
into blocks, or add them up, run on each device's own by `each`.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from byzjax.numerics._reductions import row_sum
from byzjax.trees import Tree, accumulator_dtype

# Elements that all devices' parts of a sum may have in all for each to fetch them all.
# Of more each adds up its share, which is then fetched, at twice the cost of one part.
_MOST_FETCHED = 1 << 16


class Split(NamedTuple):
    """How columns lie on devices while a rule runs."""

    mesh: jax.sharding.Mesh  # Of Auto axes.
    axes: tuple[str, ...]  # Which split the columns, outermost first: all of them.
    coordinates: tuple[jax.Array, ...]  # Of each array of columns; see `coordinates`.

    @property
    def size(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


_split: contextvars.ContextVar[Split | None] = contextvars.ContextVar(
    "byzjax_columns", default=None
)


@contextlib.contextmanager
def split_columns(split: Split | None) -> Iterator[None]:
    """While it is entered, passes run on each device's own columns; None: as without.

    What is traced meanwhile is right elsewhere as well: a pass by `each` gives the same
    on any arrays. So it does not matter that jit's cache knows nothing of this.
    """
    token = _split.set(split)
    try:
        yield
    finally:
        _split.reset(token)


def is_split() -> bool:
    """Whether columns are those of a layout of devices."""
    return _split.get() is not None


def each(
    function: Callable[..., Any],
    columns: list[jax.Array],
    *others: Any,
    sums: bool = False,
) -> Any:
    """A function of columns, on each device's own.

    Columns that devices do not divide are filled up with zeros at the end.

    Args:
      function: of a list of arrays `[..., n]`, and of `others`, → a list of one array
        `[..., n]` for each, column by column, or with `sums` a tree of sums over all
        columns, to which columns of zeros add nothing.
      columns: arrays `[..., n]`.
      *others: trees of arrays that every device has as a whole.
      sums: see `function`. Parts are added up in the order of the devices, so that the
        bits do not depend on how many processes these belong to.
    """
    split = _split.get()
    widths = [x.shape[-1] for x in columns]
    if split is None or not all(widths):
        return function(columns, *others)
    axes, count = split.axes, split.size
    mesh, whole = split.mesh, PartitionSpec()

    def on_last(x):
        return PartitionSpec(*[None] * (x.ndim - 1), axes)

    def local(columns, *others):
        with split_columns(None):
            found = function(columns, *others)
        if not sums:
            return found
        return [_share(x, axes, count) for x in _joined(found)]

    filled = [filled_up(x, -n % count) for x, n in zip(columns, widths, strict=True)]
    specs = [on_last(x) for x in filled]
    # Of what one device makes of columns that nobody has: their shapes only.
    with split_columns(None):
        small = [jax.ShapeDtypeStruct((*x.shape[:-1], 1), x.dtype) for x in filled]
        shapes = jax.eval_shape(function, small, *others)
    out_specs = PartitionSpec(axes) if sums else [on_last(x) for x in shapes]
    found = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, *[whole] * len(others)),
        out_specs=out_specs,
    )(filled, *others)
    if not sums:
        return [x[..., :n] for x, n in zip(found, widths, strict=True)]
    # Fetched by all: else XLA would send the terms of each addition.
    fetched = [
        lax.with_sharding_constraint(x, NamedSharding(mesh, whole)) for x in found
    ]
    return _parted(fetched, shapes, count)


def filled_up(x: jax.Array, lacking: int, *, axis: int = -1) -> jax.Array:
    """An array with so many zeros more at the end of an axis."""
    if not lacking:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, lacking)
    return jnp.pad(x, widths)


def _joined(tree):
    """One array for each dtype of a tree's leaves, end to end."""
    of_dtype: dict[Any, list[jax.Array]] = {}
    for x in jax.tree.leaves(tree):
        of_dtype.setdefault(x.dtype, []).append(x.ravel())
    return [jnp.concatenate(parts) for parts in of_dtype.values()]


def _by_shares(size, count):
    return size * count > _MOST_FETCHED


def _share(part, axes, count):
    """A device's part of a sum as its row of all parts, or its share of their sum."""
    size = part.shape[0]
    if not _by_shares(size, count):
        return part[None]
    parts = filled_up(part, -size % count).reshape(count, -1)
    parts = lax.all_to_all(parts, axes, 0, 0, tiled=True)
    return row_sum([parts[i] for i in range(count)])


def _parted(fetched, shapes, count):
    """What `_joined` joined, of the sums over all devices."""
    leaves, structure = jax.tree.flatten(shapes)
    sizes: dict[Any, int] = {}
    for x in leaves:
        sizes[x.dtype] = sizes.get(x.dtype, 0) + x.size
    ends = dict.fromkeys(sizes, 0)
    totals = {}
    for (dtype, size), x in zip(sizes.items(), fetched, strict=True):
        shares = _by_shares(size, count)
        totals[dtype] = x if shares else row_sum([x[i] for i in range(count)])
    out = []
    for x in leaves:
        start = ends[x.dtype]
        ends[x.dtype] += x.size
        out.append(totals[x.dtype][start : start + x.size].reshape(x.shape))
    return structure.unflatten(out)


def coordinates(tree: Tree) -> Tree:
    """The number of each coordinate, `[...]` of uint32, counted in the tree's order.

    In a layout of devices, whose columns may lie in another order, the number that the
    coordinate has in the tree that they were made of.
    """
    split = _split.get()
    leaves, structure = jax.tree.flatten(tree)
    if split is not None:
        known = split.coordinates
        if [x.shape for x in known] == [x.shape for x in leaves]:
            return structure.unflatten(known)
    found, start = [], 0
    for x in leaves:
        number = lax.iota(jnp.uint32, x.size) + jnp.uint32(start % 2**32)
        found.append(number.reshape(x.shape))
        start += x.size
    return structure.unflatten(found)


def drawn(
    tree: Tree,
    key: jax.Array,
    sample: Callable[..., jax.Array],
    *,
    exact: bool = False,
) -> Tree:
    """A draw for each coordinate, which depends on its number and the key alone.

    Args:
      tree: leaves `[...]`, whose shapes and dtypes are taken.
      key: a `jax.random.key`.
      sample: as `jax.random.normal`.
      exact: whether to draw in a leaf's own dtype, rather than in at least float32.
    """

    def of_leaf(x, numbers):
        dtype = x.dtype if exact else accumulator_dtype(x.dtype)

        def one(number):
            return sample(jax.random.fold_in(key, number), (), dtype)

        return jax.vmap(one)(numbers.ravel()).reshape(x.shape)

    return jax.tree.map(of_leaf, tree, coordinates(tree))

"""The two doors between workers and coordinates, and what is between them.

A tree is taken apart into a few long arrays of columns, one for each dtype (and for
leaves that the model's own axes shard, more; see `Doors`). Leaves are put side by side
while they are still on workers, where that moves nothing; one all-to-all then takes all
of them from workers to coordinates, and one all-gather brings the result back. Nothing
is filled up: a rule sees the coordinates that there are, and no others.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from byzjax.numerics import devices
from byzjax.sharding.layout import Layout, axes_of
from byzjax.trees import Tree


class Group(NamedTuple):
    """Leaves whose columns are one array.

    Those that the same axes of the model shard lie side by side as every device has
    them. What workers do not divide of that is in an array of its own, the `rest`.
    """

    leaves: tuple[int, ...]  # Which, in the order of the tree.
    sharded: tuple[str, ...]  # Axes over which they are sharded; () if replicated.
    takers: tuple[str, ...]  # The other axes, which share these columns.
    sizes: tuple[int, ...]  # Numbers of each leaf that one device has.


class Doors:
    """The doors for trees like some parameters, on the devices of a layout.

    Args:
      layout: the devices.
      like: a tree `[...]` of arrays or of their shapes and dtypes.
    """

    def __init__(self, layout: Layout, like: Tree):
        leaves, self.structure = jax.tree.flatten(like)
        self.layout = layout
        self.shapes = [tuple(x.shape) for x in leaves]
        self.dtypes = [jnp.dtype(x.dtype) for x in leaves]
        self.specs = layout.specs(like)
        self.groups = self._groups()
        self.mesh = layout.auto_mesh

    def _groups(self) -> list[Group]:
        found: dict[Any, list[int]] = {}
        for k, (dtype, spec) in enumerate(zip(self.dtypes, self.specs, strict=True)):
            named = axes_of(spec)
            sharded = tuple(name for name in self.layout.others if name in named)
            found.setdefault((dtype, sharded), []).append(k)
        groups = []
        for (_, sharded), leaves in found.items():
            parts = math.prod(self.layout.mesh.shape[name] for name in sharded)
            sizes = tuple(math.prod(self.shapes[k]) // parts for k in leaves)
            if sum(sizes):
                takers = tuple(n for n in self.layout.axes if n not in sharded)
                groups.append(Group(tuple(leaves), sharded, takers, sizes))
        return groups

    def fits(self, tree: Tree) -> bool:
        """Whether a tree has the structure and shapes that these doors are for."""
        leaves, structure = jax.tree.flatten(tree)
        if structure != self.structure:
            return False
        return [getattr(x, "shape", None) for x in leaves] == self.shapes

    # --- sizes ------------------------------------------------------------------------

    def _count(self, names: Sequence[str]) -> int:
        return math.prod(self.layout.mesh.shape[name] for name in names)

    def _chunk(self, group: Group) -> int:
        """Columns of each device."""
        size, takers = sum(group.sizes), self._count(group.takers)
        return size // takers if group.sharded else -(-size // takers)

    def _rest(self, group: Group) -> int:
        """Columns that a device has of each row, and that its takers do not divide."""
        return sum(group.sizes) % self._count(group.takers) if group.sharded else 0

    @property
    def widths(self) -> list[int]:
        """Of each array of columns."""
        found = []
        for group in self.groups:
            size, parts = sum(group.sizes), self._count(group.sharded)
            rest = self._rest(group)
            found += [parts * (size - rest)] if self._chunk(group) else []
            found += [parts * rest] if rest else []
        return found

    @property
    def dtypes_of_columns(self) -> list[Any]:
        """Of each array of columns."""
        found = []
        for group in self.groups:
            dtype = self.dtypes[group.leaves[0]]
            found += [dtype] if self._chunk(group) else []
            found += [dtype] if self._rest(group) else []
        return found

    def _specs_of_columns(self, lead: int) -> list[PartitionSpec]:
        """How each array lies on the devices, evenly, after `lead` other dimensions."""
        return [PartitionSpec(*[None] * lead, self.layout.axes)] * len(self.widths)

    # --- in ---------------------------------------------------------------------------

    def columns(self, rows: Tree, num_workers: int) -> tuple[jax.Array, ...]:
        """The first rows of a stacked tree as arrays `[num_workers, n]`.

        Args:
          rows: leaves `[k, ...]`, k a multiple of the devices that workers lie on.
          num_workers: how many of the rows there are; the others are dropped.
        """
        workers = self.layout.workers
        specs = [PartitionSpec(workers, *spec) for spec in self.specs]

        def on_each(leaves):
            pieces, rests = self._pieces([x.reshape(len(x), -1) for x in leaves])
            moved = _together(
                lambda x: lax.all_to_all(x, workers, 1, 0, tiled=True)[:, 0], pieces
            )

            def fetched(x, group):
                x = lax.all_gather(x, workers, axis=0, tiled=True)
                return self._own_of_rest(x, group)

            return self._in_order(moved, rests, fetched)

        found = self._mapped(on_each, specs, self._specs_of_columns(1))(
            jax.tree.leaves(rows)
        )
        return tuple(
            x[:num_workers, :width] for x, width in zip(found, self.widths, strict=True)
        )

    def columns_of(self, tree: Tree) -> tuple[jax.Array, ...]:
        """A tree `[...]`, which every worker's devices have, as arrays `[n]`."""

        def on_each(leaves):
            pieces, rests = self._pieces([x.reshape(1, -1) for x in leaves])
            own = lax.axis_index(self.layout.workers)
            mine = [lax.dynamic_index_in_dim(x[0], own, 0, False) for x in pieces]

            def fetched(x, group):
                return self._own_of_rest(x, group)[0]

            return self._in_order(mine, rests, fetched)

        found = self._mapped(on_each, self.specs, self._specs_of_columns(0))(
            jax.tree.leaves(tree)
        )
        return tuple(x[:width] for x, width in zip(found, self.widths, strict=True))

    def _pieces(self, leaves):
        """Each group's local columns `[k, shards, chunk]`, and its rest `[k, r]`."""
        pieces, rests = [], []
        for group in self.groups:
            flat = jnp.concatenate([leaves[k] for k in group.leaves], axis=1)
            chunk, rest = self._chunk(group), self._rest(group)
            if rest:
                rests.append(flat[:, flat.shape[1] - rest :])
                flat = flat[:, : flat.shape[1] - rest]
            if not chunk:
                continue
            lacking = chunk * self._count(group.takers) - flat.shape[1]
            flat = jnp.pad(flat, ((0, 0), (0, lacking)))
            sizes = [self.layout.mesh.shape[name] for name in group.takers]
            flat = flat.reshape(len(flat), *sizes, chunk)
            for d in reversed(range(len(sizes))):
                if group.takers[d] not in self.layout.workers:
                    own = lax.axis_index(group.takers[d])
                    flat = lax.dynamic_index_in_dim(flat, own, d + 1, False)
            pieces.append(flat.reshape(len(flat), -1, chunk))
        return pieces, rests

    def _in_order(self, moved, rests, fetched):
        moved, rests = iter(moved), iter(rests)
        out = []
        for group in self.groups:
            out += [next(moved)] if self._chunk(group) else []
            out += [fetched(next(rests), group)] if self._rest(group) else []
        return out

    def _own_of_rest(self, x, group):
        """This device's columns `[k, c]` of a group's rest, `[k, r]` of each shard."""
        x = lax.all_gather(x, group.sharded, axis=1, tiled=True)
        x = x[:, self._ascending(group)]
        count = self.layout.num_devices
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % count)))
        x = x.reshape(len(x), count, -1)
        own = lax.axis_index(self.layout.axes)
        return lax.dynamic_index_in_dim(x, own, 1, False)

    def _ascending(self, group) -> np.ndarray:
        """The order in which the coordinates of a group's rest have their numbers."""
        rest = self._rest(group)
        numbers: list[np.ndarray] = []
        for place in np.ndindex(*(self.layout.mesh.shape[n] for n in group.sharded)):
            at = dict(zip(group.sharded, place, strict=True))
            last: list[np.ndarray] = []
            lacking = rest
            for k in reversed(group.leaves):
                own = self._numbers_on(k, at, lacking)
                last.insert(0, own)
                lacking -= len(own)
            numbers.append(np.concatenate(last))
        return np.argsort(np.concatenate(numbers), kind="stable")

    def _numbers_on(self, k, at, most) -> np.ndarray:
        """Numbers of the last coordinates of leaf k that one device has."""
        shape = self.shapes[k]
        begin, counts = [], []
        for d, size in enumerate(shape):
            entry = self.specs[k][d] if d < len(self.specs[k]) else None
            names = axes_of(PartitionSpec(entry))
            place = 0
            for name in names:
                place = place * self.layout.mesh.shape[name] + at[name]
            counts.append(size // self._count(names))
            begin.append(place * counts[-1])
        total = math.prod(counts)
        inside = np.unravel_index(np.arange(total - min(most, total), total), counts)
        places = [i + b for i, b in zip(inside, begin, strict=True)]
        start = sum(math.prod(s) for s in self.shapes[:k])
        return start + np.asarray(np.ravel_multi_index(places, shape), np.int64)

    # --- between ----------------------------------------------------------------------

    def split(self) -> devices.Split:
        """How columns lie, for `devices.split_columns`."""
        leaves = [jax.ShapeDtypeStruct(shape, jnp.uint32) for shape in self.shapes]
        numbers = self.columns_of(devices.coordinates(leaves))
        return devices.Split(self.mesh, self.layout.axes, numbers)

    # --- out --------------------------------------------------------------------------

    def tree_of(self, columns: Sequence[jax.Array]) -> Tree:
        """Columns `[n]` as the tree `[...]`, sharded as the parameters are."""
        filled = [
            jnp.pad(x, (0, -x.shape[0] % self.layout.num_devices)) for x in columns
        ]

        def on_each(parts):
            parts = iter(parts)
            leaves: list[Any] = [None] * len(self.shapes)
            fetches: dict[Any, list[Any]] = {}
            for group in self.groups:
                if self._chunk(group):
                    wanted = fetches.setdefault(group.takers, [])
                    wanted.append((group, False, next(parts)))
                if self._rest(group):
                    every = self.layout.axes
                    fetches.setdefault(every, []).append((group, True, next(parts)))
            found: dict[Any, Any] = {}
            for axes, wanted in fetches.items():
                gathered = _together(
                    lambda x, axes=axes: lax.all_gather(x, axes, axis=0),
                    [part for *_, part in wanted],
                )
                for (group, is_rest, _), x in zip(wanted, gathered, strict=True):
                    found[group, is_rest] = x.ravel()
            for group in self.groups:
                flat = found.get((group, False))
                flat = [] if flat is None else [flat[: sum(group.sizes)]]
                if self._rest(group):
                    flat.append(self._rest_of_own(found[group, True], group))
                flat = jnp.concatenate(flat)
                ends = np.cumsum(group.sizes)
                pieces = jnp.split(flat, ends[:-1])
                for k, piece in zip(group.leaves, pieces, strict=True):
                    leaves[k] = piece.reshape(self._local_shape(k))
            for k, leaf in enumerate(leaves):
                if leaf is None:
                    leaves[k] = jnp.zeros(self._local_shape(k), self.dtypes[k])
            return leaves

        # What is gathered is the same everywhere, which its type does not say.
        mapped = self._mapped(
            on_each, self._specs_of_columns(0), self.specs, check_vma=False
        )
        return self.structure.unflatten(mapped(filled))

    def _rest_of_own(self, x, group):
        """This device's rest `[r]` from that of all, in the order of their numbers."""
        order = self._ascending(group)
        x = x[: len(order)][np.argsort(order)].reshape(-1, self._rest(group))
        own = lax.axis_index(group.sharded)
        return lax.dynamic_index_in_dim(x, own, 0, False)

    def _local_shape(self, k):
        spec = [*self.specs[k], *[None] * len(self.shapes[k])]
        return tuple(
            size // self._count(axes_of(PartitionSpec(entry)))
            for size, entry in zip(self.shapes[k], spec, strict=False)
        )

    def _mapped(self, function, in_specs, out_specs, check_vma=True):
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(in_specs,),
            out_specs=out_specs,
            check_vma=check_vma,
        )


def _together(move, arrays):
    """`move` of arrays `[..., n]` along leading axes, of all of them at once.

    Those of several dtypes travel as the bits of the narrowest.
    """
    if not arrays:
        return []
    same = all(x.dtype == arrays[0].dtype for x in arrays)
    bits = jnp.dtype(f"uint{8 * min(x.dtype.itemsize for x in arrays)}")

    def packed(x):
        if same:
            return x
        return lax.bitcast_convert_type(x, bits).reshape(*x.shape[:-1], -1)

    def unpacked(x, dtype):
        if same:
            return x
        ratio = dtype.itemsize // bits.itemsize
        if ratio > 1:
            x = x.reshape(*x.shape[:-1], -1, ratio)
        return lax.bitcast_convert_type(x, dtype)

    whole = [packed(x) for x in arrays]
    ends = np.cumsum([x.shape[-1] for x in whole])
    moved = move(jnp.concatenate(whole, axis=-1))
    parts = jnp.split(moved, ends[:-1], axis=-1)
    return [unpacked(p, x.dtype) for p, x in zip(parts, arrays, strict=True)]

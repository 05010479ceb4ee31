"""The way from workers to coordinates and back, for all that goes with a stack."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from byzjax import checks
from byzjax.numerics import devices
from byzjax.sharding import region
from byzjax.sharding.doors import Doors
from byzjax.sharding.layout import Layout
from byzjax.sharding.states import Kept
from byzjax.trees import Tree

# Extra arguments that are no trees like a worker's update, whatever their shape.
_OF_WORKERS = frozenset({"key", "weights", "present"})


class Way:
    """The way for trees like some parameters; without a layout it leads nowhere.

    Args:
      layout: the devices; None: everything is handed back as it is.
      like: a tree `[...]` of arrays or of their shapes and dtypes.
    """

    def __init__(self, layout: Layout | None, like: Tree):
        self.layout = layout
        self._doors = None if layout is None else Doors(layout, like)

    def rows(self, rows: Tree) -> Tree:
        """A stacked tree as rules see it."""
        if self._doors is None or self.layout is None:
            return rows
        m = len(jax.tree.leaves(rows)[0])
        return self._doors.columns(on_workers(self.layout, rows, self._doors.specs), m)

    def tree(self, tree: Tree) -> Tree:
        """A tree like the parameters as rules see it; None stays None."""
        if self._doors is None or tree is None:
            return tree
        return self._doors.columns_of(tree)

    def extras(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Extra arguments of a rule, those like the parameters as it sees them."""
        if self._doors is None:
            return extra
        return {
            name: self.tree(value)
            if name not in _OF_WORKERS and self._doors.fits(value)
            else value
            for name, value in extra.items()
        }

    def passes(self) -> contextlib.AbstractContextManager[None]:
        """What rules and attacks run in."""
        if self._doors is None:
            return contextlib.nullcontext()
        return devices.split_columns(self._doors.split())

    def back(self, columns: Tree) -> Tree:
        """What a rule returned as a tree like the parameters."""
        return columns if self._doors is None else self._doors.tree_of(columns)

    def first(self, init: Callable[[Tree], Tree], params: Tree) -> Tree:
        """The first state of a rule or an attack, as it is kept between steps."""
        if self._doors is None:
            return init(params)
        columns = self._doors.columns_of(params)
        with self.passes():
            return self._kept(init).stored(init(columns))

    def inside(self, init: Callable[[Tree], Tree], state: Tree) -> Tree:
        """A state as the rule reads it, of one as it is kept."""
        return state if self._doors is None else self._kept(init).unstored(state)

    def kept(self, init: Callable[[Tree], Tree], state: Tree) -> Tree:
        """A state as it is kept, of one as the rule left it."""
        return state if self._doors is None else self._kept(init).stored(state)

    def specs_of_state(self, init: Callable[[Tree], Tree], state: Tree) -> Tree:
        """A `PartitionSpec` for each leaf of a state that is kept."""
        return self._kept(init).specs(state)

    def specs_of_tree(self) -> Tree:
        """A `PartitionSpec` for each leaf of a tree like the parameters."""
        assert self._doors is not None
        return self._doors.structure.unflatten(self._doors.specs)

    def _kept(self, init):
        doors = self._doors
        assert doors is not None
        columns = tuple(
            jax.ShapeDtypeStruct((n,), dtype)
            for n, dtype in zip(doors.widths, doors.dtypes_of_columns, strict=True)
        )
        return Kept(init, columns, doors.layout.axes, doors.layout.num_devices)


def spread(rows: Tree, live: list[int], num_workers: int) -> Tree:
    """The rows of all workers, zeros for those that are not `live`.

    Args:
      rows: leaves `[k, ...]`, of the k live workers in order, and perhaps more rows.
      live: who they are.
      num_workers: how many rows there are to be, which number the workers.
    """
    if live == list(range(num_workers)):
        return jax.tree.map(lambda x: x[:num_workers], rows)
    # Runs of neighbours: columns stay where they are, and nothing is gathered.
    place = {worker: row for row, worker in enumerate(live)}
    runs: list[list[int]] = []
    for worker in range(num_workers):
        is_next = runs and (worker - 1 in place) == (worker in place)
        runs.append([*runs.pop(), worker] if is_next else [worker])

    def of_leaf(x):
        def part(run):
            if run[0] not in place:
                return jnp.zeros((len(run), *x.shape[1:]), x.dtype)
            return x[place[run[0]] : place[run[-1]] + 1]

        return jnp.concatenate([part(run) for run in runs])

    return jax.tree.map(of_leaf, rows)


def present_of(layout: Layout | None, num_workers: int, present: Any) -> Any:
    """Who takes part `[m]`: those said to, of those that have a device; None is all."""
    if layout is None or not layout.absent:
        return present
    has_device = np.isin(np.arange(num_workers), layout.absent, invert=True)
    if present is None:
        return has_device
    return has_device & checks.present("a layout", present, num_workers)


def on_workers(layout: Layout, rows: Tree, specs: list[PartitionSpec]) -> Tree:
    """Rows `[m, ...]` on the devices of their workers, and as many as these divide."""
    leaves, structure = jax.tree.flatten(rows)
    found = []
    for x, spec in zip(leaves, specs, strict=True):
        x = devices.filled_up(x, -x.shape[0] % layout.num_worker_shards, axis=0)
        full = PartitionSpec(layout.workers, *spec)
        found.append(region.constrained(layout, x, full))
    return structure.unflatten(found)


def check_layout(owner: str, layout: Any) -> None:
    """Says so when something is no layout."""
    if not isinstance(layout, Layout):
        raise TypeError(
            f"{owner} needs layout to be a byzjax.sharding.Layout, got {layout!r}"
        )


def check_workers(owner: str, layout: Layout, m: int) -> None:
    """Says so when some devices would have no worker."""
    count = layout.num_worker_shards
    if layout.absent and layout.absent[-1] >= m:
        raise ValueError(
            f"{owner} needs the layout's absent workers to be below num_workers={m}, "
            f"got absent={layout.absent}"
        )
    m -= len(layout.absent)
    if m < count:
        raise ValueError(
            f"{owner} needs num_workers >= the devices that workers lie on, got "
            f"num_workers={m} and {count} devices on the axis {layout.workers} of "
            "the layout: give it a mesh of fewer, or the others an axis of their own"
        )

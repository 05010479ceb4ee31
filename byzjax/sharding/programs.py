"""Compiled programs of what runs on the host: users jit steps, these are the driver's.

Between meshes a state goes by way of the host. What is the same everywhere every
process keeps as a whole, and of the workers' states the rows of its own workers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from byzjax.sharding.layout import Layout
from byzjax.trees import Tree


class Copy(NamedTuple):
    """A state in the memory of this process, from which another mesh goes on."""

    step: int  # Steps done.
    shared: list[np.ndarray]  # Leaves that are the same for all.
    rows: dict[int, list[np.ndarray]]  # Of each own worker, the leaves of its state.


class Programs:
    """What a trainer runs on the devices of a layout, compiled at once.

    Args:
      trainer: `init` and `step`.
      layout: the devices.
      num_workers: m.
      inputs: params and, if there is one, the model state, as host arrays.
      batches: this layout's, as they are placed.
      key: base key; step t has `jax.random.fold_in(key, t)`.
      present: an example.
    """

    def __init__(
        self,
        trainer: Any,
        layout: Layout,
        num_workers: int,
        inputs: tuple[Tree, ...],
        batches: Tree,
        key: jax.Array,
        present: np.ndarray,
    ):
        self.layout = layout
        self.live = layout.live(num_workers)
        self.own = layout.workers_of_process(num_workers)
        self.everywhere = NamedSharding(layout.mesh, PartitionSpec())
        self._impls: dict[Any, Any] = {}  # Of keys, by their type.
        self._mesh = functools.partial(jax.set_mesh, layout.mesh)
        with self._mesh():
            self._init = jax.jit(trainer.init).lower(*inputs).compile()
            self.shapes = jax.eval_shape(self._noting(trainer.init), *inputs)
            self.shardings = self._init.output_shardings
            self._copy = self._compiled(self._copied, (self.everywhere, layout.batches))
            data = jax.eval_shape(self._copied, self.shapes)
            self._place = self._compiled(self._placed, self.shardings, data, False)

            def step(state, batches, key, present):
                own = jax.random.fold_in(key, state.step)
                return trainer.step(state, batches, own, present=present)

            given = self._placed_shapes(), batches, key, present
            ends = self.shardings, self.everywhere
            jitted = jax.jit(step, out_shardings=ends, donate_argnums=0)
            self._step = jitted.lower(*given).compile()

    def first(self, inputs: tuple[Tree, ...]) -> Tree:
        """The state before the first step."""
        return self._init(*inputs)

    def step(self, state, batches, key, present) -> tuple[Tree, Tree]:
        """One step: the state after it, in place of that before, and host metrics."""
        done = self._step(state, batches, key, present)
        state, metrics = jax.block_until_ready(done)
        return state, jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), metrics)

    def copied(self, step: int, state: Tree) -> Copy:
        """A state on its way to another mesh."""
        shared, rows = self._copy(state)
        own: dict[int, list[np.ndarray]] = {worker: [] for worker in self.own}
        for leaf in rows:
            parts = {
                shard.index[0].start or 0: shard.data
                for shard in leaf.addressable_shards
            }
            found = np.concatenate([np.asarray(parts[at]) for at in sorted(parts)])
            for worker, row in zip(self.own, found, strict=True):
                own[worker].append(row)
        return Copy(step, [np.asarray(x.addressable_data(0)) for x in shared], own)

    def placed(self, copy: Copy) -> Tree:
        """The state of a copy, of this mesh or of another with more workers."""
        rows = []
        for k in range(len(self._rows(self.shapes)[1])):
            local = np.stack([copy.rows[worker][k] for worker in self.own])
            shape = (len(self.live), *local.shape[1:])
            rows.append(
                jax.make_array_from_process_local_data(
                    self.layout.batches, local, shape
                )
            )
        shared = [
            jax.make_array_from_process_local_data(self.everywhere, x, x.shape)
            for x in copy.shared
        ]
        return self._place((shared, rows))

    # --- functions of arrays ----------------------------------------------------------

    def _rows(self, state):
        """Leaves that are shared, and those with a row a worker."""
        return (
            jax.tree.leaves(state._replace(worker_state=None)),
            jax.tree.leaves(state.worker_state),
        )

    def _noting(self, function):
        def noting(*args):
            out = function(*args)
            for x in jax.tree.leaves(out):
                if _is_key(x):
                    self._impls[x.dtype] = jax.random.key_impl(x)
            return out

        return noting

    def _like(self, data, like):
        if not _is_key(like):
            return data
        return jax.random.wrap_key_data(data, impl=self._impls[like.dtype])

    def _copied(self, state):
        shared, rows = self._rows(state)
        lacking = [len(self.live) - x.shape[0] for x in rows]
        rows = [_grown(_data(x), n) for x, n in zip(rows, lacking, strict=True)]
        return [_data(x) for x in shared], rows

    def _placed(self, data):
        shared, rows = data
        like_shared, like_rows = self._rows(self.shapes)
        shared = [self._like(x, y) for x, y in zip(shared, like_shared, strict=True)]
        rows = [
            self._like(_grown(x, y.shape[0] - x.shape[0]), y)
            for x, y in zip(rows, like_rows, strict=True)
        ]
        without = jax.tree.structure(self.shapes._replace(worker_state=None))
        own = jax.tree.structure(self.shapes.worker_state)
        return without.unflatten(shared)._replace(worker_state=own.unflatten(rows))

    def _placed_shapes(self):
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            self.shapes,
            self.shardings,
        )

    def _compiled(self, function, ends, data=None, of_state=True):
        if of_state:
            given = self._placed_shapes()
        else:
            assert data is not None
            shared, rows = data
            places = self.everywhere, self.layout.batches
            given = [
                [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at) for x in part]
                for part, at in zip((shared, rows), places, strict=True)
            ]
            given = tuple(given)
        return jax.jit(function, out_shardings=ends).lower(given).compile()


def taken(
    rows: dict[str, Any], index: dict[str, np.ndarray], others: dict[str, Any]
) -> dict[str, Any]:
    """Rows by their numbers, those of `others` where the number is -1.

    Each is a dict of leaves by name. One program: on CPUs of several processes two that
    do not wait for each other would mix up what they send.
    """

    def take(rows, others):
        found = {}
        for name, x in others.items():
            places = index[name]
            there = jnp.asarray(places >= 0).reshape(-1, *[1] * (x.ndim - 1))
            found[name] = jnp.where(there, rows[name][np.maximum(places, 0)], x)
        return found

    if not all(isinstance(x, jax.Array) for x in others.values()):
        return take(rows, others)
    ends = {name: x.sharding for name, x in others.items()}
    where = {name: automatic(sharding) for name, sharding in ends.items()}
    others = jax.device_put(others, where)
    found = jax.block_until_ready(jax.jit(take, out_shardings=where)(rows, others))
    return jax.device_put(found, ends)


def automatic(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The same places, on a mesh of Auto axes."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    mesh: Any = sharding.mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)
    return NamedSharding(mesh, sharding.spec)


def _grown(x, lacking):
    """More rows of zeros, or fewer rows."""
    if lacking < 0:
        return x[:lacking]
    return jnp.pad(x, [(0, lacking), *[(0, 0)] * (x.ndim - 1)]) if lacking else x


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x):
    return jax.random.key_data(x) if _is_key(x) else x

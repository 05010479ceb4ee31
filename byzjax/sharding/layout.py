"""Where workers and coordinates lie on a mesh of devices: `Layout`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from byzjax import checks


@dataclasses.dataclass(frozen=True)
class Layout:
    r"""Workers on one axis of a mesh, and the model's own parallelism on others.

    Gradients are born where their worker's batch is, sharded over the worker axis. To
    be aggregated they change places once, from workers to coordinates: every device
    gets some of the columns of all m rows. Only m×m sums cross devices after that, and
    the result is gathered at the end: the bytes of an ordinary all-reduce.

    Axes of the mesh may be Explicit, the default of `jax.make_mesh`, or Auto. Neither m
    nor the number of coordinates need be a multiple of the devices.

    Args:
      mesh: the devices.
      workers: the name of the axis that workers lie on, or a tuple of names.
      params: how the parameters are sharded over the *other* axes: a
        `jax.sharding.PartitionSpec` for each leaf, or for whole subtrees; None:
        they are replicated. They stay so, and so do gradients and the result.
      absent: workers that have no device, as those of a process that died. Batches
        and states then are of the others, in their order; rules have the absent ones'
        rows as `present` says, and what follows counts all m as before.

    Attributes:
      mesh: as given.
      workers: names of the worker axes, a tuple in the mesh's order.
      params: as given.
      absent: as given, in order.

    Raises:
      TypeError: a mesh that is none, names that are no strings, or absent workers that
        are no ints.
      ValueError: an axis that the mesh does not have, or a `params` that shards over
        the workers' axis.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("workers",))
      >>> layout = byzjax.sharding.Layout(mesh)
      >>> rule = byzjax.sharding.aggregate(byzjax.median(), layout)
      >>> print(jax.jit(rule.aggregate)(jnp.array([[1.0], [2.0], [9.0]])))
      [2.]
    """

    mesh: Mesh
    workers: Any = "workers"
    params: Any = None
    absent: tuple[int, ...] = ()

    def __post_init__(self):
        if not isinstance(self.mesh, Mesh):
            raise TypeError(
                f"Layout needs mesh to be a jax.sharding.Mesh, got {self.mesh!r}: "
                'make one with jax.make_mesh((jax.device_count(),), ("workers",))'
            )
        names = (self.workers,) if isinstance(self.workers, str) else self.workers
        if not isinstance(names, Sequence) or not all(
            isinstance(name, str) for name in names
        ):
            raise TypeError(
                "Layout needs workers to be the name of an axis of the mesh or a tuple "
                f"of names, got workers={self.workers!r}"
            )
        names = tuple(names)
        known = self.mesh.axis_names
        if not names or not set(names) <= set(known) or len(set(names)) < len(names):
            raise ValueError(
                "Layout needs workers to name axes of the mesh, each once, got "
                f"workers={self.workers!r} and a mesh with the axes {known}"
            )
        manual = [
            name
            for name, kind in zip(known, self.mesh.axis_types, strict=True)
            if kind == AxisType.Manual
        ]
        if manual:
            raise ValueError(
                "Layout needs a mesh of Auto or Explicit axes, got Manual ones: "
                f"{manual}"
            )
        names = tuple(name for name in known if name in names)
        object.__setattr__(self, "workers", names)
        if not isinstance(self.absent, Sequence):
            raise TypeError(
                "Layout needs absent to be a tuple of numbers of workers, got "
                f"{self.absent!r}"
            )
        absent = {checks.count("Layout", absent=worker) for worker in self.absent}
        object.__setattr__(self, "absent", tuple(sorted(absent)))
        for spec in jax.tree.leaves(self.params, is_leaf=is_spec):
            if not is_spec(spec):
                raise TypeError(
                    "Layout needs params to be a tree of jax.sharding.PartitionSpec, "
                    f"got {spec!r} in it"
                )
            for name in axes_of(spec):
                if name not in known or name in names:
                    raise ValueError(
                        "Layout needs params to shard over axes of the mesh beside "
                        f"the workers' {names}, got {spec} and a mesh with the axes "
                        f"{known}"
                    )

    def __hash__(self):  # Trees of specs, such as dicts, have none.
        specs, structure = jax.tree.flatten(self.params, is_leaf=is_spec)
        return hash((self.mesh, self.workers, tuple(specs), structure, self.absent))

    @property
    def num_worker_shards(self) -> int:
        """Over how many devices the workers are spread."""
        return math.prod(self.mesh.shape[name] for name in self.workers)

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def others(self) -> tuple[str, ...]:
        """The axes beside the workers'."""
        return tuple(n for n in self.mesh.axis_names if n not in self.workers)

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes, in the mesh's order, as they split columns."""
        return tuple(self.mesh.axis_names)

    @property
    def is_explicit(self) -> bool:
        return AxisType.Explicit in self.mesh.axis_types

    @property
    def auto_mesh(self) -> Mesh:
        """The same devices, with axes that XLA's partitioner decides about."""
        kinds = (AxisType.Auto,) * len(self.mesh.axis_names)
        return Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=kinds)

    @property
    def of_replicated(self) -> "Layout":
        """The same for trees that the model's own axes do not shard."""
        return dataclasses.replace(self, params=None)

    @property
    def batches(self) -> NamedSharding:
        """Where batches `[m, ...]` belong, for `jax.device_put` and data loaders."""
        return NamedSharding(self.mesh, PartitionSpec(self.workers))

    @property
    def processes(self) -> list[int]:
        """The processes whose devices these are, in order."""
        return sorted({device.process_index for device in self.mesh.devices.flat})

    def live(self, num_workers: int) -> list[int]:
        """Which of m workers have a device, in order: all but the absent ones."""
        return [w for w in range(num_workers) if w not in self.absent]

    def workers_of_process(
        self, num_workers: int, process: int | None = None
    ) -> list[int]:
        """Which of m workers lie on devices of a process, in order.

        Args:
          num_workers: m.
          process: its number; None: this one.

        Raises:
          ValueError: m, without those absent, is no multiple of the devices that
            workers lie on.
        """
        owner = "Layout.workers_of_process"
        num_workers = checks.count(owner, num_workers=num_workers, minimum=1)
        own = jax.process_index()
        if process is not None:
            own = checks.count(owner, process=process)
        shards, live = self.num_worker_shards, self.live(num_workers)
        if len(live) % shards:
            without = f" without {len(self.absent)} absent ones" if self.absent else ""
            raise ValueError(
                "Layout.workers_of_process needs num_workers to be a multiple of the "
                f"{shards} shards of the workers' axis, got num_workers={num_workers}"
                f"{without}"
            )
        places = self.batches.devices_indices_map((len(live),))
        rows = np.asarray(live, int)
        found = {
            int(row)
            for device, at in places.items()
            if device.process_index == own
            for row in rows[at]
        }
        return sorted(found)

    def specs(self, tree: Any) -> list[PartitionSpec]:
        """The specs of the leaves of a tree like the parameters, in order.

        Raises:
          ValueError: `params` of another structure, a spec longer than its leaf's
            shape, or a dimension that the devices do not divide.
        """
        leaves, structure = jax.tree.flatten(tree)
        if self.params is None:
            return [PartitionSpec()] * len(leaves)
        try:
            full = jax.tree.map(
                lambda spec, part: [spec] * len(jax.tree.leaves(part)),
                self.params,
                tree,
                is_leaf=is_spec,
            )
        except ValueError as error:
            raise ValueError(
                "Layout needs params of the structure of the parameters, or of the "
                f"top of it, got {jax.tree.structure(self.params, is_leaf=is_spec)} "
                f"and {structure}"
            ) from error
        specs = jax.tree.leaves(full, is_leaf=is_spec)
        for spec, leaf in zip(specs, leaves, strict=True):
            self._check(spec, leaf)
        return specs

    def _check(self, spec, leaf):
        fits = len(spec) <= leaf.ndim
        for size, entry in zip(leaf.shape, spec, strict=False):
            count = math.prod(self.mesh.shape[name] for name in _names(entry))
            fits = fits and size % count == 0
        if not fits:
            raise ValueError(
                "Layout needs params that divide the dimensions of their leaves, got "
                f"{spec} for a leaf of shape {leaf.shape} on a mesh of "
                f"{dict(self.mesh.shape)}"
            )


def is_spec(x: Any) -> bool:
    """Whether a leaf of `Layout.params` is what it is to be."""
    return isinstance(x, PartitionSpec)


def _names(entry) -> tuple[str, ...]:
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def axes_of(spec: PartitionSpec) -> tuple[str, ...]:
    """The axes that a spec names."""
    return tuple(name for entry in spec for name in _names(entry))

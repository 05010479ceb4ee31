"""Where XLA's partitioner decides how arrays lie: an Explicit mesh's way in and out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard

from byzjax.sharding.layout import Layout

ANYWHERE = "anywhere"  # In place of a spec: as the partitioner has it.


def automatically(
    layout: Layout,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    specs: Callable[[Any], Any],
) -> Any:
    """`function(*args)` under the layout's mesh, with Auto axes.

    Args:
      layout: the devices.
      function: of trees of arrays → a tree.
      args: for it.
      specs: the result → a tree of a `PartitionSpec` for each of its leaves, which says
        where they end up, or `ANYWHERE`.
    """
    mesh = layout.auto_mesh
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        check_devices(layout, leaf, jax.tree_util.keystr(path))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        if layout.is_explicit:
            args = jax.tree.map(_untyped, args)
        out = function(*args)
        ends = specs(out)
    after = layout.mesh if layout.is_explicit else mesh

    def placed(x, spec):
        if not isinstance(x, jax.Array):
            return x
        if layout.is_explicit:
            spec = PartitionSpec() if spec == ANYWHERE else spec
            return reshard(x, NamedSharding(after, spec))
        if spec == ANYWHERE:
            return x
        return lax.with_sharding_constraint(x, NamedSharding(after, spec))

    return jax.tree.map(placed, out, ends)


def constrained(layout: Layout, x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """An array that lies as the spec says; inside of `automatically`."""
    return lax.with_sharding_constraint(x, NamedSharding(layout.auto_mesh, spec))


def _untyped(x):
    """Without the sharding in its type, which code under Auto axes does not read."""
    return reshard(x, PartitionSpec()) if isinstance(x, jax.Array) else x


def check_devices(layout: Layout, x: Any, where: str) -> None:
    """Says so when an array lies on other devices than the layout's."""
    if not isinstance(x, jax.Array):
        return
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    kinds = () if mesh is None or mesh.empty else mesh.axis_types
    if AxisType.Explicit in kinds and _shape(mesh) != _shape(layout.mesh):
        raise ValueError(
            f"a layout needs arrays on its own mesh, {_shape(layout.mesh)}, got one on "
            f"{_shape(mesh)} at {where}"
        )
    if isinstance(x, jax.core.Tracer) or not x.committed:
        return
    if x.sharding.device_set != set(layout.mesh.devices.flat):
        raise ValueError(
            "a layout needs arrays on the devices of its mesh, "
            f"{_shape(layout.mesh)}, got one on {len(x.sharding.device_set)} other "
            f"devices at {where}: place it with jax.device_put(x, layout.batches), or "
            "leave it uncommitted"
        )


def _shape(mesh):
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))

"""A rule on a mesh of devices, as a link of a chain: `aggregate`."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from byzjax import base, checks
from byzjax.base import Aggregator, Tree
from byzjax.numerics import devices
from byzjax.sharding import region
from byzjax.sharding.doors import Doors
from byzjax.sharding.layout import Layout
from byzjax.sharding.states import Kept

# Extra arguments that are no trees like a worker's update, whatever their shape.
_OF_WORKERS = frozenset({"key", "weights", "present"})


def aggregate(rule: Aggregator, layout: Layout) -> Aggregator:
    r"""A rule on the devices of a layout: the same result at an all-reduce's price.

    Workers' rows come in sharded over the workers' axis, as gradients are; they change
    places by one all-to-all, the rule runs on each device's columns of all rows, and
    one all-gather brings the result to where the parameters are. Between, only m×m
    sums and less cross devices, in an order that does not depend on how many processes
    the devices belong to. No device ever holds the stack.

    It is a link of `optax.chain` like the rule, for training steps of one's own;
    `byzjax.trainer(..., layout=...)` does the same, and attacks there as well. Wrap the
    whole rule, `aggregate(ctma(median(), 3), layout)`, not its base.

    The rule sees the tree as a few long arrays, `[m, n]` for each dtype. To a rule that
    gives a tree what it gives its ravelled matrix, as `byzjax.testing.check_rule`
    tests, that makes no difference, and it need not know of devices. What it makes of
    them by operations that devices do not share is right, and may be slow.

    **Guarantee.** The rule's, to rounding.

    Args:
      rule: any aggregator.
      layout: the devices.

    Returns:
      An `Aggregator` that takes what the rule takes. What its state knows of each
      coordinate is sharded over all devices.

    Raises:
      TypeError: a rule or layout of the wrong kind.
      ValueError: in `update`, fewer workers than devices to spread them over, or arrays
        on other devices.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp, optax
      >>> layout = byzjax.sharding.Layout(jax.make_mesh((1,), ("workers",)))
      >>> rule = byzjax.ctma(byzjax.median(), num_byzantine=1)
      >>> rule = byzjax.sharding.aggregate(rule, layout)
      >>> optimizer = optax.chain(rule, optax.sgd(0.1))
      >>> state = optimizer.init(jnp.zeros(2))
      >>> gradients = jnp.array([[1.0, 1.0], [1.0, 1.0], [-9.0, 9.0]])
      >>> print(jax.jit(optimizer.update)(gradients, state)[0])
      [-0.1 -0.1]

    Reference:
      The way there and back is that of a reduce-scatter and an all-gather, the two
      halves of an ordinary all-reduce.
    """
    base.check_aggregator("sharding.aggregate", rule)
    check_layout("sharding.aggregate", layout)

    def init(params):
        doors = Doors(layout, params)
        kept = kept_by(doors, rule.init)

        def of_columns(params):
            return kept.stored(rule.init(doors.columns_of(params)))

        return region.automatically(layout, of_columns, (params,), kept.specs)

    def update(updates, state, params=None, **extra):
        m = checks.num_workers(updates)
        check_workers(layout, m)
        one = like_one(updates)
        doors = Doors(layout, one)
        kept = kept_by(doors, rule.init)

        def run(updates, state, params, extra):
            columns = doors.columns(on_workers(layout, updates, doors.specs), m)
            inner = None if params is None else doors.columns_of(params)
            extra = {
                name: doors.columns_of(value)
                if name not in _OF_WORKERS and _is_like(value, one)
                else value
                for name, value in extra.items()
            }
            with devices.split_columns(doors.split()):
                out, after = rule.update(columns, kept.unstored(state), inner, **extra)
            return doors.tree_of(out), kept.stored(after)

        def specs(out):
            return doors.structure.unflatten(doors.specs), kept.specs(out[1])

        return region.automatically(layout, run, (updates, state, params, extra), specs)

    return Aggregator(init, update, takes=rule.takes)


def kept_by(doors: Doors, init: Any) -> Kept:
    """How the state is kept that `init` makes of columns."""
    dtypes = doors.dtypes_of_columns
    columns = tuple(
        jax.ShapeDtypeStruct((n,), dtype)
        for n, dtype in zip(doors.widths, dtypes, strict=True)
    )
    return Kept(init, columns, doors.layout.axes, doors.layout.num_devices)


def like_one(rows: Tree) -> Tree:
    """Shapes and dtypes of one row of a stacked tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)


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


def check_workers(layout: Layout, m: int) -> None:
    """Says so when some devices would have no worker."""
    count = layout.num_worker_shards
    if m < count:
        raise ValueError(
            "a layout needs num_workers >= the devices that workers lie on, got "
            f"num_workers={m} and {count} devices on {layout.workers}: give it a mesh "
            "of fewer, or the rest of them to another axis"
        )


def _is_like(value: Any, one: Tree) -> bool:
    if jax.tree.structure(value) != jax.tree.structure(one):
        return False
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(one), strict=True)
    return all(getattr(x, "shape", None) == y.shape for x, y in pairs)

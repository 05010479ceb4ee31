"""Every attack of the table on columns of eight devices, and code of users' own."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import sharding
from byzjax.sharding.way import Way
from tests.attacks_table import TABLE, F, M, key_of
from tests.sharding import processes
from tests.sharding.stacks import flat, layout_of, mesh, placed, strict
from tests.sharding.stacks import rows as stack

SHAPES = [(2, 3), (), (5, 7), (1,)]  # 43 coordinates.
D = 43


def tree_of(x, dtypes=(jnp.float32,)):
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    parts = np.split(np.asarray(x), np.cumsum(sizes)[:-1], axis=1)
    return {
        f"leaf {k}": jnp.asarray(part.reshape(len(x), *shape), dtypes[k % len(dtypes)])
        for k, (part, shape) in enumerate(zip(parts, SHAPES, strict=True))
    }


def twice(attack, key):
    """An attack on two steps of messages, its state carried."""

    def forged(updates, params):
        state = attack.init(params)
        for step in range(2):
            moved = jax.tree.map(lambda x, s=step: x + jnp.asarray(s, x.dtype), updates)
            out, state = attack.update(moved, state, params, num_byzantine=F, key=key)
        return out

    return forged


def on_layout(layout, attack, key, updates):
    """The same between the doors, and its rows back as trees."""

    def run(updates, params):
        way = Way(layout, params)
        columns, inner = way.rows(updates), way.tree(params)
        with way.passes():
            out = twice(attack, key)(columns, inner)
        return jax.tree.map(
            lambda *rows: jnp.stack(rows),
            *[way.back(jax.tree.map(lambda x, k=k: x[k], out)) for k in range(M)],
        )

    params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), updates)
    return jax.jit(run)(updates, params)


def attacks(writer, layout):
    updates = tree_of(stack(M, D))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), updates)
    for row in TABLE:
        attack, key = row.make(), key_of(row)
        alone = jax.jit(twice(attack, key))(updates, params)
        got = on_layout(layout, attack, key, updates)
        writer.write(
            row.name,
            alone=[rows_of(x) for x in jax.tree.leaves(alone)],
            got=[rows_of(x) for x in jax.tree.leaves(got)],
        )


def rows_of(x):
    return np.asarray(x, np.float64).reshape(len(x), -1).tolist()


def thoughtless():
    """Rules and attacks of users who never thought of devices."""

    def by_mean(updates, state, params=None, **extra):
        scores = sum(
            jnp.mean(jnp.abs(x.reshape(len(x), -1)), axis=1) * x[0].size
            for x in jax.tree.leaves(updates)
        ) / sum(x[0].size for x in jax.tree.leaves(updates))
        shares = jnp.where(scores <= jnp.sort(scores)[5], 1 / 6, 0)
        return jax.tree.map(
            lambda x: jnp.tensordot(shares.astype(x.dtype), x, 1), updates
        ), state

    def by_loop(updates, state, params=None, **extra):
        def one(x):
            flat = x.reshape(len(x), -1)

            def step(k, out):
                column = jax.lax.dynamic_slice_in_dim(flat, k, 1, 1)
                return jax.lax.dynamic_update_slice(out, jnp.sort(column, 0)[3], (k,))

            start = jnp.zeros(flat.shape[1:], x.dtype)
            return jax.lax.fori_loop(0, flat.shape[1], step, start).reshape(x.shape[1:])

        return jax.tree.map(one, updates), state

    def smallest(updates, state, params=None, **extra):  # Of all coordinates.
        low = [jnp.min(x.reshape(len(x), -1), axis=1) for x in jax.tree.leaves(updates)]
        best = jnp.argmax(jnp.min(jnp.stack(low), axis=0))
        return jax.tree.map(lambda x: x[best], updates), state

    init = optax.init_empty_state
    return {
        "by mean": byzjax.Aggregator(init, by_mean),
        "by loop": byzjax.Aggregator(init, by_loop),
        "smallest": byzjax.Aggregator(init, smallest),
    }


def others(writer, layout):
    x = stack(M, D)
    for name, rule in thoughtless().items():
        updates = tree_of(x)
        compare(writer, layout, name, rule, updates)
    mixed = tree_of(x, (jnp.float32, jnp.bfloat16))
    for rule in (byzjax.median(), byzjax.krum(2), byzjax.dnc(2), byzjax.flame()):
        key = jax.random.key(4)
        compare(writer, layout, f"mixed {rule!r}", rule, mixed, key=key)
    two = sharding.Layout(
        mesh("explicit", (4, 2), ("workers", "model")),
        params={
            "leaf 0": jax.P("model"),
            "leaf 1": jax.P(),
            "leaf 2": jax.P(),
            "leaf 3": jax.P(),
        },
    )
    for rule in (byzjax.ctma(byzjax.median(), 2), byzjax.dnc(2), byzjax.flame()):
        compare(writer, two, f"two axes {rule!r}", rule, tree_of(x), key=key)
    three = sharding.Layout(
        mesh("explicit", (2, 2, 2), ("a", "workers", "b")),
        params={k: jax.P("a") if k == "leaf 0" else jax.P() for k in tree_of(x)},
    )
    compare(writer, three, "three axes", byzjax.ctma(byzjax.krum(2), 2), tree_of(x))
    folded = sharding.Layout(
        mesh("explicit", (2, 2, 2), ("x", "y", "z")), workers=("x", "z")
    )
    compare(writer, folded, "workers on two axes", byzjax.krum(2), tree_of(x))
    for name in ("gaussian", "small_perturbation", "mimic warmup", "rop"):
        (row,) = (row for row in TABLE if row.name == name)
        attack, key, updates = row.make(), key_of(row), tree_of(x)
        params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), updates)
        alone = jax.jit(twice(attack, key))(updates, params)
        got = on_auto(two, attack, key, updates)
        write(writer, f"two axes {name}", alone, got)
    weights = jnp.arange(1.0, M + 1)
    rule = byzjax.ctma(byzjax.geometric_median(), 2)
    compare(writer, layout, "weights", rule, tree_of(x), weights=weights)
    for rule in (
        byzjax.centered_clipping(1.0),
        byzjax.foolsgold(num_workers=M),
        byzjax.clipped_clustering(),
        byzjax.with_key(byzjax.bucketing(byzjax.median(), 2), jax.random.key(5)),
    ):
        steps(writer, layout, rule, tree_of(x))


def on_auto(layout, attack, key, updates):
    """`on_layout` for either kind of mesh: its two doors are for Auto axes."""
    kinds = (jax.sharding.AxisType.Auto,) * len(layout.mesh.axis_names)
    same = jax.make_mesh(
        layout.mesh.axis_sizes, layout.mesh.axis_names, axis_types=kinds
    )
    return on_layout(sharding.Layout(same, params=layout.params), attack, key, updates)


def compare(writer, layout, name, rule, updates, **arguments):
    takes = rule.takes | {"weights"}
    arguments = {k: v for k, v in arguments.items() if k in takes}
    alone = jax.jit(rule.aggregate)(updates, **arguments)
    on_devices = jax.jit(sharding.aggregate(rule, layout).aggregate)
    write(writer, name, alone, on_devices(placed(layout, updates), **arguments))


def steps(writer, layout, rule, updates):
    """Two updates with what the rule remembers between."""

    def two(rule, updates, params):
        state = rule.init(params)
        for step in range(2):
            moved = jax.tree.map(lambda x, s=step: x * (s + 1), updates)
            out, state = rule.update(moved, state, params)
        return out

    params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), updates)
    alone = jax.jit(lambda u, p: two(rule, u, p))(updates, params)
    spread = sharding.aggregate(rule, layout)
    got = jax.jit(lambda u, p: two(spread, u, p))(updates, params)
    write(writer, f"steps {rule!r}", alone, got)


def write(writer, name, alone, got):
    writer.write(name, alone=flat(alone).tolist(), got=flat(got).tolist())


def main(path):
    strict()
    writer = processes.Writer(path)
    layout = layout_of("auto")
    attacks(writer, layout)
    others(writer, layout)


if __name__ == "__main__":
    main(*sys.argv[1:])

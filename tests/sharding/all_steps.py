"""Training steps on eight devices beside those of one, and what they refuse."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import byzjax
from benchmarks.collectives import collectives, largest
from byzjax import attacks, sharding
from tests.sharding import processes
from tests.sharding.stacks import layout_of, mesh, strict

F, WIDE = 3, 40
SPECS = {
    "bias": PartitionSpec(),
    "first": PartitionSpec(None, "model"),
    "last": PartitionSpec("model"),
}


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["first"] + params["bias"][None])
    return jnp.mean((hidden @ params["last"] - y) ** 2)


def with_state(params, model_state, batch):
    loss = loss_fn(params, batch)
    mean = jnp.mean(batch[0], axis=0)
    new = jax.tree.map(lambda old: 0.9 * old + 0.1 * mean, model_state)
    return loss, (new, {"size": jnp.sum(mean)})


def params_of():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "bias": jnp.zeros(WIDE),
        "first": jax.random.normal(keys[0], (17, WIDE)),
        "last": jax.random.normal(keys[1], (WIDE,)),
    }


def batches_of(m):
    x = jax.random.normal(jax.random.key(1), (m, 4, 17))
    return x, jnp.sin(jnp.sum(x, axis=-1))


def common(m):
    return dict(num_workers=m, num_byzantine=F)


CASES = {
    "storm alie": lambda m: dict(
        worker=byzjax.storm(),
        attack=attacks.alie(1.0),
        aggregator=byzjax.ctma(byzjax.median(), F),
        server=byzjax.anytime(optax.sgd(0.1)),
        **common(m),
    ),
    "informed": lambda m: dict(
        worker=byzjax.momentum(0.9),
        attack=attacks.rop(aggregator=byzjax.centered_clipping(1.0)),
        aggregator=byzjax.centered_clipping(1.0),
        server=optax.trace(0.9),
        **common(m),
    ),
    "chunks, poison, model state": lambda m: dict(
        attack=attacks.sign_flip(),
        poison=lambda batch: (batch[0], -batch[1]),
        aggregator=byzjax.krum(F),
        server=optax.sgd(0.1),
        workers_at_once=8,
        has_model_state=True,
        has_aux=True,
        **common(m),
    ),
    "absent": lambda m: dict(
        worker=byzjax.momentum(0.9),
        attack=attacks.sign_flip(),
        aggregator=byzjax.nnm(byzjax.trimmed_mean(F), F),
        server=optax.sgd(0.1),
        report_workers=True,
        **common(m),
    ),
}


def run(case, m, layout):
    arguments = CASES[case](m)
    stateful = arguments.get("has_model_state", False)
    loss = with_state if stateful else loss_fn
    trainer = byzjax.trainer(loss, layout=layout, **arguments)
    params, batches = params_of(), batches_of(m)
    if layout is not None:
        if layout.params is not None:
            params = {
                k: jax.device_put(x, NamedSharding(layout.mesh, SPECS[k]))
                for k, x in params.items()
            }
        if m % layout.num_worker_shards == 0:
            batches = jax.device_put(batches, layout.batches)
    state = trainer.init(params, jnp.ones(17) if stateful else None)
    step = jax.jit(trainer.step)
    text, extra = None, {}
    if case == "absent":
        extra = {"present": jnp.arange(m) % 5 != 1}
    if layout is not None:
        lowered = step.lower(state, batches, jax.random.key(0), **extra)
        text = lowered.compile().as_text()
    for k in range(2):
        state, metrics = step(state, batches, jax.random.key(k), **extra)
    assert step._cache_size() == 1
    return state, metrics, text


def specs(tree):
    def of_leaf(x):
        entries = [*x.sharding.spec, *[None] * x.ndim][: x.ndim]
        return [list(e) if isinstance(e, tuple) else e for e in entries]

    return [of_leaf(x) for x in jax.tree.leaves(tree)]


def gap(x, y):
    """|x − y|, none between equal infinities."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(x == y, 0, np.abs(x - y))


def steps(writer):
    two = [
        sharding.Layout(mesh(kind, (4, 2), ("workers", "model")), params=SPECS)
        for kind in ("auto", "explicit")
    ]
    for name, case, m, layout in (
        ("flat", "storm alie", 16, layout_of("auto")),
        ("explicit", "informed", 13, layout_of("explicit")),
        ("parts", "chunks, poison, model state", 16, layout_of("explicit")),
        ("absent", "absent", 16, layout_of("auto")),
        ("two axes", "storm alie", 16, two[0]),
        ("two explicit axes", "informed", 14, two[1]),
    ):
        alone = run(case, m, None)
        state, metrics, text = run(case, m, layout)
        kept = state.params, state.model_state, metrics
        want = alone[0].params, alone[0].model_state, alone[1]
        far = max(
            float(np.max(gap(x, y)))
            for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(want), strict=True)
        )
        writer.write(
            name,
            far=far,
            params=specs(state.params),
            workers=specs(state.worker_state),
            server=specs(state.server_state),
            remembered=specs((state.attack_state, state.aggregator_state)),
            shapes=[x.shape for x in jax.tree.leaves(state.worker_state)],
            collectives=collectives(text),
            largest=largest(text),
        )


def scanned(writer):
    """A run of steps as one program, and the same by steps whose state is donated."""
    layout = layout_of("explicit")
    trainer = byzjax.trainer(loss_fn, layout=layout, **CASES["informed"](16))
    batches = jax.device_put(batches_of(16), layout.batches)
    keys = jax.random.split(jax.random.key(0), 2)

    def run(state, batches):
        return jax.lax.scan(lambda s, k: trainer.step(s, batches, k), state, keys)[0]

    at_once = jax.jit(run)(trainer.init(params_of()), batches)
    one_by_one, step = (
        trainer.init(params_of()),
        jax.jit(trainer.step, donate_argnums=0),
    )
    for key in keys:
        one_by_one, _ = step(one_by_one, batches, key)
    pairs = zip(jax.tree.leaves(at_once), jax.tree.leaves(one_by_one), strict=True)
    writer.write("scan", far=max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs))


def chunked(writer):
    """Gradients by chunks of one worker a device, each of which is sent by itself."""
    layout, m, d = layout_of("auto"), 32, 2**16
    batches = jax.ShapeDtypeStruct((m, d), jnp.float32, sharding=layout.batches)
    for name, at_most in (("at once", None), ("chunked", 8), ("uneven", 24)):
        trainer = byzjax.trainer(
            jnp.vdot,
            aggregator=byzjax.median(),
            server=optax.sgd(0.1),
            num_workers=m,
            workers_at_once=at_most,
            layout=layout,
        )
        state = trainer.init(jnp.ones(d))
        args = state, batches, jax.random.key(0)
        program = jax.jit(trainer.step).lower(*args).compile()
        x = jax.device_put(jax.random.normal(args[2], (m, d)), layout.batches)
        params = np.asarray(program(state, x, args[2])[0].params)
        writer.write(
            f"chunks {name}",
            collectives=collectives(program.as_text()),
            floats=program.memory_analysis().temp_size_in_bytes / 4,
            checksum=params.tobytes().hex()[:4096],
        )


def seeds(writer):
    """One run on each of four devices, inside `jax.shard_map`."""
    mesh, count = jax.make_mesh((4,), ("seeds",), devices=jax.devices()[:4]), 4
    draws = jax.random.normal(jax.random.key(7), (count, 9, 2, 5))

    def loss(params, batch):
        return jnp.mean((params[None] - batch) ** 2)

    trainer = byzjax.trainer(
        loss,
        worker=byzjax.storm(),
        attack=attacks.adaptive(byzjax.median(), num_steps=2),
        aggregator=byzjax.nnm(byzjax.median(), F),
        server=byzjax.anytime(optax.sgd(0.1)),
        num_workers=9,
        num_byzantine=F,
        report_workers=True,
    )

    def train(batches):
        # These do not vary by device, and what is made of batches does.
        state = trainer.init(jnp.zeros(5))
        for _ in range(2):
            state, metrics = trainer.step(state, batches, jax.random.key(0))
        given = byzjax.influence(byzjax.median(), batches[:, 0])
        return state.params, metrics, given

    def of_one(batches):
        return jax.tree.map(lambda x: x[None], train(batches[0]))

    spec = PartitionSpec("seeds")
    run = jax.jit(jax.shard_map(of_one, mesh=mesh, in_specs=spec, out_specs=spec))
    got = run(jax.device_put(draws, NamedSharding(mesh, spec)))
    want = [train(x) for x in draws]
    want = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *want)
    far = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - y).max(), got, want)
    writer.write("seeds", far=max(float(x) for x in jax.tree.leaves(far)))


def survivors(writer):
    """`sharding.run` on a mesh of two axes, and the same steps without a layout."""
    m, key, arguments = 12, jax.random.key(7), CASES["storm alie"](12)
    drawn = jax.tree.map(np.asarray, batches_of(m))

    def make_trainer(layout, f):
        return byzjax.trainer(loss_fn, layout=layout, **arguments)

    def make_layout(devices):
        grid = np.array(devices).reshape(4, 2)
        return sharding.Layout(
            jax.sharding.Mesh(grid, ("workers", "model")), params=SPECS
        )

    done = sharding.run(
        make_trainer,
        params_of(),
        lambda step, workers: jax.tree.map(lambda x: x[workers] * (1 + step), drawn),
        key,
        num_workers=m,
        num_byzantine=F,
        num_steps=2,
        make_layout=make_layout,
    )
    alone = make_trainer(None, F)
    state, step = alone.init(params_of()), jax.jit(alone.step)
    for t in range(2):
        batches = jax.tree.map(lambda x, t=t: x * (1 + t), drawn)
        state, _ = step(state, batches, jax.random.fold_in(key, t))
    pairs = zip(
        jax.tree.leaves(done.state.params), jax.tree.leaves(state.params), strict=True
    )
    far = max(float(np.max(gap(x, y))) for x, y in pairs)
    writer.write("survivors", far=far, steps=int(done.step))


def refused(writer):
    eight, four = layout_of("auto"), layout_of("explicit")
    half = jax.make_mesh((4,), ("workers",), devices=jax.devices()[4:])
    elsewhere = jax.device_put(jnp.ones((8, 5)), sharding.Layout(half).batches)
    other = jax.make_mesh((2, 4), ("workers", "model"))
    typed = jax.device_put(jnp.ones((8, 5)), sharding.Layout(other).batches)
    median = byzjax.median()
    for name, layout, x in (
        ("few workers", eight, jnp.ones((7, 5))),
        ("other devices", eight, elsewhere),
        ("another mesh", four, typed),
    ):
        rule = sharding.aggregate(median, layout)
        for way, function in (("", rule.aggregate), (" jit", jax.jit(rule.aggregate))):
            try:
                function(x)
            except ValueError as error:
                writer.write(name + way, message=str(error))
            else:
                writer.write(name + way, message=None)


def main(path):
    strict()
    writer = processes.Writer(path)
    steps(writer)
    scanned(writer)
    chunked(writer)
    seeds(writer)
    survivors(writer)
    refused(writer)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The guard as a link: jitted, in a trainer, around and inside of what, and refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import attacks, rules
from tests.test_guard import KEY, D, M, batches, guarded


def test_jit_is_eager_with_one_trace_and_a_tree_its_matrix():
    traces = []
    rule = guarded(byzjax.nnm(byzjax.median(), 2))

    def update(x, state):
        traces.append(None)
        return rule.update(x, state)

    compiled = jax.jit(update)
    states = [rule.init(jnp.zeros(D))] * 3
    for seed in range(4):
        x = batches(jax.random.key(seed)).at[2].multiply(5.0 if seed == 3 else 1.0)
        tree = {"a": x[:, :8].reshape(M, 2, 4), "b": (x[:, 8], x[:, 9:])}
        one, states[0] = compiled(x, states[0])
        two, states[1] = rule.update(x, states[1])
        three, states[2] = rule.update(tree, states[2])
        np.testing.assert_allclose(one, two, atol=1e-6)
        leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(three)]
        np.testing.assert_allclose(np.concatenate(leaves), one, atol=1e-6)
    assert len(traces) == 1
    for leaves in zip(*map(jax.tree.leaves, states), strict=True):
        for leaf in leaves[1:]:
            np.testing.assert_allclose(leaf, leaves[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_every_width_with_x64(dtype):
    with jax.enable_x64(True):
        rule = guarded(byzjax.centered_clipping(1.0))
        rows = jnp.ones((M, 3), dtype)
        state = rule.init(rows[0])
        out, after = jax.eval_shape(rule.update, rows, state)
    assert (out.shape, out.dtype) == ((3,), dtype)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_in_a_trainer_with_an_attack_of_its_own():
    """Broken hardware while a model is trained; the report names its worker."""
    target = jax.random.normal(jax.random.key(0), (20,))

    def loss_fn(params, batch):
        return jnp.mean((batch @ (params - target)) ** 2)

    layout = byzjax.sharding.Layout(jax.make_mesh((1,), ("workers",)))
    trainer = byzjax.trainer(
        loss_fn,
        attack=attacks.intermittent(attacks.bit_flips(5, period=7), 0.5),
        aggregator=guarded(),
        server=optax.sgd(0.02),
        num_workers=M,
        num_byzantine=1,
        layout=layout,
    )
    state = trainer.init(jnp.zeros(20))

    def step(state, key):
        batches = jax.random.normal(key, (M, 8, 20))
        return trainer.step(state, batches, key)[0], None

    keys = jax.random.split(jax.random.key(1), 150)
    for key in keys[:60]:
        state, _ = jitted(step)(state, key)
    report = byzjax.guard_report(state, layout)
    assert [worker.worker for worker in report.suspects] == [M - 1]
    assert report.step == 60 and report.suspects[0].process == 0
    assert report.suspects[0].devices == (str(jax.devices()[0]),)
    assert report.suspects[0].once_in >= 1e6
    assert "suspected since step" in str(report).splitlines()[1 + M]
    assert float(jnp.abs(state.params - target).max()) < 1


@functools.cache
def jitted(function):
    return jax.jit(function)


def wrappers():
    yield lambda rule: byzjax.nnm(rule, 1)
    yield lambda rule: byzjax.ctma(rule, 1)
    yield lambda rule: byzjax.arc(rule, 1)
    yield lambda rule: byzjax.clipping(rule, 1.0)
    yield lambda rule: byzjax.bucketing(rule, 2)
    yield guarded
    yield lambda rule: rules.premixed("own", rule, lambda g: jnp.eye(g.num_workers))
    yield lambda rule: rules.prescaled("own", rule, lambda g: jnp.ones(g.num_workers))


def test_what_is_around_a_guard_would_hide_the_rows_from_it():
    keyed = byzjax.with_key(guarded(byzjax.bucketing(byzjax.median(), 2)), KEY)
    for wrap in wrappers():
        for rule in (guarded(), keyed):
            with pytest.raises(ValueError, match=r"watches the rows as they come: put"):
                wrap(rule)
    for inside in (byzjax.nnm(byzjax.median(), 1), byzjax.arc(byzjax.mean(), 1)):
        guarded(inside)


def test_a_trainer_refuses_memories_before_a_guard():
    def made(worker, rule):
        return byzjax.trainer(
            lambda params, batch: jnp.mean((params["x"] - batch) ** 2) * params["c"],
            aggregator=rule,
            worker=worker,
            server=optax.sgd(0.1),
            num_workers=M,
        )

    params = {"x": jnp.zeros(3), "c": jnp.ones(())}
    match = r"remembers no gradients with guard\(median\(\), 8\).*got worker=momentum"
    with pytest.raises(ValueError, match=match):
        made(byzjax.momentum(0.9), guarded()).init(params)
    for worker in (byzjax.storm(), optax.adam(0.1), optax.ema(0.9)):
        with pytest.raises(ValueError, match="needs a worker that remembers no grad"):
            made(worker, guarded()).init(params)
    clip = optax.clip_by_global_norm(1.0)
    noise = optax.add_noise(0.1, 0.5, jax.random.key(0))
    for worker in (None, clip, noise, optax.scale_by_schedule(lambda step: 1.0)):
        made(worker, guarded()).init(params)
    made(byzjax.momentum(0.9), byzjax.median()).init(params)


def test_bad_arguments_are_refused():
    median = byzjax.median()
    for make, error, match in (
        (lambda: byzjax.guard("median", 8), TypeError, "aggregator"),
        (lambda: byzjax.guard(median, 3), ValueError, "num_workers >= 4"),
        (lambda: byzjax.guard(median, 8, false_alarms=0), ValueError, "false_alarms"),
        (lambda: byzjax.guard(median, 8, false_alarms=1), ValueError, "< 1"),
        (lambda: byzjax.guard(median, 8, probation=0), ValueError, "probation=0"),
        (lambda: byzjax.guard(median, 8, window=1), ValueError, "window=1"),
        (lambda: guarded().aggregate(jnp.ones((7, 2))), ValueError, "got 7 and"),
        (
            lambda: guarded().aggregate(jnp.ones((M, 2)), weights=jnp.ones(M)),
            ValueError,
            "guard has no weighted form",
        ),
        (lambda: guarded(byzjax.krum(3)), ValueError, "krum needs num_workers"),
        *(
            (lambda rule=rule: guarded(rule), ValueError, "that bears a Byzantine wor")
            for rule in (
                byzjax.mean(),
                byzjax.trimmed_mean(0),
                byzjax.nnm(median, 0),
                byzjax.bucketing(median, 4),
            )
        ),
        (lambda: byzjax.guard_report(()), ValueError, "got 0 in a tuple"),
        (
            lambda: byzjax.guard_report(guarded().init(jnp.ones(2)), "mesh"),
            TypeError,
            "Layout",
        ),
    ):
        with pytest.raises(error, match=match):
            make()

"""Layouts on one device, and what they refuse."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import byzjax
from byzjax import sharding
from byzjax.numerics import devices
from byzjax.sharding.states import padded
from byzjax.testing import gaussian


def one(**arguments):
    return sharding.Layout(jax.make_mesh((1,), ("workers",)), **arguments)


def test_one_device_is_a_mesh_as_well():
    rule = byzjax.ctma(byzjax.median(), 1)
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [9.0, -9.0]])
    got = jax.jit(sharding.aggregate(rule, one()).aggregate)(x)
    assert jnp.array_equal(got, rule.aggregate(x))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"workers": "seeds"}, "workers='seeds'"),
        ({"workers": ()}, r"workers=\(\)"),
        ({"workers": ("workers", "workers")}, "each once"),
        ({"params": {"w": PartitionSpec("workers")}}, "beside the workers"),
        ({"params": PartitionSpec("model")}, "'model'"),
    ],
)
def test_a_layout_needs_the_axes_of_its_mesh(arguments, words):
    with pytest.raises(ValueError, match=words):
        one(**arguments)


def test_a_layout_needs_a_mesh_and_names():
    with pytest.raises(TypeError, match="mesh"):
        sharding.Layout("workers")
    with pytest.raises(TypeError, match="workers=3"):
        one(workers=3)
    with pytest.raises(TypeError, match="PartitionSpec"):
        one(params={"w": "model"})
    manual = jax.make_mesh((1,), ("workers",), axis_types=(AxisType.Auto,))
    assert sharding.Layout(manual) != one()
    assert hash(one(params={"w": PartitionSpec()})) is not None


def test_specs_fit_the_parameters():
    mesh = jax.make_mesh((1, 1), ("workers", "model"))
    layout = sharding.Layout(mesh, params={"w": PartitionSpec(None, "model")})
    rule = sharding.aggregate(byzjax.median(), layout)
    with pytest.raises(ValueError, match="structure"):
        rule.aggregate({"v": jnp.ones((3, 2, 2))})
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        rule.aggregate({"w": jnp.ones((3, 2))})


def test_a_trainer_needs_a_rule_by_itself():
    parts = dict(server=optax.sgd(0.1), num_workers=3)
    chain = optax.chain(byzjax.median(), optax.scale(1.0))
    with pytest.raises(TypeError, match=r"server=optax\.chain"):
        byzjax.trainer(lambda p, b: p, aggregator=chain, layout=one(), **parts)
    with pytest.raises(TypeError, match="layout"):
        byzjax.trainer(lambda p, b: p, aggregator=byzjax.median(), layout=3, **parts)
    with pytest.raises(TypeError, match="layout"):
        sharding.aggregate(byzjax.median(), "workers")
    with pytest.raises(TypeError, match="aggregator"):
        sharding.aggregate(optax.sgd(0.1), one())


def test_a_state_is_kept_at_a_length_that_no_mesh_decides():
    assert padded(1) == 5040
    assert padded(5041) == 10080
    for n in (10**5, 10**6 + 1, 10**7, 10**9):
        assert n <= padded(n) <= 1.15 * n
    assert padded(10**9) % 4096 == 0


def test_a_state_of_another_rule_is_refused():
    layout = one()
    clipping = sharding.aggregate(byzjax.centered_clipping(1.0), layout)
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="state"):
        clipping.update(x, byzjax.centered_clipping(1.0).init(x[0]))
    with pytest.raises(ValueError, match="state"):
        clipping.update(x, optax.EmptyState())


def test_workers_without_a_device_are_absent_rows():
    m, absent = 7, (1, 4)
    layout, rows = one(absent=absent), jnp.asarray(gaussian(m, 5, seed=3))
    present = np.isin(np.arange(m), absent, invert=True)
    parts = dict(
        worker=byzjax.momentum(0.9),
        attack=byzjax.attacks.alie(1.0),  # Of the honest: fewer rows than workers.
        aggregator=byzjax.trimmed_mean(1),
        server=optax.sgd(0.1),
        num_workers=m,
        num_byzantine=2,
        has_aux=True,
    )

    def loss_fn(params, batch):
        return jnp.sum((params - batch) ** 2), batch

    def after(trainer, batches, **extra):
        state = trainer.init(jnp.zeros(5))
        step = jax.jit(trainer.step)
        for t in range(2):
            state, metrics = step(state, batches, jax.random.key(t), **extra)
        return state, metrics

    plain, want = after(byzjax.trainer(loss_fn, **parts), rows, present=present)
    trainer = byzjax.trainer(loss_fn, layout=layout, **parts)
    state, got = after(trainer, rows[present])
    assert jnp.allclose(state.params, plain.params, rtol=1e-6)
    honest = present[: m - 2]
    assert jnp.allclose(
        state.worker_state.momentum, plain.worker_state.momentum[honest], rtol=1e-6
    )
    assert jnp.allclose(got.loss, want.loss, rtol=1e-6)
    assert jnp.array_equal(got.aux[honest], want.aux[honest])
    assert (
        layout.workers_of_process(m) == layout.live(m) == list(np.flatnonzero(present))
    )
    rule = byzjax.median()
    # Who has a device may be absent all the same.
    last = present & (np.arange(m) != 3)
    found = sharding.aggregate(rule, layout).aggregate(
        rows[present], present=last[present]
    )
    assert jnp.allclose(found, rule.aggregate(rows, present=last), rtol=1e-6)
    with pytest.raises(ValueError, match=f"num_workers=7 less {len(absent)} absent"):
        trainer.step(trainer.init(jnp.zeros(5)), rows, jax.random.key(0))


def test_absent_workers_are_workers():
    with pytest.raises(ValueError, match=r"below num_workers=3, got absent=\(3,\)"):
        sharding.aggregate(byzjax.median(), one(absent=(3,))).aggregate(
            jnp.ones((2, 1))
        )
    with pytest.raises(ValueError, match="mda has no form for absent workers"):
        sharding.aggregate(byzjax.mda(1), one(absent=(3,))).aggregate(jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="absent"):
        one(absent=(-1,))
    assert hash(one(absent=(1,))) != hash(one()) and one(absent=(1,)) != one()


def test_a_poison_is_not_cast_on_a_layout():
    layout = sharding.Layout(jax.make_mesh((1,), ("workers",)))
    trainer = byzjax.trainer(
        lambda params, batch: jnp.sum(params * jnp.mean(batch.astype(jnp.float32))),
        poison=lambda batch: batch / 2,
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        num_workers=3,
        num_byzantine=1,
        layout=layout,
    )
    state = trainer.init(jnp.zeros(2))
    dtype = pytest.raises(TypeError, match="poison's batches to keep the dtype int32")
    with jax.numpy_dtype_promotion("standard"), dtype:
        trainer.step(state, jnp.ones((3, 4), jnp.int32), jax.random.key(0))


def test_claims_are_of_the_rows_that_are_given():
    """Of all m, those of the absent among them, they would be of the wrong workers."""
    means = sharding.aggregate(byzjax.mean(), one(absent=(0, 1)))
    rows = jnp.arange(6.0)[:, None]
    assert means.aggregate(rows, weights=jnp.eye(6)[2]) == 2
    for given in (jnp.eye(8)[2], jnp.float32(1)):
        with pytest.raises(ValueError, match=r"weights of shape \(6,\).*\[0, 1\]"):
            means.aggregate(rows, weights=given)
    with pytest.raises(ValueError, match=r"present .*\(6,\), got \(8,\)"):
        means.aggregate(rows, present=jnp.ones(8, bool))


def test_a_rule_is_put_on_a_layout_once():
    """Inside of another layout columns are split already, as here."""
    rule = sharding.aggregate(byzjax.median(), one())
    split = pytest.raises(ValueError, match="in no layout yet")
    with split, devices.split_columns(types.SimpleNamespace()):
        rule.init(jnp.zeros(3))
    with split, devices.split_columns(types.SimpleNamespace()):
        rule.aggregate(jnp.zeros((5, 3)))


def test_a_report_has_no_devices_of_absent_workers():
    layout = one(absent=(0, 2))
    guarded = sharding.aggregate(byzjax.guard(byzjax.median(), 5), layout)
    report = byzjax.guard_report(guarded.init(jnp.zeros(4)), layout)
    assert [worker.process for worker in report.workers] == [None, 0, None, 0, 0]
    assert [len(worker.devices) for worker in report.workers] == [0, 1, 0, 1, 1]


def test_chunks_of_workers_have_leaves_without_entries():
    trainer = byzjax.trainer(
        lambda params, batch: jnp.sum((params["w"] - jnp.mean(batch)) ** 2),
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        num_workers=6,
        layout=one(),
        workers_at_once=2,
    )
    state = trainer.init({"w": jnp.ones(5), "none": jnp.zeros((0, 2))})
    state, _ = trainer.step(state, jnp.zeros((6, 4)), jax.random.key(0))
    np.testing.assert_allclose(state.params["w"], 0.8, rtol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: one(absent=3), "absent to be a tuple of numbers of workers, got 3"),
        (lambda: one(absent=None), "absent to be a tuple .* got None"),
        (lambda: one().workers_of_process(-8), "num_workers >= 1, got .*-8"),
        (lambda: one().workers_of_process(8.0), "num_workers.* got .*8.0"),
        (lambda: one().workers_of_process(8, "0"), "process.* got .*'0'"),
    ],
)
def test_what_is_no_worker_and_no_process(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()

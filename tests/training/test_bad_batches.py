"""One bad batch of an honest worker costs a step of that worker, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

M, F = 11, 2


def loss_fn(params, batch):
    return jnp.mean((params[None] - batch) ** 2)


def with_state(params, model_state, batch):
    return loss_fn(params, batch), {"mean": jnp.mean(batch, axis=0)}


def batches(bad):
    rows = np.random.default_rng(1).normal(size=(M, 4, 3)).astype(np.float32)
    if bad is not None:
        rows[bad, 0, 0] = np.nan
    return jnp.asarray(rows)


WORKERS = {
    "momentum": lambda: byzjax.momentum(0.9),
    "storm": byzjax.storm,
    "optax.trace": lambda: optax.trace(0.9),
    "optax.scale_by_adam": optax.scale_by_adam,
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", WORKERS)
def test_workers_come_back(name):
    """Five honest workers have a bad batch each, at steps of their own."""
    trainer = byzjax.trainer(
        loss_fn,
        worker=WORKERS[name](),
        attack=byzjax.attacks.nan(),
        aggregator=byzjax.trimmed_mean(F + 1),
        server=optax.sgd(0.1),
        num_workers=M,
        num_byzantine=F,
    )
    step, state = jax.jit(trainer.step), trainer.init(jnp.zeros(3))
    for t, key in enumerate(jax.random.split(jax.random.key(0), 8)):
        before = state
        state, _ = step(state, batches(t if t < 5 else None), key)
        if t < 5:  # That worker's state is what it was; all are finite.
            if name == "storm":  # Whose average belongs to where the worker was.
                assert state.worker_state.count[t] == 0
                continue
            for old, new in zip(
                jax.tree.leaves(before.worker_state),
                jax.tree.leaves(state.worker_state),
                strict=True,
            ):
                np.testing.assert_array_equal(old[t], new[t])
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state.worker_state))
    assert jnp.all(jnp.isfinite(state.params))


def test_storm_has_no_bias_after_a_bad_batch():
    """Without noise d is the gradient; a stale d would be corrected by one step of two.

    As 1/t forgets, that would show for as many steps as came before.
    """
    trainer = byzjax.trainer(
        lambda w, batch: jnp.sum(w**2) / 2 * (1 + jnp.sum(batch)),
        worker=byzjax.storm(),
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        num_workers=3,
    )
    step, state = jax.jit(trainer.step), trainer.init(jnp.array([10.0]))
    for t, key in enumerate(jax.random.split(jax.random.key(0), 20)):
        at = state.params
        batch = jnp.zeros((3, 1)).at[0].set(jnp.nan if t == 9 else 0.0)
        state, _ = step(state, batch, key)
        if t > 9:
            momenta = state.worker_state.momentum
            np.testing.assert_allclose(momenta, np.tile(at, (3, 1)), rtol=1e-5)


def test_the_model_state_stays():
    """Even where its rule lets something through."""
    trainer = byzjax.trainer(
        with_state,
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        num_workers=M,
        has_model_state=True,
        model_state_aggregator=byzjax.mean(),
    )
    state = trainer.init(jnp.zeros(3), {"mean": jnp.ones(3)})
    after, _ = trainer.step(state, batches(0), jax.random.key(0))
    np.testing.assert_array_equal(after.model_state["mean"], 1)


@pytest.mark.parametrize(
    "attack",
    [byzjax.attacks.mimic(warmup=5), byzjax.attacks.free_rider("stale")],
    ids=["mimic", "free_rider"],
)
def test_attacks_go_on(attack):
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(M, 3)), jnp.float32)
    state = attack.init(jnp.zeros(3))
    for bad in (False, True, False):
        stack = rows.at[0, 0].set(jnp.nan) if bad else rows
        before = state
        sent, state = attack.update(stack, state, num_byzantine=F)
        if bad:
            for old, new in zip(*map(jax.tree.leaves, (before, state)), strict=True):
                np.testing.assert_array_equal(old, new)
    assert jnp.all(jnp.isfinite(sent))


def test_memories_are_of_whole_rounds():
    """A window of ten keeps two rounds of four, not two and the half of a third."""
    rule = byzjax.clipped_clustering(window=10)
    state = rule.init(jnp.zeros(2))
    update = jax.jit(rule.update)
    seen = []
    for length in (1.0, 2.0, 3.0, 50.0, 5.0):
        rows = jnp.asarray([[length, 0.0]] * 4)
        _, state = update(rows, state)
        seen.append(np.sort(np.asarray(state.norms)[: int(state.count)]))
    assert [len(x) for x in seen] == [4, 8, 8, 8, 8]
    np.testing.assert_allclose(seen[-1], [5.0] * 4 + [50.0] * 4)
    _, state = update(jnp.ones((10, 2)), state)
    assert int(state.count) == 10


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("worker", ["storm", "multi_steps", "adam"])
def test_a_worker_that_comes_back_sends_what_the_others_send(worker):
    """No noise, all alike: whoever missed steps is as near to the aggregate again."""
    transform = {
        "storm": byzjax.storm(),
        "multi_steps": optax.MultiSteps(optax.identity(), 2).gradient_transformation(),
        "adam": optax.scale_by_adam(),
    }[worker]
    trainer = byzjax.trainer(
        lambda p, batch: jnp.sum((p - 1) ** 2) / 2 * jnp.mean(batch),
        worker=transform,
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        num_workers=5,
        report_workers=True,
    )
    state, step = trainer.init(jnp.zeros(2)), jax.jit(trainer.step)
    for i in range(12):
        present = jnp.ones(5, bool).at[4].set(not 2 <= i < 7)
        batches = jnp.ones((5, 1)).at[3].set(1e25 if i == 3 and worker == "adam" else 1)
        state, metrics = step(state, batches, jax.random.key(i), present=present)
    atol = 0.2 if worker == "adam" else 0.05  # Whose moments are of other steps.
    np.testing.assert_allclose(metrics.workers.distance, 0, atol=atol)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.worker_state))
    assert state.params[0] > 0.3

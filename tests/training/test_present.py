"""A step of the workers who are there: the rest leave no trace, and come back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

M, F, D = 7, 2, 5


def loss_fn(params, batch):
    return jnp.mean((params[None] - batch) ** 2)


def made(**changes):
    arguments = {
        "worker": byzjax.momentum(0.9),
        "attack": byzjax.attacks.alie(),
        "aggregator": byzjax.nnm(byzjax.trimmed_mean(F), F),
        "server": optax.sgd(0.1),
        "num_workers": M,
        "num_byzantine": F,
    }
    return byzjax.trainer(loss_fn, **{**arguments, **changes})


def batches(seed):
    rows = np.random.default_rng(seed).normal(size=(M, 4, D))
    return jnp.asarray(rows.astype(np.float32))


KEY = jax.random.key(0)


def test_absent_workers_leave_no_trace():
    """Whatever their batches hold: the same step as of a trainer without them."""
    gone = 1  # An honest one.
    few = made(num_workers=M - 1)
    all_ = made()
    state, fewer = all_.init(jnp.zeros(D)), few.init(jnp.zeros(D))
    step, step_few = jax.jit(all_.step), jax.jit(few.step)
    present = jnp.arange(M) != gone
    for seed in range(3):
        data = batches(seed)
        want, want_metrics = step_few(fewer, jnp.delete(data, gone, axis=0), KEY)
        got, metrics = step(state, data.at[gone].set(jnp.nan), KEY, present=present)
        # To what its statistics tell an attacker, who sees one honest row twice.
        np.testing.assert_allclose(got.params, want.params, atol=0.15)
        np.testing.assert_allclose(metrics.loss, want_metrics.loss, rtol=0.05)
        assert metrics.enough and want_metrics.enough is None
        state, fewer = got, want
    kept = jax.tree.leaves(state.worker_state)[0]
    np.testing.assert_array_equal(kept[gone], np.zeros(D))
    after, _ = step(state, batches(9), KEY, present=jnp.ones(M, bool))
    assert np.any(np.asarray(jax.tree.leaves(after.worker_state)[0][gone]) != 0)


def test_without_attackers_it_is_exactly_the_smaller_run():
    few = made(num_workers=M - 2, num_byzantine=0, attack=None)
    all_ = made(num_byzantine=0, attack=None, report_workers=True)
    present = ~np.isin(np.arange(M), [0, 4])
    data = batches(3)
    want, want_metrics = jax.jit(few.step)(few.init(jnp.zeros(D)), data[present], KEY)
    got, metrics = jax.jit(all_.step)(
        all_.init(jnp.zeros(D)), data, KEY, present=jnp.asarray(present)
    )
    np.testing.assert_allclose(got.params, want.params, atol=1e-6)
    for name in ("loss", "aggregate_norm", "honest_distance"):
        one, other = getattr(metrics, name), getattr(want_metrics, name)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(metrics.workers.influence[jnp.asarray([0, 4])], 0)
    assert np.all(np.isinf(metrics.workers.distance[jnp.asarray([0, 4])]))
    np.testing.assert_allclose(metrics.workers.influence.sum(), 1, rtol=1e-5)


def test_too_few_are_reported():
    trainer = made()
    state = trainer.init(jnp.ones(D))
    step = jax.jit(trainer.step)
    after, metrics = step(state, batches(0), KEY, present=jnp.arange(M) < 4)
    assert not metrics.enough
    np.testing.assert_array_equal(after.params, state.params)
    with pytest.raises(ValueError, match="absent of 7"):
        trainer.step(state, batches(0), KEY, present=np.arange(M) < 4)
    with pytest.raises(TypeError, match="needs present to be bools"):
        trainer.step(state, batches(0), KEY, present=np.ones(M))


SERVERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "decay": optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1)),
    "anytime": byzjax.anytime(optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", SERVERS)
def test_with_too_few_nothing_moves(name):
    """Not by what the server remembers either, and the next step goes on from there."""
    key = jax.random.key(1)
    rule = byzjax.with_key(byzjax.bucketing(byzjax.trimmed_mean(1), 1), key)
    trainer = made(server=SERVERS[name], aggregator=rule, attack=None, num_byzantine=0)
    step = jax.jit(trainer.step)
    everybody = jnp.ones(M, bool)
    before = step(trainer.init(jnp.ones(D)), batches(0), KEY, present=everybody)[0]
    after, metrics = step(before, batches(1), KEY, present=jnp.arange(M) < 2)
    assert not metrics.enough
    for part in ("params", "server_state", "aggregator_state"):
        for x, y in zip(
            jax.tree.leaves(getattr(after, part)),
            jax.tree.leaves(getattr(before, part)),
            strict=True,
        ):
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            np.testing.assert_array_equal(x, y)
    moved, metrics = step(after, batches(2), KEY, present=everybody)
    assert metrics.enough
    assert not np.array_equal(moved.params, after.params)


def test_model_states_of_absent_workers_do_not_count():
    def with_mean(params, model_state, batch):
        del model_state
        return loss_fn(params, batch), batch.mean(0)

    trainer = byzjax.trainer(
        with_mean,
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        num_workers=3,
        has_model_state=True,
    )
    state = trainer.init(jnp.zeros(D), jnp.zeros(D))
    data = batches(0)[:3]
    present = jnp.asarray([True, False, False])
    after, _ = jax.jit(trainer.step)(state, data, KEY, present=present)
    np.testing.assert_allclose(after.model_state, data[0].mean(0), rtol=1e-5)


def test_what_an_absent_worker_holds_is_in_no_model_state():
    """Nor by way of a Byzantine one, who sends a copy of an honest worker's."""

    def with_mean(params, model_state, batch):
        return loss_fn(params, batch), batch.mean(0)

    trainer = byzjax.trainer(
        with_mean,
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        attack=byzjax.attacks.alie(),
        num_workers=4,
        num_byzantine=1,
        has_model_state=True,
        model_state_aggregator=byzjax.nnm(byzjax.median(), 1),
    )
    state = trainer.init(jnp.zeros(D), jnp.zeros(D))
    step = jax.jit(lambda b, p: trainer.step(state, b, KEY, present=p))
    data, present = batches(0)[:4], jnp.arange(4) > 0
    one, metrics = step(data, present)
    other, _ = step(data.at[0].set(1e6), present)
    np.testing.assert_array_equal(one.model_state, other.model_state)
    assert metrics.enough
    _, metrics = step(data, jnp.arange(4) > 1)  # Enough for the median alone.
    assert not metrics.enough


def test_a_chain_does_not_say_whether_enough_are_there():
    trainer = made(
        aggregator=optax.chain(byzjax.nnm(byzjax.median(), 3), optax.clip(1))
    )
    state = trainer.init(jnp.zeros(D))
    _, metrics = jax.jit(trainer.step)(
        state, batches(0), KEY, present=jnp.ones(M, bool)
    )
    assert metrics.enough is None
    with pytest.raises(TypeError, match="did you mean present"):
        trainer.step(state, batches(0), KEY, presents=np.ones(M, bool))

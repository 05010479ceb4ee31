"""Who was distrusted: each worker's influence and distance, from the step itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax.training import phases
from tests.training.least_squares import (
    BATCHES,
    KEYS,
    PARAMS,
    STEPS,
    F,
    H,
    M,
    at,
    close,
    make,
    scanned,
)


def replayed(monkeypatch, **setting):
    """The messages and aggregates of every step, and the metrics."""
    seen, forged, served = [], phases.forged, phases.served

    def seen_forged(*args):
        out = forged(*args)
        seen.append({"rows": np.asarray(out[0]), "state": args[3]})
        return out

    def seen_served(setup, direction, state, enough):
        seen[-1]["direction"] = np.asarray(direction)
        seen[-1]["rule_state"] = state.aggregator_state
        return served(setup, direction, state, enough)

    monkeypatch.setattr(phases, "forged", seen_forged)
    monkeypatch.setattr(phases, "served", seen_served)
    trainer = make(report_workers=True, **setting)
    state, metrics = trainer.init(PARAMS), []
    for t in range(2):
        state, of_step = trainer.step(state, at(t), KEYS[t])
        metrics.append(of_step.workers)
    return seen, metrics


def test_of_linear_weights_the_weight(monkeypatch):
    weights = jnp.asarray([1.0, 2.0, 3.0, 4.0, 0.0, 5.0, 6.0])

    def update(updates, state, params=None, **extra):
        return jnp.dot(weights, updates, precision="highest"), state

    own = byzjax.Aggregator(optax.init_empty_state, update)
    seen, metrics = replayed(monkeypatch, aggregator=own)
    for step, of_workers in zip(seen, metrics, strict=True):
        np.testing.assert_allclose(of_workers.influence, weights, rtol=1e-6)
        gaps = step["rows"] - step["direction"]
        np.testing.assert_allclose(
            of_workers.distance, np.linalg.norm(gaps, axis=1), rtol=1e-5
        )


ATTACK = byzjax.attacks.constant(1e4)


@pytest.mark.parametrize(
    "rule",
    [byzjax.krum(F), byzjax.trimmed_mean(F), byzjax.ctma(byzjax.median(), F)],
    ids=repr,
)
def test_who_is_left_out_has_none(rule):
    _, metrics = scanned(make(aggregator=rule, attack=ATTACK, report_workers=True))
    influence, distance = metrics.workers
    assert influence.shape == distance.shape == (STEPS, M)
    np.testing.assert_array_equal(influence[:, H:], 0)
    np.testing.assert_allclose(influence[:, :H].sum(axis=1), 1, rtol=1e-5)
    assert (distance[:, H:] > 10 * distance[:, :H].max()).all()


def test_the_mean_trusts_all_and_not_what_is_not_finite():
    def forge(honest, own, state, *, num_byzantine, **extra):
        return jnp.full((num_byzantine, *honest.shape[1:]), jnp.inf), state

    attack = byzjax.Attack(forge)
    trainer = make(aggregator=byzjax.median(), attack=attack, report_workers=True)
    _, metrics = scanned(trainer)
    assert np.all(np.isinf(metrics.workers.distance[:, H:]))
    assert np.all(metrics.workers.influence[:, H:] == 0)
    _, metrics = scanned(make(aggregator=byzjax.mean(), report_workers=True))
    np.testing.assert_allclose(metrics.workers.influence, 1 / M, rtol=1e-5)


SETTINGS = {
    "stateful": dict(aggregator=byzjax.centered_clipping(1.0)),
    "keys": dict(aggregator=byzjax.bucketing(byzjax.median(), 2)),
    "own keys": dict(
        aggregator=byzjax.with_key(byzjax.bucketing(byzjax.median(), 2), KEYS[3])
    ),
    "chunks": dict(workers_at_once=2),
    "chain": dict(
        aggregator=optax.chain(
            byzjax.per_worker(optax.clip_by_global_norm(1.0), M), byzjax.median()
        )
    ),
    "honest only": dict(attack=byzjax.attacks.alie()),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_training_goes_on_as_without(name):
    setting = SETTINGS[name]
    state, metrics = scanned(make(report_workers=True, **setting))
    wanted, plain = scanned(make(**setting))
    assert plain.workers is None

    def data(tree):
        def of_leaf(x):
            is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            return jax.random.key_data(x) if is_key else x

        return jax.tree.map(of_leaf, tree)

    close(data(state), data(wanted))
    close(metrics._replace(workers=None), plain)
    assert np.all(np.isfinite(metrics.workers.influence))


def test_is_the_influence_of_the_messages(monkeypatch):
    for rule, more in (
        (byzjax.centered_clipping(0.5), {}),
        (byzjax.bucketing(byzjax.median(), 2), "key"),
    ):
        keys = jax.random.split(KEYS[1], 4)
        given = {"key": keys[1]} if more else {}
        with monkeypatch.context() as patch:
            seen, metrics = replayed(patch, aggregator=rule)
        wanted = byzjax.influence(
            rule, seen[1]["rows"], state=seen[1]["rule_state"], **given
        )
        np.testing.assert_allclose(metrics[1].influence, wanted, atol=1e-6)


def test_of_a_rule_that_is_chosen_in_the_program():
    rules = byzjax.krum(F), byzjax.ctma(byzjax.mean(), F), byzjax.trimmed_mean(F)

    def update(updates, number, params=None, **extra):
        branches = [rule.aggregate for rule in rules]
        return jax.lax.switch(number, branches, updates), number

    chosen = byzjax.Aggregator(lambda params: jnp.int32(1), update)
    got = scanned(make(aggregator=chosen, report_workers=True))[1].workers
    wanted = scanned(make(aggregator=rules[1], report_workers=True))[1].workers
    close(got, wanted)


def test_over_seeds():
    trainer = make(attack=byzjax.attacks.gaussian(3.0), report_workers=True)
    keys = jnp.stack([KEYS[0], KEYS[1]])
    state = trainer.init(PARAMS)
    step = jax.jit(jax.vmap(lambda key: trainer.step(state, at(0), key)[1].workers))
    each, one = step(keys), jax.jit(trainer.step)(state, at(0), keys[1])[1].workers
    assert each.influence.shape == (2, M)
    np.testing.assert_allclose(each.influence[1], one.influence, atol=1e-6)
    np.testing.assert_allclose(each.distance[1], one.distance, rtol=1e-5)


def test_not_asked_for_it_is_not_in_the_program(monkeypatch):
    """Neither the reverse pass nor the distances: a step as long as it ever was."""

    def lines(**setting):
        trainer = make(**setting)
        step = jax.make_jaxpr(lambda s: trainer.step(s, at(0, BATCHES), KEYS[0]))
        return str(step(trainer.init(PARAMS))).splitlines()

    plain, off = lines(), lines(report_workers=False)
    assert plain == off and len(lines(report_workers=True)) > len(plain)

    def asked(*_):
        raise AssertionError("the rule was differentiated")

    monkeypatch.setattr(phases, "with_shares", asked)
    assert lines() == plain
    with pytest.raises(AssertionError, match="was differentiated"):
        lines(report_workers=True)


def test_half_precision_and_wrong_switches():
    trainer = make(report_workers=True, aggregator=byzjax.trimmed_mean(F))
    params = PARAMS.astype(jnp.bfloat16)
    batches = jax.tree.map(lambda x: x[0].astype(jnp.bfloat16), BATCHES)
    _, metrics = jax.jit(trainer.step)(trainer.init(params), batches, KEYS[0])
    assert metrics.workers.influence.dtype == jnp.float32
    np.testing.assert_allclose(metrics.workers.influence.sum(), 1, rtol=1e-2)
    with pytest.raises(TypeError, match=r"^trainer needs report_workers to be True or"):
        make(report_workers="yes")

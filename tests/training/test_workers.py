"""`byzjax.trainer`: who computes what, what the rule is given, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax.training import workers
from tests.training.least_squares import (
    AVERAGE,
    BATCHES,
    KEYS,
    PARAMS,
    START,
    STEPS,
    B,
    D,
    F,
    H,
    M,
    at,
    close,
    gradient,
    loss_fn,
    make,
    scanned,
    with_average,
)

# --- who computes what ----------------------------------------------------------------

HONEST_ONLY = {
    "empire": byzjax.attacks.ipm(0.5),
    "little": byzjax.attacks.alie(1.0),
    "flip of the mean": byzjax.attacks.sign_flip(of="mean"),
    "gaussian": byzjax.attacks.gaussian(1.0),
    "nan": byzjax.attacks.nan(),
    "infinity": byzjax.attacks.infinity(),
}


@pytest.mark.parametrize("case", HONEST_ONLY)
def test_batches_of_attackers_that_need_none_are_not_touched(case):
    trainer = make(attack=HONEST_ONLY[case])
    absent = jax.tree.map(lambda x: x.at[:, H:].set(jnp.nan), BATCHES)
    state, metrics = scanned(trainer)
    close((state, metrics), scanned(trainer, batches=absent), 0, 0)
    assert np.all(np.isfinite(state.params))
    assert state.worker_state.momentum.shape == (H, D)


def flops(trainer, batches):
    state = trainer.init(jnp.zeros((40, 40)))
    compiled = jax.jit(trainer.step).lower(state, batches, KEYS[0]).compile()
    return compiled.cost_analysis()["flops"]


def test_attacks_on_honest_messages_cost_no_byzantine_gradients():
    def deep(weights, batch):
        for _ in range(6):
            batch = jnp.tanh(batch @ weights)
        return jnp.mean(batch)

    batches = jnp.ones((M, 32, 40))
    work = {
        name: flops(make(loss_fn=deep, worker=None, attack=attack), batches)
        for name, attack in (
            ("none", None),
            ("own", byzjax.attacks.sign_flip()),
            ("mean", byzjax.attacks.ipm(0.5)),
        )
    }
    assert work["mean"] < 0.8 * work["own"], work  # 5 of 7 gradients.
    assert work["own"] < 1.1 * work["none"], work


def test_attackers_who_follow_the_protocol_send_what_they_computed():
    state, _ = scanned(make(attack=None))
    honest, _ = scanned(make(attack=None, num_byzantine=0))
    close(state.params, honest.params, 0, 0)
    assert state.worker_state.momentum.shape == (M, D)


def test_workers_in_chunks_equal_all_at_once():
    changed = dict(worker=byzjax.storm(), attack=byzjax.attacks.gaussian(1.0))
    want = scanned(make(**changed))
    for chunk in (2, 100):
        close(scanned(make(**changed, workers_at_once=chunk)), want)


def test_chunks_may_hold_what_is_of_any_shape_or_kind():
    def work(one):
        image, key, label, none = one
        noise = jax.random.normal(key, (2, 3))
        labels = {"label": label, "none": none.T, "number": 2.0}
        return {"out": image @ noise, "key": key} | labels

    keys = jax.random.split(jax.random.key(0), 5)
    operands = jnp.ones((5, 4, 2)), keys, jnp.arange(5), jnp.ones((5, 0, 3))
    want, got = (
        workers.map_workers(work, operands, 5, at_most=most) for most in (None, 2)
    )
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
    assert (got.pop("key") == want.pop("key")).all()
    close(got, want)


# --- poisoned data --------------------------------------------------------------------


def test_poison_changes_the_batches_of_the_byzantine_workers_only():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(STEPS, M, B, D)).astype(np.float32)
    labels = rng.integers(0, 10, size=(STEPS, M, B)).astype(np.int32)
    batches = jnp.asarray(inputs), jnp.asarray(labels)

    def cross_entropy(weights, batch):
        inputs, labels = batch
        logits = jnp.dot(inputs, weights, precision="highest")
        return jnp.mean(
            optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        )

    weights = jnp.zeros((D, 10))
    plain = dict(loss_fn=cross_entropy, attack=None, aggregator=byzjax.mean())
    poisoned = make(**plain, poison=byzjax.poisoning.label_flip(10))
    by_hand = batches[0], batches[1].at[:, H:].set(9 - batches[1][:, H:])
    want = scanned(make(**plain), weights, by_hand)
    close(scanned(poisoned, weights, batches), want)
    # With nobody to poison it has no effect.
    nobody = dict(num_byzantine=0)
    close(
        scanned(make(**plain | nobody, poison=poisoned_badly), weights, batches),
        scanned(make(**plain | nobody), weights, batches),
    )


def poisoned_badly(batch):
    return jax.tree.map(lambda x: x * jnp.zeros_like(x), batch)


# --- what the rule is given -----------------------------------------------------------


def test_extra_arguments_reach_the_rule():
    trainer = make(worker=None, attack=None, aggregator=byzjax.mean())
    weights = jnp.arange(1.0, M + 1)
    state, _ = jax.jit(trainer.step)(
        trainer.init(PARAMS), at(0), KEYS[0], weights=weights
    )
    rows = np.array([gradient(START, 0, i) for i in range(M)])
    want = START - 0.1 * np.average(rows, axis=0, weights=np.arange(1, M + 1))
    close(state.params, want)
    trusting = make(worker=None, attack=None, aggregator=byzjax.fltrust())
    trusted = jnp.asarray(rows[0], jnp.float32)
    state, metrics = jax.jit(trusting.step)(
        trusting.init(PARAMS), at(0), KEYS[0], reference=trusted
    )
    assert np.all(np.isfinite(state.params)) and metrics.aggregate_norm > 0


def test_a_rule_that_draws_uses_the_key_of_the_step():
    trainer = make(aggregator=byzjax.bucketing(byzjax.median(), 3))
    step, state = jax.jit(trainer.step), trainer.init(PARAMS)
    outs = [step(state, at(0), key)[0].params for key in (*KEYS, KEYS[0])]
    np.testing.assert_array_equal(outs[0], outs[-1])
    assert len(np.unique(np.array(outs)[:, 0])) > 3


def test_a_rule_with_a_key_of_its_own_does_not():
    rule = byzjax.with_key(byzjax.bucketing(byzjax.median(), 3), jax.random.key(7))
    trainer = make(aggregator=rule)
    step, state = jax.jit(trainer.step), trainer.init(PARAMS)
    outs = [step(state, at(0), key)[0].params for key in KEYS]
    assert len(np.unique(np.array(outs)[:, 0])) == 1
    first, _ = step(state, at(0), KEYS[0])
    moved = state._replace(aggregator_state=first.aggregator_state)
    assert not np.allclose(step(moved, at(0), KEYS[0])[0].params, first.params)


# --- bad input ------------------------------------------------------------------------

NOT_LINKS = (byzjax.median, "median", object())


@pytest.mark.parametrize(
    "changed, error, match",
    [
        (
            dict(num_byzantine=M),
            ValueError,
            r"num_byzantine < num_workers, got .*=7 and",
        ),
        (dict(num_byzantine=-1), ValueError, r"num_byzantine >= 0, got .*=-1"),
        (dict(num_byzantine=1.0), TypeError, r"num_byzantine to be a static int"),
        (dict(num_workers=0), ValueError, r"num_workers >= 1, got num_workers=0"),
        (dict(num_workers=True), TypeError, r"num_workers to be a static int"),
        (dict(workers_at_once=0), ValueError, r"workers_at_once >= 1, got .*=0"),
        (dict(max_grad_norm=0.0), ValueError, r"finite max_grad_norm > 0, got .*=0\.0"),
        (dict(max_grad_norm=-1), ValueError, r"finite max_grad_norm > 0, got .*=-1"),
        (dict(max_grad_norm=np.nan), ValueError, r"max_grad_norm > 0, got .*=nan"),
        (dict(max_grad_norm="2"), TypeError, r"max_grad_norm to be a number, got '2'"),
        (dict(attack=byzjax.median()), TypeError, r"attack to be a byzjax.Attack, got"),
        (dict(attack=byzjax.attacks.alie), TypeError, r"attack to be a byzjax.Attack"),
        (dict(aggregator=None), TypeError, r"aggregator to be an optax.*, got None"),
        (dict(server=None), TypeError, r"server to be an optax.*, got None"),
        (
            dict(poison=byzjax.poisoning.label_flip(10), attack=byzjax.attacks.ipm()),
            ValueError,
            r"poison to have an effect, got one that reads the honest messages only",
        ),
        (
            dict(model_state_attack=byzjax.attacks.nan()),
            ValueError,
            r"has_model_state=True for a model_state_aggregator or model_state_attack",
        ),
        (
            dict(model_state_aggregator=byzjax.median()),
            ValueError,
            r"has_model_state=True for a .*, got has_model_state=False",
        ),
        *(
            ({name: bad}, TypeError, rf"{name} to be an optax\.Gradient")
            for name in ("aggregator", "server", "worker", "model_state_aggregator")
            for bad in NOT_LINKS
        ),
    ],
)
def test_the_factory_refuses(changed, error, match):
    with pytest.raises(error, match=rf"^trainer needs .*{match}"):
        make(**changed)


def refused(match, trainer, state, batches, key=KEYS[0], error=ValueError):
    """At trace time already."""
    with pytest.raises(error, match=match):
        jax.eval_shape(trainer.step, state, batches, key)


def test_batches_of_another_number_of_workers_are_refused():
    trainer = make()
    state, (inputs, targets) = trainer.init(PARAMS), at(0)
    match = r"trainer.step needs batches with num_workers=7 .*, got shape \(6, 4, 3\)"
    refused(match, trainer, state, (inputs[1:], targets))
    refused(r"got shape \(4,\) at \[1\]", trainer, state, (inputs, targets[0]))
    refused(r"got shape \(\) at \['x'\]", trainer, state, {"x": 1.0})
    refused(r"batches of arrays, got \(\)", trainer, state, ())


def test_a_missing_key_is_refused():
    trainer = make()
    state = trainer.init(PARAMS)
    with pytest.raises(TypeError, match="key"):
        trainer.step(state, at(0))
    with pytest.raises(ValueError, match=r"trainer.step needs a key, got key=None"):
        trainer.step(state, at(0), None)
    with pytest.raises(TypeError, match=r"trainer.step needs a key made by jax.random"):
        trainer.step(state, at(0), 0)


def test_links_in_the_wrong_places_are_refused():
    """None of these may broadcast its way into the parameters."""
    with jax.numpy_rank_promotion("allow"):
        trainer = make(attack=None, aggregator=optax.sgd(0.1))
        match = r"trainer.step needs the aggregate to have the structure and shapes"
        refused(match, trainer, trainer.init(PARAMS), at(0))
    for keyword in ("worker", "server"):
        for wrong in (byzjax.median(), byzjax.attacks.ipm(num_byzantine=F)):
            match = rf"^trainer needs {keyword} to read one tree, .*, not a stack, got"
            with pytest.raises(TypeError, match=match):
                make(**{keyword: wrong})


def test_an_attack_with_another_number_of_its_own_is_refused():
    attack = byzjax.attacks.sign_flip(num_byzantine=F + 1)
    match = r"trainer needs one number of attackers, got .*=2 and attack's .*=3"
    with pytest.raises(ValueError, match=match):
        make(attack=attack)
    match = r"an attack needs one num_byzantine, got .*=3 in .*=2 passed"
    with pytest.raises(ValueError, match=match):
        attack.apply(jnp.ones((5, 2)), num_byzantine=F)


def test_too_many_attackers_for_the_rule_are_refused():
    trainer = make(aggregator=byzjax.krum(3))
    match = r"krum needs num_workers >= .*, got num_workers=7 and num_byzantine=3"
    refused(match, trainer, trainer.init(PARAMS), at(0))


def test_model_state_must_be_announced_and_keep_its_shape():
    with pytest.raises(
        ValueError, match=r"has_model_state=False and model_state=a tre"
    ):
        make().init(PARAMS, AVERAGE)
    announced = make(loss_fn=with_average, has_model_state=True)
    with pytest.raises(ValueError, match=r"has_model_state=True and model_state=None"):
        announced.init(PARAMS)

    def changing(change):
        def changed(params, average, batch):
            loss, new = with_average(params, average, batch)
            return loss, change(new)

        trainer = make(loss_fn=changed, has_model_state=True)
        return trainer, trainer.init(PARAMS, AVERAGE), at(0)

    match = r"loss_fn's new model state to have .* \{'mean': \(3,\)\}, got "
    refused(match, *changing(lambda new: {"batch_stats": new}))
    refused(match, *changing(lambda new: {"mean": new["mean"][None]}))


def test_integers_as_model_state_are_refused():
    def counting(params, state, batch):
        return loss_fn(params, batch), {"count": state["count"] + 1}

    trainer = make(loss_fn=counting, has_model_state=True)
    state = trainer.init(PARAMS, {"count": jnp.int32(0)})
    match = r"floating-point leaves, got int32 at \['count'\]"
    refused(match, trainer, state, at(0), error=TypeError)


def test_workers_that_draw_noise_draw_their_own():
    noisy = optax.add_noise(eta=1.0, gamma=0.0, key=jax.random.key(0))
    trainer = make(worker=noisy, aggregator=byzjax.median(), attack=None)
    keys = jax.random.key_data(trainer.init(PARAMS).worker_state.rng_key)
    assert len(np.unique(keys, axis=0)) == len(keys) > 1

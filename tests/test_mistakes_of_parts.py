"""Mistakes with attacks, trainers and rules of one's own, and what they are called."""

import jax
import jax.numpy as jnp
import optax
import pytest

import byzjax
from byzjax import rules
from tests.training import least_squares


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_an_attack_sends_as_many_messages_as_there_are_attackers(rows):
    def forge(honest, own, state, *, num_byzantine, key=None, params=None):
        return -honest[:rows], state

    attack = byzjax.Attack(forge)
    match = rf"got num_byzantine=2 and leaves of \[\({rows}, 6\)\]"
    with pytest.raises(ValueError, match=match):
        attack.apply(jnp.ones((9, 6)), num_byzantine=2)


def test_multi_steps_say_how_they_are_a_transformation():
    steps = optax.MultiSteps(optax.sgd(0.1), 2)
    for keyword in ("worker", "server"):
        match = rf"{keyword}=optax.MultiSteps\(\.\.\.\)\.gradient_transformation\(\)$"
        with pytest.raises(TypeError, match=match):
            least_squares.make(**{keyword: steps})
        least_squares.make(**{keyword: steps.gradient_transformation()})


def test_a_step_takes_a_state_and_not_parameters():
    trainer = least_squares.make()
    with pytest.raises(TypeError, match=r"needs a state of trainer\.init\(params\)"):
        trainer.step({"w": jnp.ones(3)}, (), jax.random.key(0))


def test_a_base_of_buckets_is_told_of_workers():
    rule = byzjax.bucketing(byzjax.krum(4), 2)
    match = "bucketing of num_workers=17 leaves its rule 9 rows, and krum needs"
    with pytest.raises(ValueError, match=match):
        rule.aggregate(jnp.ones((17, 3)), key=jax.random.key(0))


def test_a_guard_takes_a_list_of_equal_layers_beside_its_params():
    layers = [jnp.ones((3, 3))] * 2
    stacked = [jnp.ones((8, 3, 3))] * 2
    watch = byzjax.guard(byzjax.median(), 8)
    update, _ = watch.update(stacked, watch.init(layers), layers)
    assert jax.tree.map(jnp.shape, update) == [(3, 3)] * 2


def test_rules_of_ones_own_are_shown_without_addresses():
    def middle(rows):
        return rules.middle(rows)

    lifted = rules.coordinatewise("own", middle)
    assert repr(byzjax.nnm(lifted, 1)) == "nnm(rules.coordinatewise('own', middle), 1)"
    attack = byzjax.Attack(lambda honest, own, state, **_: (honest, state))
    assert repr(attack) == "<byzjax.Attack>"


def test_what_a_lift_is_given_returns_is_of_its_shape():
    rows = jnp.ones((5, 3))
    mixed = rules.premixed("own", byzjax.median(), lambda geometry: jnp.ones((2, 5)))
    scaled = rules.prescaled("own", byzjax.krum(1), lambda geometry: jnp.ones(4))
    for rule, shapes in (
        (mixed, r"of shape \(5, 5\), got shape \(2, 5\)"),
        (scaled, r"of shape \(5,\), got shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=shapes):
            rule.aggregate(rows)


# --- states and keywords of a step ----------------------------------------------------

BATCHES, PARAMS = jnp.zeros((5, 1)), jnp.zeros(2)


def made(worker=None, num_workers=5, server=None, aggregator=None, **options):
    return byzjax.trainer(
        lambda p, batch: jnp.sum((p - batch) ** 2),
        worker=worker,
        aggregator=byzjax.median() if aggregator is None else aggregator,
        server=optax.sgd(0.1) if server is None else server,
        num_workers=num_workers,
        **options,
    )


@pytest.mark.parametrize(
    "other, what",
    [
        (dict(worker=byzjax.momentum()), "another worker or num_workers"),
        (dict(num_workers=7, worker=byzjax.storm()), "another worker or num_workers"),
        (dict(server=optax.adam(0.1)), "another server"),
        (dict(aggregator=byzjax.centered_clipping(1.0)), "another aggregator"),
        (dict(attack=byzjax.attacks.mimic(), num_byzantine=1), "another attack"),
    ],
    ids=["worker", "number", "server", "aggregator", "attack"],
)
def test_a_state_of_another_trainer(other, what):
    for trainer, stranger in ((made(), made(**other)), (made(**other), made())):
        match = f"trainer.step needs a state that its own init makes, got one of {what}"
        for batches in (jnp.zeros((5, 1)), jnp.zeros((7, 1))):
            with pytest.raises(ValueError, match=rf"{match}|num_workers="):
                trainer.step(stranger.init(PARAMS), batches, jax.random.key(0))


@pytest.mark.parametrize("make", [byzjax.mu2sgd, byzjax.mu2sgd_authors])
def test_a_worker_sends_no_steps_of_the_parameters(make):
    for worker in (make(0.1), byzjax.anytime(optax.sgd(0.1))):
        with pytest.raises(TypeError, match=r"worker to return a gradient, got .*sto"):
            made(worker)


def test_a_keyword_that_no_link_of_a_chain_reads():
    def mean(updates, state, params=None, **extra):
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), updates), state

    deaf = optax.GradientTransformationExtraArgs(lambda params: (), mean)
    mask = jnp.ones(5, bool)
    for rule, keyword in ((byzjax.median(), "absent"), (deaf, "present")):
        trainer = made(aggregator=optax.chain(rule, optax.clip(1.0)))
        state = trainer.init(PARAMS)
        match = rf"reads, got {keyword}=\.\.\., which no link of the chain reads"
        with pytest.raises(TypeError, match=match):
            trainer.step(state, BATCHES, jax.random.key(0), **{keyword: mask})
    trainer = made(aggregator=optax.chain(byzjax.median(), optax.clip(1.0)))
    for extra in ({"present": mask}, {"weights": jnp.arange(5.0)}, {}):
        trainer.step(trainer.init(PARAMS), BATCHES, jax.random.key(0), **extra)


def test_errors_that_name_what_is_needed():
    with pytest.raises(TypeError, match="fltrust needs a reference with arrays as lea"):
        byzjax.fltrust().aggregate(jnp.ones((5, 2)), reference=1.0)
    with pytest.raises(ValueError, match=r"present of shape \(num_workers,\), got"):
        byzjax.median().enough(5)
    clients = [{"w": jnp.ones(4)}, {"w": jnp.ones(4)}]
    clients.append({"w": jnp.ones(4, jnp.bfloat16)})
    with pytest.raises(ValueError, match=r"a list of 3 equal trees: .*byzjax\.stack"):
        byzjax.median().aggregate(clients)

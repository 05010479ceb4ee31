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

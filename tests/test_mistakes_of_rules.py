"""Mistakes with rules, in chains and alone, that are refused with a way out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import attacks, rules
from tests.test_mistakes import GRADIENT, KEY, MEDIAN, NNM, ROWS, WEIGHTS, refused
from tests.training import least_squares

# --- chains ---------------------------------------------------------------------------


def test_a_chain_has_one_rule():
    chain = optax.chain(MEDIAN, byzjax.krum(1), optax.sgd(0.1))
    state, rows = chain.init(GRADIENT), jnp.stack([GRADIENT] * 5)
    refused(ValueError, "a chain has one rule", chain.update, rows, state, GRADIENT)


def test_params_are_those_of_one_worker():
    """Or else become those of all, by updates from a state that is too large."""
    rows = jnp.ones((5, 3))
    chain = optax.chain(MEDIAN, optax.sgd(0.1, momentum=0.9))
    state = chain.init(rows)
    match = r"got shape \(5, 3\) .* params are those of one worker"
    refused(ValueError, match, chain.update, rows, state, rows)


def test_injected_hyperparameters_are_static():
    def of(**options):
        made = optax.inject_hyperparams(byzjax.nnm, **options)
        chain = made(MEDIAN, num_byzantine=2)
        return chain.update(ROWS, chain.init(ROWS[0]), ROWS[0])[0]

    match = r'inject_hyperparams leaves it one with static_args=\("num_byzantine",\)'
    refused(TypeError, match, of)
    jax.eval_shape(lambda: of(static_args=("num_byzantine",)))
    with pytest.raises(TypeError, match=r"got num_byzantine=2\.0$"):
        byzjax.krum(2.0)


# --- what is no rule ------------------------------------------------------------------


def test_functions_that_were_not_called():
    for use, name in (
        (lambda: byzjax.nnm(byzjax.median, 2), "median"),
        (lambda: byzjax.influence(byzjax.median, ROWS), "median"),
        (lambda: byzjax.guard(byzjax.median, 8), "median"),
        (lambda: least_squares.make(aggregator=byzjax.median), "median"),
        (lambda: least_squares.make(server=optax.sgd), "sgd"),
        (lambda: least_squares.make(attack=attacks.alie), "alie"),
        (lambda: byzjax.per_worker(byzjax.momentum, 3), "momentum"),
    ):
        match = rf"got .*: that is a function, call it, {name}\(\.\.\.\)$"
        with pytest.raises(TypeError, match=match):
            use()


def test_what_else_is_no_rule():
    attack = attacks.ipm(num_byzantine=2)
    with pytest.raises(TypeError, match=r"got attacks\.ipm\(num_byzantine=2\)$"):
        byzjax.nnm(attack, 2)
    with pytest.raises(TypeError, match=r"got momentum\(\)$"):
        byzjax.nnm(byzjax.momentum(), 2)
    chain = optax.chain(MEDIAN, optax.clip(1.0))
    for use in (lambda x: byzjax.nnm(x, 2), lambda x: byzjax.influence(x, ROWS)):
        with pytest.raises(
            TypeError, match=r"of a chain, give \w+ the rule that is in"
        ):
            use(chain)
    with pytest.raises(
        TypeError, match=r"aggregator to be a rule, got .*attack=\.\.\."
    ):
        least_squares.make(aggregator=attack)
    trainer = least_squares.make()
    state = trainer.init(least_squares.PARAMS)
    with pytest.raises(ValueError, match=r"key=None: give each step its own"):
        trainer.step(state, least_squares.at(0), None)


# --- rules of one's own ---------------------------------------------------------------


def test_a_rule_of_ones_own_is_told_how_to_take_present():
    def of_all(geometry):
        m = geometry.num_workers
        return jnp.full((m,), 1 / m, jnp.float32)

    def of_some(geometry):
        share = 1 / jnp.asarray(geometry.num_present, jnp.float32)
        return jnp.full((geometry.num_workers,), share)

    def plainly(updates, state, params=None, **extra):
        return updates[0], state

    def named(updates, state, params=None, *, present=None, **extra):
        return plainly(updates, state)

    here = {"present": np.arange(9) > 0}
    none = optax.init_empty_state
    for without, cured, cure in (
        (
            rules.coordinatewise("first", lambda x: x[0]),
            rules.coordinatewise("first", lambda x, present=None: x[0]),
            r"if its reduce takes present, bools \[m\]",
        ),
        (
            rules.geometric("all", of_all),
            rules.geometric("all", of_some, absent=True),
            r"if its weigh counts geometry\.num_present .* absent=True",
        ),
        (
            byzjax.Aggregator(none, plainly),
            byzjax.Aggregator(none, named),
            r"if its update names present behind \*",
        ),
    ):
        for rule in (without, byzjax.nnm(without, 1)):
            state = rule.init(ROWS[0])
            refused(ValueError, cure, rule.update, ROWS, state, **here)
        for rule in (cured, byzjax.nnm(cured, 1)):
            jax.eval_shape(lambda rule=rule: rule.aggregate(ROWS, **here))
    by_hand = byzjax.Aggregator(none, plainly)
    match = r"got present=\.\.\.: a rule of your own takes what its update names"
    refused(TypeError, match, by_hand.aggregate, ROWS, **here)
    refused(TypeError, match, byzjax.influence, by_hand, ROWS, **here)


# --- keywords that nothing takes ------------------------------------------------------

WRAPPED = {
    "median": MEDIAN,
    "geometric": byzjax.krum(1),
    "ctma": byzjax.ctma(MEDIAN, 1),
    "ctma of weights": byzjax.ctma(byzjax.geometric_median(), 1),
    "nnm": byzjax.nnm(byzjax.centered_clipping(1.0), 1),
    "with_key": byzjax.with_key(byzjax.bucketing(MEDIAN, 2), KEY),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_misspelt_keywords_are_refused(name):
    rule = WRAPPED[name]
    match = r"^{} needs keywords that it takes \(.*weights.*\), got weight=\.\.\.: did"
    refused(TypeError, match.format("aggregate"), rule.aggregate, ROWS, weight=WEIGHTS)
    refused(TypeError, "got refernce=", rule.aggregate, ROWS, refernce=ROWS[0])
    refused(TypeError, "got reference=", rule.aggregate, ROWS, reference=ROWS[0])
    refused(TypeError, "^influence needs", byzjax.influence, rule, ROWS, weight=WEIGHTS)
    # In a chain they may be another link's.
    jax.eval_shape(lambda: rule.update(ROWS, rule.init(ROWS[0]), weight=WEIGHTS))


def test_wrappers_take_what_their_base_takes():
    reference = {"reference": ROWS[0]}
    trust = byzjax.fltrust()
    for rule in (
        trust,
        byzjax.ctma(trust, 1),
        byzjax.nnm(byzjax.clipping(trust, 1.0), 1),
        byzjax.with_key(byzjax.bucketing(byzjax.ctma(trust, 1), 2), KEY),
    ):
        assert "reference" in rule.takes
        jax.eval_shape(lambda rule=rule: rule.aggregate(ROWS, key=KEY, **reference))
        jax.eval_shape(
            lambda rule=rule: byzjax.influence(rule, ROWS, key=KEY, **reference)
        )
        refused(TypeError, "did you mean reference", rule.aggregate, ROWS, referense=1)


def test_a_rule_of_ones_own_takes_what_its_update_names():
    def update(updates, state, params=None, *, scale=1.0, **extra):
        return jax.tree.map(lambda x: scale * x[0], updates), state

    rule = byzjax.Aggregator(optax.init_empty_state, update)
    assert rule.aggregate(ROWS, scale=2.0)[0] == 2
    refused(TypeError, "did you mean scale", rule.aggregate, ROWS, scales=2.0)
    assert byzjax.ctma(rule, 1).takes == {"weights", "present", "scale"}


def test_attacks_refuse_what_they_do_not_take():
    for attack in (attacks.ipm(), attacks.rop(), attacks.optimized(attacks.ipm, NNM)):
        match = r"^apply needs keywords that it takes \(.*\), got keys="
        refused(TypeError, match, attack.apply, ROWS, num_byzantine=1, keys=KEY)
    chain = optax.chain(attacks.ipm(num_byzantine=1), MEDIAN)
    jax.eval_shape(lambda: chain.update(ROWS, chain.init(ROWS[0]), weights=WEIGHTS))


def test_steps_refuse_what_the_aggregator_does_not_take():
    m = least_squares.M

    def step(aggregator, **extra):
        trainer = least_squares.make(aggregator=aggregator)
        state = trainer.init(least_squares.PARAMS)
        return jax.eval_shape(
            lambda: trainer.step(state, least_squares.at(0), KEY, **extra)
        )

    weights = jnp.ones(m)
    step(byzjax.ctma(MEDIAN, 1), weights=weights)
    match = r"^trainer\.step needs keywords .*weights\), got weight=.*mean weights\?"
    with pytest.raises(TypeError, match=match):
        step(byzjax.ctma(MEDIAN, 1), weight=weights)
    plain = optax.GradientTransformation(MEDIAN.init, MEDIAN.update)
    with pytest.raises(TypeError, match=r"^trainer\.step needs .*got weights="):
        step(plain, weights=weights)
    # A chain does not say what its links take: whether one reads it is seen.
    step(optax.chain(MEDIAN, optax.scale(1.0)), weights=weights)
    with pytest.raises(TypeError, match=r"got other=.*, which no link of the chain"):
        step(optax.chain(MEDIAN, optax.scale(1.0)), weights=weights, other=weights)


# --- f and buckets --------------------------------------------------------------------


@pytest.mark.parametrize(
    "base",
    [
        byzjax.trimmed_mean(2),
        byzjax.krum(1),
        byzjax.ctma(MEDIAN, 2),
        byzjax.nnm(byzjax.trimmed_mean(2), 2),
        byzjax.mda(2),
        byzjax.arc(MEDIAN, 2),
    ],
    ids=["trimmed_mean", "krum", "ctma", "nnm", "mda", "arc"],
)
def test_a_base_refuses_too_few_buckets(base):
    """11 workers in buckets of three are four rows, however many were honest."""
    rule = byzjax.bucketing(base, 3)
    match = re.escape("num_workers=4 and num_byzantine=")
    refused(ValueError, match, rule.aggregate, jnp.ones((11, 4)), key=KEY)
    jax.eval_shape(lambda: rule.aggregate(jnp.ones((27, 4)), key=KEY))


@pytest.mark.parametrize("meta", [byzjax.ctma, byzjax.nnm, byzjax.arc])
def test_buckets_that_cannot_bear_the_attackers(meta):
    """Five of eleven may be in all three buckets of four."""
    rule = meta(byzjax.clipping(byzjax.bucketing(byzjax.median(), 4), 1.0), 5)
    with pytest.raises(ValueError, match=r"bears num_byzantine=5 .* bears 1 at most"):
        rule.aggregate(jnp.ones((11, 2)), key=jax.random.key(0))
    fine = meta(byzjax.bucketing(byzjax.median(), 2), 2)
    fine.aggregate(jnp.ones((11, 2)), key=jax.random.key(0))


def test_weights_that_nothing_takes():
    own = byzjax.Aggregator(lambda p: (), lambda u, s, p=None, **extra: (u[0], s))
    for use in (own.aggregate, lambda x, **k: byzjax.influence(own, x, **k)):
        with pytest.raises(TypeError, match="got weights="):
            use(jnp.ones((3, 2)), weights=jnp.ones(3))


# --- states ---------------------------------------------------------------------------

REMEMBERING = {
    "centered_clipping": byzjax.centered_clipping(1.0),
    "inside": byzjax.ctma(byzjax.centered_clipping(1.0), 1),
    "rows": byzjax.clipped_clustering(window=9),
}


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_state_of_other_params_is_refused(name):
    rule = REMEMBERING[name]
    match = "needs the state that its init makes of params, which are not stacked"
    others = [byzjax.krum(1).init(ROWS[0]), optax.adam(0.1).init(ROWS[0])]
    if name != "rows":  # Which remembers lengths.
        others.append(rule.init(ROWS))
    for state in others:
        refused(ValueError, match, rule.update, ROWS, state)
    jax.eval_shape(lambda: rule.update(ROWS, rule.init(ROWS[0])))
    refused(ValueError, match, MEDIAN.update, ROWS, rule.init(ROWS[0]))

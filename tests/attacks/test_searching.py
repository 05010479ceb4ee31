"""What attacks achieve that search for their strength, or climb the rule itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import attacks
from tests.attacks_table import KEY, TRIMMED, F, H, M, matrix

RULES = {
    "mean": byzjax.mean(),
    "trimmed_mean": TRIMMED,
    "geometric_median": byzjax.geometric_median(num_iterations=8),
    "krum": byzjax.krum(F),
    "ctma(nnm)": byzjax.ctma(byzjax.nnm(byzjax.median(), F), F),
    "bucketing": byzjax.bucketing(byzjax.median(), 2),
}


def harm(rule, out, key=None):
    mean = np.asarray(out[:H], np.float64).mean(0)
    return np.linalg.norm(np.asarray(rule.aggregate(out, key=key), np.float64) - mean)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_a_search_is_no_weaker_than_its_start(name):
    rule, key = RULES[name], KEY if name == "bucketing" else None
    # The rule's half of the attack's key, so that buckets are those of the search.
    rule_key = None if key is None else jax.random.split(key)[1]
    begin = attacks.alie(0.5, ddof=0)
    searches = {
        "ipm": (attacks.optimized(attacks.ipm, rule, start=0.5), attacks.ipm(0.5)),
        "adaptive": (attacks.adaptive(rule, num_steps=5, start=begin), begin),
    }
    for search, start in searches.values():
        run = jax.jit(lambda x, a=search: a.apply(x, num_byzantine=F, key=key))
        for seed in range(3):
            x = jnp.asarray(matrix(seed))
            found = harm(rule, run(x), rule_key)
            before = harm(rule, start.apply(x, num_byzantine=F), rule_key)
            assert found >= before * (1 - 1e-5)


@pytest.mark.parametrize("name", ["mean", "trimmed_mean", "geometric_median"])
def test_searches_do_find_something(name):
    rule, x = RULES[name], jnp.asarray(matrix())
    start = harm(rule, attacks.alie(0.5).apply(x, num_byzantine=F))
    ascent = jax.jit(lambda x: attacks.adaptive(rule).apply(x, num_byzantine=F))(x)
    assert harm(rule, ascent) > 1.2 * start
    search = attacks.optimized(attacks.alie, rule, step=0.5)
    line = jax.jit(lambda x: search.apply(x, num_byzantine=F))(x)
    assert harm(rule, line) > 1.2 * start


def test_a_search_keeps_the_rules_state():
    rule = byzjax.centered_clipping(0.5)
    attack = attacks.optimized(attacks.ipm, rule, num_byzantine=F)
    state, rule_state = attack.init(jnp.zeros(12)), rule.init(jnp.zeros(12))
    update = jax.jit(attack.update)
    for seed in range(3):
        out, state = update(jnp.asarray(matrix(seed)), state)
        _, rule_state = rule.update(out, rule_state)
    np.testing.assert_allclose(
        state.rule_state.center, rule_state.center, rtol=1e-5, atol=1e-6
    )


def test_a_search_over_an_attack_that_reads_own_messages():
    def stronger(scale):
        flip = attacks.sign_flip()

        def forge(honest, own, state, **extra):
            sent, state = flip.forge(honest, own, state, **extra)
            return scale * sent, state

        return byzjax.Attack(forge, needs_own=True)

    attack = attacks.optimized(stronger, byzjax.mean())
    assert attack.needs_own
    x = jnp.asarray(matrix())
    assert harm(byzjax.mean(), attack.apply(x, num_byzantine=F)) > 1e3


def test_attacks_with_state_in_the_trainer():
    def loss(params, batch):
        return jnp.mean((params[None] - batch) ** 2)

    for attack in (attacks.mimic(warmup=2), attacks.optimized(attacks.ipm, TRIMMED)):
        trainer = byzjax.trainer(
            loss,
            attack=attack,
            aggregator=TRIMMED,
            server=optax.sgd(0.3),
            num_workers=M,
            num_byzantine=F,
        )
        state = trainer.init(jnp.zeros(12))
        batches = jnp.asarray(matrix())[:, None]
        for key in jax.random.split(KEY, 3):
            state, metrics = jax.jit(trainer.step)(state, batches, key)
        assert jnp.isfinite(metrics.loss)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_ascent_ends_among_the_floats(dtype):
    rows = np.random.default_rng(0).normal(size=(7, 3))
    rows *= 0.9 * float(jnp.finfo(dtype).max) / np.abs(rows).max()
    rows = rows.astype(dtype)
    attack = attacks.adaptive(byzjax.trimmed_mean(2), num_steps=3)
    sent = jax.jit(lambda x: attack.apply(x, num_byzantine=2))(jnp.asarray(rows))
    assert jnp.isfinite(sent).all()

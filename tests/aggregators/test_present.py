"""Absent workers: a rule does with a mask what it does with the rows that are left."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import base
from tests import rules
from tests.compiling import AS_USERS_DO
from tests.rules import RULES
from tests.stacks import gaussian, where

M, F, D = 11, 2, 12
GONE = {"some": [7, M - 1], "none": []}
FILLINGS = {"nan": np.nan, "zeros": 0.0, "huge": 3e38, "far": -1e12}


def subsets(rule):
    return rule.name in ("mda", "smea")


def made(rule):
    """The rule, made for the fewest workers that a test leaves."""
    return rule.make(M - 2, max(0, min(F, rule.most(M - 2))))


serving = pytest.mark.parametrize("rule", where(lambda r: not subsets(r)))
# A compiler that optimizes rounds both programs alike.
BIT_FOR_BIT = {
    "median": byzjax.median(),
    "meamed": byzjax.meamed(F),
    "krum": byzjax.krum(F),
    "centered_clipping": byzjax.centered_clipping(1.0, num_iterations=2),
    "ctma(nnm(median))": byzjax.ctma(byzjax.nnm(byzjax.median(), F), F),
    "ctma(geometric_median)": byzjax.ctma(byzjax.geometric_median(), F),
}


@functools.cache
def masked(name):
    """A rule jitted with a mask, and the shapes it was traced for."""
    rule = RULES[rules.NAMES.index(name)]
    aggregator, traces = made(rule), []

    def run(rows, present):
        traces.append(rows.shape)
        extra = rules.arguments(rule, rows)
        return aggregator.aggregate(rows, present=present, **extra)

    return jax.jit(run), traces


@functools.cache
def unmasked(name):
    rule = RULES[rules.NAMES.index(name)]
    aggregator = made(rule)
    return jax.jit(lambda x: aggregator.aggregate(x, **rules.arguments(rule, x)))


@serving
def test_an_absent_row_is_no_row(rule):
    """Whatever it holds: attackers among the others are outvoted, or not, as ever."""
    if rule.name.startswith("bucketing"):
        pytest.skip("buckets are drawn of other rows; see below")
    run, traces = masked(rule.name)
    rows = gaussian(M, seed=3) + np.float32(2)
    rows[2] = 1e6
    for which, gone in GONE.items():
        trusted = M if rule.honest_row is None else rule.honest_row(M - 2)
        if any(k <= trusted < M for k in gone):  # Of those left it is another row.
            continue
        present = ~np.isin(np.arange(M), gone)
        want = unmasked(rule.name)(jnp.asarray(rows[present]))
        for what, filling in FILLINGS.items():
            given = np.where(present[:, None], rows, np.float32(filling))
            got = run(jnp.asarray(given), jnp.asarray(present))
            where = f"{which} gone, {what}"
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=where)
    assert len(traces) == 1  # One program for any number of workers.


@pytest.mark.slow
@pytest.mark.parametrize("name", BIT_FOR_BIT)
def test_with_all_present_it_is_bit_for_bit_the_rule(name):
    rule = BIT_FOR_BIT[name]
    masked = jax.jit(
        lambda x, p: rule.aggregate(x, present=p), compiler_options=AS_USERS_DO
    )
    plain = jax.jit(rule.aggregate, compiler_options=AS_USERS_DO)
    for seed in range(5):
        rows = jnp.asarray(gaussian(M, seed=seed))
        np.testing.assert_array_equal(masked(rows, jnp.ones(M, bool)), plain(rows))


@pytest.mark.parametrize("rule", where(lambda r: r.takes_f and not subsets(r)))
def test_too_few_are_refused_or_reported(rule):
    aggregator = made(rule)
    few = np.arange(M) == (aggregator.trusted or (0,))[0]
    rows = jnp.asarray(gaussian(M, seed=5))
    extra = rules.arguments(rule, rows)
    with pytest.raises(ValueError, match=r"num_workers.* absent of 11"):
        jax.eval_shape(lambda x: aggregator.aggregate(x, present=few, **extra), rows)
    got = masked(rule.name)[0](rows, jnp.asarray(few))
    np.testing.assert_array_equal(got, np.zeros(D))
    assert not aggregator.enough(jnp.asarray(few))
    assert aggregator.enough(jnp.ones(M, bool))


@pytest.mark.parametrize("rule", where(subsets))
def test_rules_over_subsets_say_that_they_serve_no_mask(rule):
    for aggregator in (rule.make(M, F), byzjax.nnm(rule.make(M, F), F)):
        with pytest.raises(ValueError, match="has no form for absent workers"):
            aggregator.aggregate(jnp.ones((M, D)), present=jnp.arange(M) > 1)


@pytest.mark.slow
@pytest.mark.parametrize("m", [49, 130])
@pytest.mark.parametrize(
    "rule",
    [
        byzjax.median(),
        byzjax.trimmed_mean(5),
        byzjax.meamed(5),
        byzjax.nnm(byzjax.trimmed_mean(5), 5),
        byzjax.ctma(byzjax.geometric_median(), 5),
    ],
    ids=repr,
)
def test_many_workers_take_other_ways(rule, m):
    rows = gaussian(m, 70, seed=6)
    present = np.random.default_rng(0).random(m) < 0.6
    rows[~present] = np.nan
    got = jax.jit(lambda x, p: rule.aggregate(x, present=p))(rows, present)
    want = jax.jit(rule.aggregate)(rows[present])
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_buckets_hold_present_rows_only():
    """⌈n/s⌉ buckets: all means of s rows, but one of the rest."""
    rule = byzjax.bucketing(base.Aggregator(optax.init_empty_state, keep), 2)
    rows = jnp.asarray(np.eye(7, dtype=np.float32))
    present = jnp.asarray([True, False, True, True, False, True, True])
    for seed in range(3):
        out, means = jax.jit(
            lambda x, p, seed=seed: rule.update(x, (), present=p, key=key(seed))[:1]
        )(rows, present)[0]
        del out
        there = np.asarray(means[1])
        mixed = np.asarray(means[0])[there]
        assert there.sum() == 3
        np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-6)
        assert not mixed[:, [1, 4]].any()
        assert sorted((mixed > 0).sum(1)) == [1, 2, 2]


def key(seed):
    return jax.random.key(seed)


def keep(updates, state, params=None, *, present=None, **extra):
    there = jnp.ones(len(updates), bool) if present is None else present
    return (updates[0], (updates, there)), state


@pytest.mark.slow
def test_weights_and_a_mask():
    """Cuts are of the workers present; equal weights of those are none."""
    rows = gaussian(9, seed=7)
    present = np.arange(9) != 3
    weights = np.arange(1, 10).astype(np.float32)
    for rule in (
        byzjax.mean(),
        byzjax.median(),
        byzjax.trimmed_mean(2),
        byzjax.ctma(byzjax.trimmed_mean(2), 2),
        byzjax.ctma(byzjax.geometric_median(), 2),
    ):
        run = jax.jit(lambda x, w, p, r=rule: r.aggregate(x, weights=w, present=p))
        got = run(rows, weights, present)
        want = rule.aggregate(rows[present], weights=weights[present])
        np.testing.assert_allclose(got, want, atol=1e-5)
        got = run(rows, np.where(present, 2.0, 7.0).astype(np.float32), present)
        np.testing.assert_allclose(got, rule.aggregate(rows[present]), atol=1e-5)


def test_states_know_of_nothing_but_the_rows_that_were_there():
    rows = [gaussian(7, seed=s) for s in range(3)]
    masks = [np.arange(7) != k for k in (0, 5, 9)]
    for rule in (
        byzjax.clipped_clustering(window=15),
        byzjax.centered_clipping(1.0, num_iterations=2),
    ):
        state = want_state = rule.init(jnp.zeros(D))
        step = jax.jit(lambda x, s, p, r=rule: r.update(x, s, present=p))
        for x, present in zip(rows, masks, strict=True):
            got, state = step(jnp.asarray(x), state, jnp.asarray(present))
            want, want_state = rule.update(jnp.asarray(x[present]), want_state)
            np.testing.assert_allclose(got, want, atol=1e-5)
        for a, b in zip(
            jax.tree.leaves(state), jax.tree.leaves(want_state), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_too_few_leave_the_state():
    rule = byzjax.with_key(byzjax.bucketing(byzjax.krum(1), 1), key(0))
    state = rule.init(jnp.zeros(3))
    step = jax.jit(lambda x, s, p: rule.update(x, s, present=p))
    out, after = step(jnp.ones((7, 3)), state, jnp.arange(7) < 3)
    np.testing.assert_array_equal(out, np.zeros(3))
    assert jnp.all(jax.random.key_data(after.key) == jax.random.key_data(state.key))


@pytest.mark.parametrize(
    "present, error, match",
    [
        (np.ones(5, bool), ValueError, r"shape \(num_workers,\) = \(7,\), got \(5,\)"),
        (np.ones(7), TypeError, "needs present to be bools, got float64"),
        (np.zeros(7, bool), ValueError, "needs a worker who is present, got 0 of 7"),
    ],
)
def test_masks_that_are_none(present, error, match):
    with pytest.raises(error, match=match):
        byzjax.median().aggregate(jnp.ones((7, 3)), present=present)


def test_a_mask_in_a_chain_reaches_the_rule():
    chain = optax.chain(byzjax.trimmed_mean(1), optax.sgd(1.0))
    params = jnp.zeros(3)
    rows = jnp.asarray([[1.0] * 3, [2.0] * 3, [3.0] * 3, [np.nan] * 3])
    present = jnp.asarray([True, True, True, False])
    out, _ = chain.update(rows, chain.init(params), params, present=present)
    np.testing.assert_array_equal(out, [-2.0] * 3)


def test_a_rule_of_ones_own_serves_a_mask_if_it_says_so():
    def weigh(geometry):
        n = geometry.num_present
        return geometry.finite.astype(geometry.norms.dtype) / jnp.float32(n)

    rows, present = gaussian(5, seed=8), np.arange(5) < 3
    silent = byzjax.rules.geometric("own", lambda g: weigh(g))
    with pytest.raises(ValueError, match="own has no form for absent workers"):
        silent.aggregate(rows, present=present)
    rule = byzjax.rules.geometric("own", weigh, absent=True)
    got = rule.aggregate(rows, present=present)
    np.testing.assert_allclose(got, rows[:3].mean(0), rtol=1e-5)
    of_columns = byzjax.rules.coordinatewise("first", lambda rows: rows[0])
    with pytest.raises(ValueError, match="first has no form for absent workers"):
        of_columns.aggregate(rows, present=present)


def test_a_row_that_is_trusted_has_to_be_there():
    rows, gone = jnp.asarray(gaussian(6, seed=9)), jnp.arange(6) != 0
    for rule in (byzjax.monna(1), byzjax.nnm(byzjax.monna(1), 1)):
        with pytest.raises(
            ValueError, match=r"monna\(1\).* needs row 0, which it trusts"
        ):
            rule.aggregate(rows, present=np.asarray(gone))
        assert not rule.enough(gone)
        got = jax.jit(lambda x, p, r=rule: r.aggregate(x, present=p))(rows, gone)
        np.testing.assert_array_equal(got, np.zeros(D))


def test_links_before_a_rule_know_who_is_absent():
    """An attack does not see them; a transform of each worker remembers nothing."""
    present = jnp.arange(5) > 0
    chain = optax.chain(byzjax.attacks.alie(num_byzantine=1), byzjax.median())
    run = jax.jit(lambda x: chain.update(x, chain.init(jnp.zeros(D)), present=present))
    rows = jnp.asarray(gaussian(5, seed=10))
    one, other = run(rows)[0], run(rows.at[0].set(jnp.nan))[0]
    np.testing.assert_array_equal(one, other)
    link = byzjax.per_worker(byzjax.momentum(0.9), 5)
    state = link.init(jnp.zeros(D))
    _, after = link.update(rows, state, present=present)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        assert np.any(np.asarray(new[1]) != np.asarray(old[1]))


def test_influence_of_those_who_are_there():
    rows, present = jnp.asarray(gaussian(5, seed=11)), np.arange(5) != 2
    got = byzjax.influence(byzjax.trimmed_mean(1), rows, present=present)
    want = byzjax.influence(byzjax.trimmed_mean(1), rows[present])
    np.testing.assert_allclose(got[present], want, atol=1e-6)
    assert got[2] == 0
    with pytest.raises(ValueError, match="as 3 are absent of 5"):
        byzjax.influence(byzjax.trimmed_mean(1), rows, present=np.arange(5) < 2)

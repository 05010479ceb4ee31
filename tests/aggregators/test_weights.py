"""Weights are claims: equal ones are none, what is cut stays out, shares are capped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import byzjax
from tests import rules
from tests.compiling import AS_USERS_DO

WEIGHTED = [rule for rule in rules.RULES if rule.weighted]
M, F = 13, 6


def stack(poison):
    rows = np.random.default_rng(5).normal(size=(M, 12)).astype(np.float32)
    rows[M - F :] = poison
    return jnp.asarray(rows)


@pytest.mark.slow
@pytest.mark.parametrize("rule", WEIGHTED, ids=lambda rule: rule.name)
def test_equal_weights_are_none(rule):
    """Bit for bit, as users compile; conventions of a rule to how programs round."""
    rounding = 1e-5 if "geometric_median" in rule.name else 1e-7
    options = None if rule.variant else AS_USERS_DO
    made = rule.make(M, min(F, rule.most(M)))
    plain = jax.jit(made.aggregate, compiler_options=options)
    weighted = jax.jit(
        lambda rows, w: made.aggregate(rows, weights=w), compiler_options=options
    )
    for poison in (np.inf, np.nan, 1e17, 3e38):
        rows = stack(poison)
        want = plain(rows)
        for weight in (1.0, 0.1, 7.0, 1e-30, 1e30):
            got = weighted(rows, jnp.full((M,), weight))
            atol = rounding if rule.variant else 0
            np.testing.assert_allclose(got, want, rtol=0, atol=atol)


ROBUST = {
    "trimmed_mean": byzjax.trimmed_mean(F),
    "ctma(median)": byzjax.ctma(byzjax.median(), F),
    "ctma(geometric_median)": byzjax.ctma(byzjax.geometric_median(), F),
    "ctma(trimmed_mean)": byzjax.ctma(byzjax.trimmed_mean(F), F),
}


@pytest.mark.parametrize("name", ROBUST)
def test_what_weights_cut_stays_out(name):
    """Attackers hold the share that is cut, up to how their weights are rounded."""
    run = jax.jit(lambda rows, w: ROBUST[name].aggregate(rows, weights=w))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        honest = rng.uniform(0.1, 1, M - F)
        theirs = rng.uniform(0.1, 1, F)
        theirs *= F / (M - F) * honest.sum() / theirs.sum()  # f/m of the total.
        weights = jnp.asarray(np.concatenate([honest, theirs]), jnp.float32)
        for poison in (np.inf, 1e17):
            got = np.asarray(run(stack(poison), weights))
            assert np.all(np.abs(got) < 10), got


@given(
    st.lists(st.floats(0, 2.0**99, width=32), min_size=2, max_size=9),
    st.floats(0.0625, 1),
)
def test_no_share_is_above_the_cap(weights, share):
    share = max(share, 1 / len(weights))
    got = np.asarray(byzjax.cap_weights(jnp.asarray(weights), share), float)
    assert np.all(got >= 0) and got.sum() > 0
    assert np.max(got) <= share * got.sum() * (1 + 1e-5)
    largest = max(weights)
    uncut = [w for w in weights if 0 < w < largest]
    if largest > 0 and largest <= share * sum(weights):
        np.testing.assert_allclose(
            got / np.max(got), np.asarray(weights) / largest, rtol=1e-6, atol=1e-30
        )
    elif uncut and np.ptp(got) > 0:
        ordered = got[np.argsort(weights)]
        assert np.all(np.diff(ordered) >= 0)


def test_caps_name_what_they_need():
    for weights, share, match in (
        (jnp.ones((2, 2)), 0.5, r"shape \(num_workers,\), got \(2, 2\)"),
        (jnp.ones(3), 0.2, r"1 / num_workers <= max_share <= 1, got max_share=0.2"),
        (jnp.ones(3), 1.5, r"max_share <= 1, got max_share=1.5 and num_workers=3"),
    ):
        with pytest.raises(ValueError, match=match):
            byzjax.cap_weights(weights, share)


@pytest.mark.parametrize("m", [9, 65])
def test_sums_of_kept_values_stay_in_range(m):
    """Of honest rows whose mean is in range though their sum is not."""
    rows = jnp.full((m, 3), 1e38).at[0].set(jnp.nan)
    for rule in (byzjax.trimmed_mean(1), byzjax.meamed(1), byzjax.phocas(1)):
        np.testing.assert_allclose(jax.jit(rule.aggregate)(rows), 1e38, rtol=1e-5)


def test_far_rows_do_not_set_the_unit_of_sums():
    rows = jnp.asarray([[1e9], [0.0], [0.5], [1.0], [1e17]])
    np.testing.assert_array_equal(byzjax.medoid().aggregate(rows), [1.0])


@pytest.mark.parametrize("m", [257, 513])
def test_light_honest_workers_are_no_slivers(m):
    """All that is left between the cuts is of workers far lighter than what is cut."""
    f, ends = m // 2, m // 9
    between = m - 2 * ends
    weights = np.full(m, f / ends, np.float32)
    weights[ends : m - ends] = 1 / between
    rows = np.full((m, 1), -np.inf, np.float32)
    rows[ends : m - ends, 0] = np.linspace(2, 3, between)
    rows[m - ends :] = np.inf
    got = byzjax.trimmed_mean(f).aggregate(jnp.asarray(rows), weights=weights)
    np.testing.assert_allclose(got, 2.5, atol=0.02)
    by_distance = byzjax.ctma(byzjax.median(), 1)
    weights = np.where(np.arange(m) % 2, 1e-9, 1.0).astype(np.float32)
    rows = np.ones((m, 1), np.float32)
    got = by_distance.aggregate(jnp.asarray(rows), weights=weights)
    np.testing.assert_allclose(got, 1, rtol=1e-6)


@pytest.mark.parametrize(
    "rule", [byzjax.geometric_median(), byzjax.ctma(byzjax.median(), 4)]
)
def test_equal_weights_are_none_without_jit(rule):
    rows = jnp.asarray(stack(3.0) + 100)
    got = rule.aggregate(rows, weights=jnp.full((M,), 3.0))
    np.testing.assert_allclose(got, rule.aggregate(rows), rtol=1e-6)


def test_the_least_cap_is_allowed():
    for m in range(2, 130):
        at = functools.partial(byzjax.cap_weights, max_share=1 / m)
        assert jax.eval_shape(at, jnp.ones(m)).shape == (m,)


# Among them those whose 1 / m times m is not 1, in one width of floats or the other.
@pytest.mark.parametrize("m", [2, 3, 7, 41, 47, 49, 55, 61, 98, 103, 107, 129])
def test_the_least_cap_is_taken(m):
    caps = byzjax.cap_weights(jnp.arange(1.0, m + 1), max_share=1 / m)
    np.testing.assert_allclose(caps / caps.sum(), 1 / m, rtol=1e-5)


# 2 899 is the first where m roundings of the total are more than what is kept of it.
@pytest.mark.parametrize(
    "name, m",
    [
        *(("ctma", 129), ("median", 129)),
        *(("trimmed_mean", m) for m in (129, 2899, 4097)),
    ],
)
def test_many_workers_of_unequal_weights(name, m):
    """What rounding leaves of all that is cut is not more than all that is kept."""
    f = (m - 1) // 2
    rule = {
        "trimmed_mean": byzjax.trimmed_mean(f),
        "ctma": byzjax.ctma(byzjax.median(), f),
        "median": byzjax.median(),
    }[name]
    weights = np.ones(m, np.float32)
    weights[0] = 0.9999
    rows = np.linspace(0, 1, m, dtype=np.float32)[:, None]
    out = rule.aggregate(jnp.asarray(rows), weights=jnp.asarray(weights))
    assert abs(float(out[0]) - 0.5) < 2 / m
    rows[-f:] = np.inf
    out = rule.aggregate(jnp.asarray(rows), weights=jnp.asarray(weights))
    assert 0 <= float(out[0]) <= 1


@pytest.mark.parametrize("claim", [1e30, 1e38, 3e38])
def test_a_claim_that_is_cut_costs_the_others_nothing(claim):
    for scale in (1.0, 1e-30):
        claimed = np.array([claim, 1 * scale, 2 * scale, 4 * scale], np.float32)
        capped = byzjax.cap_weights(claimed, max_share=0.5)
        np.testing.assert_allclose(capped / capped[1], [7, 1, 2, 4], rtol=1e-6)
    two = byzjax.cap_weights(np.array([claim, claim, 1, 1], np.float32), 0.4)
    np.testing.assert_allclose(two / two[3], [4, 4, 1, 1], rtol=1e-5)
    most = byzjax.cap_weights(np.array([claim, claim, 1, 1], np.float32), 0.5)
    np.testing.assert_allclose(most / most[0], [1, 1, 0, 0], atol=1e-29)


def test_half_of_sample_counts_is_half():
    """Divided by the largest, 1/7 + 6/7 would be more than half of two."""
    rows = jnp.arange(1.0, 6.0)[:, None]
    rule = jax.jit(byzjax.median().aggregate)
    rng = np.random.default_rng(0)
    drawn = [[1, 6, 7, 0, 0], *rng.integers(1, 12, (60, 5)).tolist()]
    for weights in (np.asarray(w) for w in drawn if len(set(w)) > 1):
        exceeds = 2 * np.cumsum(weights) > weights.sum()
        want = 1 + int(np.argmax(exceeds))
        got = rule(rows, weights=jnp.asarray(weights, jnp.int32))
        assert got[0] == want, weights

"""The verdict on every rule of the table: sums, weights, non-finite rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests.stacks import where

M, F, D = 11, 2, 40
ROWS = np.random.default_rng(5).normal(size=(M, D)).astype(np.float32)
KEY = jax.random.key(3)


@pytest.mark.parametrize("rule", where(lambda r: r.most(M) >= F or not r.takes_f))
def test_shares(rule):
    made = rule.make(M, F)

    @jax.jit
    def verdict(x):
        key = KEY if rule.random else None
        return byzjax.influence(made, x, key=key, **rule.extra(x))

    shares = np.asarray(verdict(jnp.asarray(ROWS)))
    assert shares.shape == (M,)
    assert np.all(np.isfinite(shares))
    if rule.translation and not rule.frozen and not rule.stateful:
        np.testing.assert_allclose(shares.sum(), 1, atol=2e-3)

    if rule.poison_proof:
        rows = ROWS.copy()
        rows[-1], rows[-2] = np.nan, np.inf
        shares = np.asarray(verdict(jnp.asarray(rows)))
        assert np.all(np.isfinite(shares))
        if "sign" not in rule.name:
            np.testing.assert_array_equal(shares[-2:], 0)


def test_exactly_the_weights():
    rows = jnp.asarray(ROWS)
    np.testing.assert_allclose(byzjax.influence(byzjax.mean(), rows), 1 / M, rtol=1e-6)
    weights = jnp.arange(1.0, M + 1)
    shares = byzjax.influence(byzjax.mean(), rows, weights=weights)
    np.testing.assert_allclose(shares, weights / weights.sum(), rtol=1e-6)
    chosen = byzjax.influence(byzjax.krum(F), rows)
    out = byzjax.krum(F).aggregate(rows)
    (index,) = np.flatnonzero(np.all(np.asarray(out) == ROWS, axis=1))
    np.testing.assert_array_equal(chosen, np.eye(M)[index])
    kept = byzjax.influence(byzjax.ctma(byzjax.median(), F), rows)
    gaps = np.linalg.norm(ROWS - np.median(ROWS, axis=0), axis=1)
    expected = np.where(np.argsort(np.argsort(gaps)) < M - F, 1 / (M - F), 0)
    np.testing.assert_allclose(kept, expected, atol=1e-6)


def test_median_counts_coordinates():
    shares = byzjax.influence(byzjax.median(), jnp.asarray(ROWS))
    order = np.argsort(ROWS, axis=0)[M // 2]
    np.testing.assert_allclose(shares, np.bincount(order, minlength=M) / D, atol=1e-6)


BY_RANK = {
    "median": byzjax.median(),
    "lower": byzjax.median(even="lower"),
    "trimmed_mean": byzjax.trimmed_mean(F),
}


def weights_of_ranks(name, m):
    """How much the value of each rank counts, by definition `[m]`."""
    weights = np.zeros(m)
    if name == "trimmed_mean":
        weights[F : m - F] = 1 / (m - 2 * F)
    elif name == "lower":
        weights[(m - 1) // 2] = 1
    else:
        weights[(m - 1) // 2] += 0.5
        weights[m // 2] += 0.5
    return weights


@pytest.mark.parametrize("m", [10, 11])
@pytest.mark.parametrize("name", BY_RANK)
def test_the_weight_of_a_rank_is_shared_by_who_has_it(name, m):
    draw = np.random.default_rng(m)
    rows = np.round(2 * draw.normal(size=(m, D))).astype(np.float32)  # Many are equal.
    rows[-1] = np.nan
    tree = {"a": jnp.asarray(rows[:, :30]).reshape(m, 5, 6), "b": rows[:, 30:]}
    expected, weights = np.zeros(m), weights_of_ranks(name, m)
    for column in np.where(np.isnan(rows), np.inf, rows).T:
        for weight, value in zip(weights, np.sort(column), strict=True):
            equal = column == value
            expected += weight * equal / equal.sum()
    shares = byzjax.influence(BY_RANK[name], tree)
    np.testing.assert_allclose(shares, expected / D, atol=1e-6)
    assert shares[-1] == 0


@pytest.mark.parametrize("name", BY_RANK)
def test_equal_workers_have_equal_shares(name):
    rule = BY_RANK[name]
    rows = jnp.asarray(ROWS).at[3:7].set(ROWS[3])
    shares = byzjax.influence(rule, rows)
    np.testing.assert_allclose(shares[3:7], shares[3], rtol=1e-6)
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-5)
    same = byzjax.influence(rule, jnp.tile(rows[:1], (M, 1)))
    np.testing.assert_allclose(same, 1 / M, rtol=1e-5)


SHORT = {name: (rule, 1500) for name, rule in BY_RANK.items()} | {
    "ctma": (byzjax.ctma(byzjax.median(), F), 2000),
    "nnm": (byzjax.nnm(byzjax.median(), F), 3500),
}


@pytest.mark.parametrize("name", SHORT)
def test_the_verdict_is_a_short_program(name):
    """The time to compile goes with it: through networks it was 13 to 88 seconds."""
    (rule, lines), rows = SHORT[name], jnp.ones((20, 1000))
    lowered = jax.jit(lambda x: byzjax.influence(rule, x)).lower(rows)
    assert len(lowered.as_text().splitlines()) < lines


def test_trees_and_half_precision():
    tree = {
        "a": jnp.asarray(ROWS[:, :30]).reshape(M, 5, 6).astype(jnp.bfloat16),
        "b": jnp.asarray(ROWS[:, 30]),
    }
    shares = byzjax.influence(byzjax.trimmed_mean(F), tree)
    assert shares.dtype == jnp.float32
    np.testing.assert_allclose(shares.sum(), 1, atol=1e-5)


def test_only_aggregators():
    with pytest.raises(TypeError, match="influence needs an aggregator"):
        byzjax.influence(jnp.mean, jnp.ones((3, 2)))


# --- rules that remember --------------------------------------------------------------

STATEFUL = {
    "centered_clipping": lambda: byzjax.centered_clipping(2.0),
    "iterated": lambda: byzjax.centered_clipping(2.0, num_iterations=3),
    "nnm": lambda: byzjax.nnm(byzjax.centered_clipping(2.0), F),
    "foolsgold": lambda: byzjax.foolsgold(num_workers=M),
    "with_key": lambda: byzjax.with_key(byzjax.bucketing(byzjax.krum(1), 2), KEY),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_that_a_rule_is_in(name):
    """By finite differences of the rule in that state, in double precision."""
    with jax.enable_x64(True):
        rule, rows = STATEFUL[name](), jnp.asarray(ROWS[:, :6], jnp.float64)
        update = jax.jit(rule.update)
        fresh = rule.init(rows[0])
        _, state = update(rows + 1, fresh)
        shares = byzjax.influence(rule, rows, state=state)
        signs = jax.random.rademacher(
            jax.random.split(jax.random.key(0), 1)[0], (6,), rows.dtype
        )
        for worker in range(0, M, 4):
            step = 1e-6 * signs
            above, _ = update(rows.at[worker].add(step), state)
            below, _ = update(rows.at[worker].add(-step), state)
            expected = jnp.vdot(signs, above - below) / 2e-6 / 6
            np.testing.assert_allclose(shares[worker], expected, atol=1e-5)
        first = byzjax.influence(rule, rows)
        np.testing.assert_array_equal(first, byzjax.influence(rule, rows, state=fresh))
        assert not np.allclose(first, shares)


def test_the_state_of_a_trainer_and_of_half_precision():
    rule = byzjax.centered_clipping(2.0)
    rows = jnp.asarray(ROWS, jnp.bfloat16)
    _, state = rule.update(rows, rule.init(rows[0]))
    shares = byzjax.influence(rule, rows, state=state)
    assert shares.dtype == jnp.float32 and np.all(np.isfinite(shares))


def test_the_state_of_another_rule_is_refused():
    rows = jnp.asarray(ROWS)
    clipping, median = byzjax.centered_clipping(2.0), byzjax.median()
    for rule, state in (
        (clipping, median.init(rows[0])),
        (median, clipping.init(rows[0])),
        (clipping, clipping.init(rows)),
    ):
        with pytest.raises(ValueError, match=r"^influence needs state to have the str"):
            byzjax.influence(rule, rows, state=state)

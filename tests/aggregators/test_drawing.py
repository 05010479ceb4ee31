"""Rules that draw: from the key they are given, or keep."""

import jax
import numpy as np

import byzjax
from tests import reference as ref
from tests.aggregators.test_composition import SMALL, F, assert_one_of
from tests.stacks import gaussian


def test_bucketing_draws_fresh_buckets_from_its_key():
    rule = jax.jit(byzjax.bucketing(byzjax.median(), 2).aggregate)
    rows = gaussian(SMALL, seed=40)
    outcomes = ref.bucketing(ref.median, 2)(rows.astype(np.float64), 1)
    seen = set()
    for seed in range(60):
        got = rule(rows, key=jax.random.key(seed))
        assert_one_of(got, outcomes, 1e-5)
        seen.add(int(np.argmin(np.max(np.abs(outcomes - np.asarray(got)), axis=1))))
        np.testing.assert_array_equal(got, rule(rows, key=jax.random.key(seed)))
    assert len(seen) >= 12, "of fifteen ways to deal six workers"


def test_nested_random_rules_draw_independently():
    """Were both levels to use the same key, some outcomes could not occur."""
    rule = byzjax.bucketing(byzjax.bucketing(byzjax.median(), 2), 2)
    rule = jax.jit(rule.aggregate)
    rows = np.arange(6, dtype=np.float32)[:, None] ** 3
    seen = {round(float(rule(rows, key=jax.random.key(s))[0]), 2) for s in range(200)}
    once = ref.bucketing(ref.bucketing(ref.median, 2), 2)(rows.astype(np.float64), 0)
    assert seen == {round(float(x), 2) for x in once.ravel()}


def test_with_key_keeps_a_key_of_its_own():
    rule = byzjax.with_key(
        byzjax.ctma(byzjax.bucketing(byzjax.median(), 2), F), jax.random.key(7)
    )
    rows, again = gaussian(seed=41), []
    for _ in range(2):
        state, outs = rule.init(rows[0]), []
        for _ in range(6):
            out, state = jax.jit(rule.update)(rows, state)
            outs.append(np.asarray(out))
        again.append(outs)
    np.testing.assert_array_equal(again[0], again[1])
    assert len({out.tobytes() for out in again[0]}) > 1
    np.testing.assert_allclose(rule.aggregate(rows), again[0][0], rtol=1e-5, atol=1e-6)
    first, second = rule.init(rows[0]), rule.init(rows[0])
    jax.tree.map(lambda leaf: leaf.delete(), first)  # As donating it would.
    assert jax.random.key_data(second.key).shape == (2,)

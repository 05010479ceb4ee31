"""What rules remember of rows that were not finite, or too large to be added up."""

import jax.numpy as jnp
import numpy as np
import pytest

import byzjax

HONEST = 1 + 0.1 * np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_the_norm_of_a_bad_batch_is_no_norm(lost):
    """Four attackers, and a fifth worker whose batch was bad in the round before."""
    rule = byzjax.clipped_clustering()
    first, second = HONEST.copy(), HONEST.copy()
    first[:4] = second[:4] = 1e6
    first[4] = lost
    _, state = rule.update(jnp.asarray(first), rule.init(jnp.zeros(2)))
    out, after = rule.update(jnp.asarray(second), state)
    assert np.linalg.norm(out) <= np.linalg.norm(HONEST, axis=1).max()
    present = jnp.arange(9) != 4
    _, other = rule.update(jnp.asarray(HONEST), rule.init(jnp.zeros(2)))
    _, absent = rule.update(
        jnp.asarray(first), rule.init(jnp.zeros(2)), present=present
    )
    assert (other.count, state.count, absent.count, after.count) == (9, 8, 8, 17)
    np.testing.assert_array_equal(state.norms, absent.norms)


def test_few_of_many_take_the_places_of_the_oldest_round_and_no_more():
    """16 of 33 are attackers, in each round but the last, of which one of three is."""
    evil = np.isin(np.arange(33), [1, *range(5, 20)])
    rows = jnp.asarray(np.where(evil[:, None], 1e6, 1.0) * [[1.0, 0.0]], jnp.float32)
    rule = byzjax.clipped_clustering(window=69)
    state = rule.init(jnp.zeros(2))
    for here in (np.ones(33, bool), np.ones(33, bool), np.arange(33) < 3):
        out, state = rule.update(rows, state, present=jnp.asarray(here))
        np.testing.assert_allclose(out, [1, 0], atol=1e-5)
    assert state.count == 69 and np.sum(state.norms > 10) == 16 + 16 + 1


def test_the_middle_of_two_norms_that_cannot_be_added():
    rows = 1e38 * jnp.array([[3.3, 0], [1.8, 0], [1.8, 0], [0, 1.8]])
    out = byzjax.clipped_clustering().aggregate(rows)
    np.testing.assert_allclose(out, [1.8e38, 0], rtol=1e-6)


def test_a_worker_whose_history_left_the_range_is_left_out():
    rule = byzjax.foolsgold(num_workers=4)
    state = rule.init(jnp.zeros(2))
    rows = jnp.array([[3e38, 0], [1e37, 1e37], [1e37, 1e37], [1e37, 1e37]])
    _, state = rule.update(rows, state)
    for _ in range(3):
        out, state = rule.update(rows, state)
        np.testing.assert_allclose(out, [1e37, 1e37], rtol=1e-6)

"""Which neighbours Krum and multi-Krum count."""

import jax.numpy as jnp
import numpy as np
import pytest

import byzjax


@pytest.mark.parametrize("num_neighbors", [2, 3])
@pytest.mark.parametrize("rule", [byzjax.krum, byzjax.multi_krum])
def test_more_neighbors_than_finite_rows_do_not_make_all_scores_equal(
    rule, num_neighbors
):
    """Four rows are finite: each has three neighbours, and no other counts."""
    rows = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    rows[[0, 5]] = [[np.nan], [-np.inf]]
    got = rule(2, num_neighbors=num_neighbors).aggregate(rows)
    few = rule(0, num_neighbors=min(num_neighbors, 3)).aggregate(rows[1:5])
    np.testing.assert_allclose(got, few, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [byzjax.krum, byzjax.multi_krum])
def test_attackers_are_not_all_of_each_others_neighbors(make):
    with pytest.raises(ValueError, match="needs num_neighbors >= num_byzantine, as"):
        make(2, num_neighbors=1)
    rows = jnp.asarray([[0.0], [1], [2.2], [3.3], [4.7], [1e6], [1e6]])
    assert make(2, num_neighbors=2).aggregate(rows) <= 4.7


@pytest.mark.parametrize("make", [byzjax.krum, byzjax.multi_krum])
def test_no_honest_row_counts_an_attacker(make):
    """With m - 1 neighbours the farther attacker would choose the nearer one."""
    rows = jnp.asarray([[0.0], [0.5], [1], [100], [1e4]])
    with pytest.raises(ValueError, match="needs num_neighbors <= num_workers - num_b"):
        make(2, num_neighbors=3).aggregate(rows)
    assert make(2, num_neighbors=2).aggregate(rows) <= 1

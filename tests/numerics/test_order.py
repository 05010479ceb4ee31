"""Order statistics: exact, whatever the values, and on both sides of the network."""

import functools
import inspect

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax.numerics import _counting, _network, _ranks, _reductions, _words, order

LIMIT = order.NETWORK_LIMIT
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 11, 16, 17, 33, LIMIT, LIMIT + 1, 100]
few = [
    pytest.param(m, marks=[pytest.mark.slow] if 20 < m <= LIMIT else []) for m in SIZES
]


def sort(rows):
    """NaN as +inf, then sorted."""
    return np.sort(np.where(np.isnan(rows), np.inf, rows), axis=0)


def awkward(m: int, seed: int = 0) -> np.ndarray:
    """Columns of NaN, infinities, ties, both zeros, float limits and plain numbers."""
    rng = np.random.default_rng(seed)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-30, 1, 1, 2]
    rows = rng.normal(size=(m, 40))
    rows[:, :15] = rng.choice(special, size=(m, 15))
    rows[:, 15:20] = rng.integers(-2, 3, size=(m, 5))
    rows[:, 20] = np.nan
    rows[:, 21] = -np.inf
    rows[:, 22] = 7.0
    return rows.astype(np.float32)


@functools.cache
def statistics(m: int):
    return jax.jit(lambda rows: order.order_statistics(rows, range(m)))


@pytest.mark.parametrize("m", few)
def test_all_order_statistics_are_exact(m):
    for seed in range(3):
        rows = awkward(m, seed)
        np.testing.assert_array_equal(statistics(m)(rows), sort(rows))


@pytest.mark.parametrize("m", [6, 17, LIMIT, LIMIT + 6])
def test_pruned_to_single_ranks(m):
    rows = awkward(m, 3)
    for ranks in ([0], [m - 1], [m // 2], [0, m - 1], [1, 2, 4]):
        got = jax.jit(lambda x, r=tuple(ranks): order.order_statistics(x, r))(rows)
        np.testing.assert_array_equal(got, sort(rows)[ranks])


@pytest.mark.parametrize("m", range(1, 17))
def test_the_network_sorts_all_zero_one_rows(m):
    """The 0-1 principle: a network that sorts all zeros and ones sorts everything."""
    columns = (np.arange(2 ** min(m, 12))[None] >> np.arange(m)[:, None]) & 1
    if m > 12:
        columns = np.random.default_rng(m).integers(0, 2, size=(m, 4096))
    values = columns.astype(np.float32)
    for i, j, low, high in _network._batcher(m, tuple(range(m))):
        a, b = values[i].copy(), values[j].copy()
        values[i] = np.minimum(a, b) if low else a
        values[j] = np.maximum(a, b) if high else b
    np.testing.assert_array_equal(values, np.sort(columns, axis=0))


@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.float32, (9, 6), elements=st.floats(width=32))
)
def test_any_nine_floats(rows):
    # Subnormal numbers are zero on most accelerators and on XLA:CPU.
    rows = np.where(np.abs(rows) < np.finfo(np.float32).tiny, np.float32(0), rows)
    np.testing.assert_array_equal(statistics(9)(rows), sort(rows))


@pytest.mark.parametrize("m", [1, 2, 5, 8, LIMIT + 1, LIMIT + 2])
def test_middle(m):
    rows = awkward(m, 4)
    ordered = sort(rows).astype(np.float64)
    low, high = ordered[(m - 1) // 2], ordered[m // 2]
    with np.errstate(invalid="ignore"):
        expected = np.where(low == high, low, low / 2 + high / 2)
    got = jax.jit(order.middle)(rows)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    got = jax.jit(functools.partial(order.middle, even="lower"))(rows)
    np.testing.assert_array_equal(got, low)


def test_the_midpoint_does_not_overflow():
    rows = jnp.array([[3e38], [3.2e38]])
    for function in (order.middle, jax.jit(order.middle)):
        np.testing.assert_allclose(function(rows), [3.1e38], rtol=1e-6)


@pytest.mark.parametrize("m", [7, 8, LIMIT + 6])
def test_equal_rows_share_a_derivative(m):
    """As `influence` would say that the other workers do not matter."""
    rows = jnp.arange(m, dtype=jnp.float32).at[1:-1].set(m / 2)
    shares = jax.grad(lambda x: order.middle(x[:, None])[0])(rows)
    np.testing.assert_allclose(jnp.sum(shares), 1, rtol=1e-6)
    assert shares[0] == shares[-1] == 0
    even = 1 / (m - 2)
    assert (shares[1:-1] > even / 2).all() and (shares[1:-1] < even * 2).all()


@pytest.mark.parametrize("m, trim", [(1, 0), (5, 0), (5, 2), (11, 3), (LIMIT + 3, 20)])
def test_trimmed_mean_sums_what_is_kept(m, trim):
    rows = awkward(m, 5)[:, 23:]
    rows[:trim] = 1e8  # Gone without a trace: nothing is subtracted again.
    expected = np.mean(sort(rows).astype(np.float64)[trim : m - trim], axis=0)
    got = jax.jit(lambda x: order.trimmed_mean(x, trim))(rows)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [awkward(70, 5)[:, 23:], awkward(9, 5)[:, 23:]])
def test_trimmed_mean_weighs_what_is_kept_alike(rows):
    trim, m = 2, len(rows)
    shares = jax.grad(lambda x: jnp.sum(order.trimmed_mean(x, trim)))(rows)
    place = np.argsort(np.argsort(rows, axis=0), axis=0)
    kept = (trim <= place) & (place < m - trim)
    np.testing.assert_allclose(shares, kept / (m - 2 * trim), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("m", [9, 70])
def test_trimmed_mean_of_very_large_values(m):
    rows = np.zeros((m, 5), np.float32)
    rows[:3] = np.array([-np.inf, -3e38, 3e38, np.inf, np.nan], np.float32)
    rows[3:6, 1] = 3e38
    got = jax.jit(order.summable(lambda x: order.trimmed_mean(x, 2)))(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.mean(sort(rows).astype(np.float64)[2:-2], axis=0)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e31)


@pytest.mark.parametrize(
    "m, count", [(5, 1), (5, 3), (11, 11), (11, 6), (11, 2), (70, 40)]
)
def test_nearest_mean(m, count):
    rng = np.random.default_rng(6)
    rows = np.where(np.abs(awkward(m, 6)) > 1e38, np.inf, awkward(m, 6))
    rows[:, 23:30] = rng.integers(-2, 3, size=(m, 7))  # Equally far on both sides.
    center = np.where(np.arange(40) < 30, 0, rng.normal(size=40)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        distances = np.abs(rows - center)
    distances = np.where(np.isnan(distances), np.inf, distances)
    near = np.argsort(distances, axis=0, kind="stable")[:count]
    columns = np.isfinite(np.take_along_axis(distances, near, 0)).all(axis=0)
    near = np.take_along_axis(rows, near, 0)
    with np.errstate(invalid="ignore"):
        expected = np.mean(near, axis=0, dtype=np.float64)
    function = order.nearest_mean
    got = np.asarray(jax.jit(function, static_argnums=2)(rows, center, m - count))
    np.testing.assert_allclose(got[columns], expected[columns], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("m", [11, 70])
def test_nearest_mean_of_distinct_distances(m):
    rows = np.random.default_rng(11).normal(size=(m, 20)).astype(np.float32)
    gaps = np.abs(rows)
    near = np.take_along_axis(rows, np.argsort(gaps, axis=0)[: m // 2], 0)
    got = jax.jit(order.nearest_mean, static_argnums=2)(rows, jnp.zeros(20), m - m // 2)
    np.testing.assert_allclose(got, near.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_marks_exactly_so_many_and_the_lowest_of_equals():
    distances = jnp.array([2.0, 1.0, 1.0, 0.0, 1.0, jnp.inf, jnp.inf, jnp.nan])
    for count, expected in (
        (1, [3]),
        (2, [1, 3]),
        (3, [1, 2, 3]),
        (6, [0, 1, 2, 3, 4, 5]),
        (8, range(8)),
    ):
        got = order.mark_nearest(distances, count)
        np.testing.assert_array_equal(np.flatnonzero(got), list(expected))
        assert got.sum() == count


def expand(rows, weights):
    return np.repeat(rows, weights, axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_median_is_that_of_repeated_rows(seed):
    rng = np.random.default_rng(seed)
    rows, weights = awkward(9, seed), rng.integers(0, 4, size=9)
    weights[0] += 1 + np.sum(weights) % 2  # Not none, and odd: one middle value.
    weights[1] += 1 - np.sum(weights) % 2
    repeated = sort(expand(rows, weights))
    got = _weighted_median(rows, jnp.asarray(weights, jnp.float32))
    np.testing.assert_array_equal(got, repeated[len(repeated) // 2])


_weighted_median = jax.jit(order.weighted_median)


def test_weighted_median_exceeds_one_half():
    rows = jnp.array([[1.0], [2.0], [3.0], [4.0]])
    for weights, expected in (
        ([1, 1, 1, 1], 3),  # Half is reached at 2 and exceeded at 3.
        ([0, 1, 0, 0], 2),
        ([3, 1, 1, 1], 2),
        ([4, 1, 1, 1], 1),
        ([1, 1, 1, 4], 4),
    ):
        got = _weighted_median(rows, jnp.asarray(weights, jnp.float32))
        assert got == expected, weights


@pytest.mark.parametrize("seed", range(5))
def test_weighted_trimmed_mean_is_that_of_repeated_rows(seed):
    rng = np.random.default_rng(seed)
    rows, weights = awkward(9, seed)[:, 15:20], rng.integers(0, 4, size=9)
    repeated = sort(expand(rows, weights)).astype(np.float64)
    total = len(repeated)
    for cut in range(0, (total - 1) // 2, 2):
        parts = 9 * cut / total
        got = _weighted_trimmed(rows, jnp.asarray(weights, jnp.float32), parts)
        kept = repeated[cut : total - cut]
        np.testing.assert_allclose(got, kept.mean(axis=0), rtol=1e-5, atol=1e-5)


_weighted_trimmed = jax.jit(order.weighted_trimmed_mean)


def test_weighted_trimmed_mean_drops_what_is_not_finite():
    rows = jnp.array([[1.0], [2.0], [3.0], [jnp.nan], [jnp.inf], [-jnp.inf]])
    got = _weighted_trimmed(rows, jnp.array([1.0, 1, 1, 0.5, 0.5, 1]), 6 * 0.2)
    np.testing.assert_allclose(got, [2.0], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 31])
def test_row_sum_adds_everything_once(count):
    rows = [jnp.full((2,), float(2**i % 1021)) for i in range(count)]
    np.testing.assert_array_equal(order.row_sum(rows), np.sum(rows, axis=0))


def test_the_program_of_many_rows_does_not_grow():
    def size(m):
        rows = jax.ShapeDtypeStruct((m, 4), jnp.float32)
        return len(str(jax.make_jaxpr(order.middle)(rows)).splitlines())

    # A step for each bit, in place of the m log² m of a network.
    assert size(1024) < 2 * size(LIMIT + 2) and size(LIMIT + 2) < size(LIMIT)


def test_nothing_sorts_along_the_worker_axis():
    modules = order, _ranks, _network, _words, _counting, _reductions
    source = "".join(map(inspect.getsource, modules))
    code = "\n".join(x for x in source.splitlines() if "`" not in x and "#" not in x)
    assert "jnp.sort(" not in code and "jnp.median(" not in code

"""The geometry of a stack, against NumPy in float64, and rows out of its range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax.numerics import (
    _columns,
    _crowds,
    _pairs,
    _pairs_gpu,
    _products,
    stacked,
)
from tests.numerics import clusters
from tests.numerics.clusters import BLOCK, D, M, assert_distances, clustered, squared


@pytest.fixture(autouse=True, params=["by pairs", "by products"])
def way(request, monkeypatch):
    """Two ways; the second is that of other devices and of many workers."""
    if request.param == "by products":
        for module in (_pairs, _pairs_gpu):
            monkeypatch.setattr(module, "MOST_ROWS", 0)
    # Of its own function: a compiled program would be that of the other way.
    monkeypatch.setattr(clusters, "geometry", jax.jit(lambda x: stacked.geometry(x)))


def geometry(updates):
    return clusters.geometry(updates)


def test_distances_between_close_rows():
    for seed in range(5):
        assert_distances(clustered(seed), np.arange(M))


@pytest.mark.parametrize("scale", [1e6, -1e6, 1e9, 1e15, 1e30, 3e38, np.inf, np.nan])
def test_distances_beside_one_huge_row_at_any_index(scale):
    for at in range(M):
        rows = clustered(1)
        rows[at] = np.sign(rows[at]) * np.float32(scale)
        assert_distances(rows, np.delete(np.arange(M), at))


@pytest.mark.parametrize("seed", range(8))
def test_no_ladder_of_planted_rows_blurs_the_distances(seed):
    """Rows at falling distances, each within the blur that the one before it makes."""
    rng = np.random.default_rng(seed)
    f = M // 2
    for trial in range(20):
        exponents = np.sort(rng.uniform(0, 17, size=f))[::-1]
        direction = rng.normal(size=(1 if trial % 2 else f, D))
        rows = clustered(trial)
        rows[:f] = (direction * 10.0 ** exponents[:, None]).astype(np.float32)
        order = np.arange(M)[::-1]  # The first centre is the last row.
        if trial % 3 == 0:
            order = np.append(1 + rng.permutation(M - 1), 0)
        assert_distances(rows[order], np.flatnonzero(order >= f))


def test_distances_from_huge_rows_are_huge():
    rows = clustered(2)
    rows[4] *= np.float32(1e6)
    got = geometry(jnp.asarray(rows))
    np.testing.assert_allclose(
        got.squared_distances[4], squared(rows)[4], rtol=1e-4, atol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 3e1, 3e2, 1e4, 1e6, 1e9])
@pytest.mark.parametrize("at", [0, 4, M - 1])
def test_inner_products_beside_a_far_row(scale, at):
    """Of near rows with each other and with the far one, each to its own lengths."""
    rng = np.random.default_rng(at)
    rows = clustered(3, spread=1)
    rows[at] = rows[at] + np.float32(scale) * np.float32(rng.normal(size=D))
    gram = np.asarray(geometry(jnp.asarray(rows)).gram, np.float64)[:M, :M]
    center = int(np.argmin(np.diagonal(gram)))
    gaps = np.float64(rows) - np.float64(rows[center])
    lengths = np.linalg.norm(gaps, axis=1)
    blur = np.abs(gram - gaps @ gaps.T)
    assert (blur <= 2e-5 * lengths[:, None] * lengths).all()


def test_identical_rows_are_at_no_distance():
    rows = np.tile(clustered(3)[:1], (M, 1))
    np.testing.assert_array_equal(geometry(jnp.asarray(rows)).squared_distances, 0)


@pytest.mark.parametrize("place", [0, 5], ids=["first", "amid"])
@pytest.mark.parametrize("far", [1, 1e3])
def test_distances_within_crowds_far_from_the_centre(place, far):
    """Two crowds so far out that products around the centre take each for one place."""
    rng = np.random.default_rng(9)
    rows = clustered(9, spread=1)
    for crowd, size in ((slice(place, place + 3), 1e-3), (slice(8, 10), 1e-4)):
        many = crowd.stop - crowd.start
        rows[crowd] = far * rng.normal(size=D)
        rows[crowd] += np.float32(far * size * rng.normal(size=(many, D)))
    rows[3:5, :2] = np.inf
    rows[3:5, 2:] = np.nan if far > 1 else 0
    apart = np.array([0, 1, 2, 5, 6, 7, 8, 9, 10])
    assert_distances(rows, apart, rtol=1e-3)


def test_copies_ask_for_no_other_look():
    """What many attacks send, in every step of a simulation."""
    rows = clustered(9, spread=1)
    rows[:4], rows[7:9] = rows[0], 1e4 * rows[7]
    for near, asks in ((0, False), (1e-3, True)):
        rows[3] = rows[0] * (1 + near)
        inner, _, _ = _products.around_row(
            [jnp.asarray(rows)], None, jnp.int32(M - 1), parts=1
        )
        distances = _products.distances_in(inner)
        crowded, _ = _crowds.crowds(inner, distances, jnp.ones(M, bool))
        assert crowded == asks


def test_float64_rows_are_measured_in_float64():
    with jax.enable_x64(True):
        rows = clustered(4, spread=1e-9).astype(np.float64)
        rows += 1e-9 * np.random.default_rng(0).normal(size=rows.shape)
        got = stacked.geometry(jnp.asarray(rows))
        assert got.squared_distances.dtype == jnp.float64
        exact = squared(rows)
        np.testing.assert_allclose(got.squared_distances, exact, rtol=1e-9)


@pytest.mark.parametrize("d", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_blocks_of_columns_leave_nothing_out(d):
    rows = clustered(5, d=d)
    rows[:, -1] += np.arange(M)  # What only the last column tells.
    rows[2] *= 1e6
    assert_distances(rows, np.delete(np.arange(M), 2))


def test_a_tree_is_measured_as_a_whole():
    rows = clustered(6)
    tree = {
        "a": jnp.asarray(rows[:, :20].reshape(M, 4, 5)),
        "b": [jnp.asarray(rows[:, 20]), jnp.asarray(rows[:, 21:])],
    }
    got = geometry(tree)
    assert_distances(rows, np.arange(M), got)
    tree["a"] = tree["a"].at[3, 1, 1].set(jnp.nan)
    got = geometry(tree)
    assert not got.finite[3] and np.isinf(got.squared_distances[3, [0, 10]]).all()
    assert_distances(rows, np.delete(np.arange(M), 3), got)


@pytest.mark.slow
@pytest.mark.parametrize("width", [17, 5003, BLOCK + 3])
def test_leaves_of_one_width_leave_nothing_out(width):
    """They share a loop: more of them than one takes, with columns left over."""
    count = 3 if width > BLOCK else _columns.PRODUCTS + 3
    rows = clustered(9, d=count * width + 40)
    # What only the last column of each leaf tells.
    rows[:, width - 1 :: width] += np.arange(M, dtype=np.float32)[:, None]
    leaves = np.split(rows, np.arange(1, count + 1) * width, axis=1)
    tree = [jnp.asarray(x) for x in leaves]
    # Products were 1.4e-5 off on a GPU.
    assert_distances(rows, np.arange(M), geometry(tree), rtol=2e-5)
    center = [x[0] + 1 for x in tree]
    got = jax.jit(stacked.distances_to_tree)(tree, center).plain()
    exact = np.sqrt(squared(rows, rows[:1] + np.float32(1))[:, 0])
    np.testing.assert_allclose(got, exact, rtol=1e-5)


def test_leaves_of_different_precision():
    rows = clustered(7)
    halves = jnp.asarray(rows[:, :20], jnp.bfloat16)
    got = geometry([halves, jnp.asarray(rows[:, 20:])])
    rounded = np.concatenate([np.float32(halves), rows[:, 20:]], axis=1)
    assert got.gram.dtype == jnp.float32
    assert_distances(rounded, np.arange(M), got)


def test_distances_are_symmetric_with_an_empty_diagonal():
    rows = clustered(8)
    rows[1], rows[5] = np.nan, 1e17
    got = np.asarray(geometry(jnp.asarray(rows)).squared_distances)
    np.testing.assert_array_equal(got, got.T)
    assert (np.delete(np.diagonal(got), 1) == 0).all()


def test_rows_out_of_range_are_infinitely_far():
    values = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 1e18]
    for value in values:
        rows = clustered(9)
        rows[[0, 6]] = value
        got = geometry(jnp.asarray(rows))
        expected = np.isin(np.arange(M), [0, 6], invert=True)
        np.testing.assert_array_equal(got.finite, expected)
        np.testing.assert_array_equal(np.isinf(got.norms), ~expected)
        outside = ~(expected[:, None] & expected[None])
        np.testing.assert_array_equal(np.isinf(got.squared_distances), outside)
        assert np.isfinite(got.gram).all()


def test_all_rows_out_of_range():
    for value in (np.nan, np.inf):
        got = geometry(jnp.full((M, D), value))
        assert not got.finite.any() and np.isfinite(got.gram).all()


def test_one_finite_row_is_found():
    for at in range(M):
        rows = np.full((M, D), np.nan, np.float32)
        rows[at] = clustered(9)[0]
        got = geometry(jnp.asarray(rows))
        np.testing.assert_array_equal(got.finite, np.arange(M) == at)
        assert np.isfinite(got.gram).all()


@pytest.mark.parametrize("far", [False, True])
def test_around_an_origin(far):
    rows, origin = clustered(10), np.float32(clustered(11)[0])
    if far:  # The first centre: another pass is made around a better one.
        rows[-1] *= np.float32(1e6)
    got = jax.jit(lambda x, o: stacked.geometry(x, origin=o))(rows, origin)
    exact = squared(rows, origin[None])[:, 0]
    np.testing.assert_allclose(got.norms, np.sqrt(exact), rtol=1e-5)
    at_origin = jnp.zeros((M,))
    got = got.squared_distances_to(at_origin)
    np.testing.assert_allclose(got, exact, rtol=1e-3)


def test_norms_alone():
    rows = clustered(12, d=BLOCK + 3)
    rows[2], rows[3], rows[4] = np.nan, 1e30, 1e-30
    got = jax.jit(stacked.norms)(jnp.asarray(rows))
    np.testing.assert_array_equal(got.finite, ~np.isin(np.arange(M), [2, 3]))
    ok = np.asarray(got.finite)
    exact = np.linalg.norm(np.float64(rows[ok]), axis=1)
    np.testing.assert_allclose(got.norms[ok], exact, rtol=1e-5)

"""Points of the plane, mixing and sums over a stack, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax.numerics import order, stacked
from tests.numerics.clusters import BLOCK, D, M, clustered, geometry, squared

# --- points of the plane, mixing ------------------------------------------------------


@functools.cache
def mixing(n=7, total=1.0):
    rng = np.random.default_rng(13)
    matrix = rng.random((n, M)) * (rng.random((n, M)) < 0.5)
    matrix[0] = np.eye(M)[4]
    return np.float32(total * matrix / matrix.sum(axis=1, keepdims=True))


def test_distances_to_a_weighting():
    rows, weights = clustered(14), mixing()[3]
    got = geometry(jnp.asarray(rows)).squared_distances_to(weights)
    z = np.float64(weights) @ np.float64(rows)
    np.testing.assert_allclose(got, squared(rows, z[None])[:, 0], rtol=1e-3)


@pytest.mark.parametrize("total", [1.0, 0.5])
def test_mixing_the_geometry_is_mixing_the_rows(total):
    """Rows that sum to less than one, as clipped ones do, lie nearer the origin."""
    rows = clustered(15, spread=1e-1)
    matrix = mixing(total=total)
    got = geometry(jnp.asarray(rows)).mixed(jnp.asarray(matrix))
    mixed = np.float64(matrix) @ np.float64(rows)
    np.testing.assert_allclose(
        got.squared_distances, squared(mixed), rtol=1e-3, atol=1e-5
    )
    norms = np.linalg.norm(mixed, axis=1)
    np.testing.assert_allclose(got.norms, norms, rtol=1e-4)
    assert got.num_workers == len(matrix)


def test_mixing_twice_is_mixing_by_the_product():
    rows, first = clustered(16), mixing()
    second = np.float32(np.random.default_rng(17).dirichlet(np.ones(7), size=5))
    start = geometry(jnp.asarray(rows))
    twice = start.mixed(first).mixed(second)
    mixed = np.float64(second) @ np.float64(first) @ np.float64(rows)
    exact = np.sqrt(squared(mixed))
    np.testing.assert_allclose(
        np.sqrt(twice.squared_distances), exact, rtol=1e-3, atol=1e-3 * exact.max()
    )


def test_mixing_close_rows_beside_a_huge_one():
    rows = clustered(18)
    rows[10] = 1e9
    matrix = mixing()
    clean = np.flatnonzero(matrix[:, 10] == 0)
    assert len(clean) >= 3
    got = geometry(jnp.asarray(rows)).mixed(jnp.asarray(matrix))
    exact = squared((np.float64(matrix) @ np.float64(rows))[clean])
    np.testing.assert_allclose(
        got.squared_distances[np.ix_(clean, clean)], exact, rtol=1e-2, atol=1e-10
    )


def test_mixed_rows_are_finite_if_all_that_enter_are():
    rows, matrix = clustered(19), mixing()
    rows[10] = np.nan
    start = geometry(jnp.asarray(rows))
    got = start.mixed(jnp.asarray(matrix))
    np.testing.assert_array_equal(got.finite, matrix[:, 10] == 0)
    np.testing.assert_array_equal(start.mixed_finite(matrix), got.finite)


@pytest.mark.parametrize("d", [D, BLOCK + 7])
def test_mixing_the_stack(d):
    rows, matrix = clustered(20, d=d), mixing()
    rows[10] = np.inf
    rows[9, 3] = np.nan
    finite = (matrix[:, 10] == 0) & (matrix[:, 9] == 0)
    assert finite.any() and not finite.all()
    tree = [jnp.asarray(rows[:, :10].reshape(M, 2, 5)), jnp.asarray(rows[:, 10:])]
    got = jax.jit(stacked.mix)(tree, jnp.asarray(matrix), jnp.asarray(finite))
    got = np.concatenate([leaf.reshape(len(matrix), -1) for leaf in got], axis=1)
    assert np.isnan(got[~finite]).all()
    rows[9:] = 0
    exact = (np.float64(matrix) @ np.float64(rows))[finite]
    np.testing.assert_allclose(got[finite], exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("most_terms", [0, 256])
def test_means_of_rows_by_a_product_or_row_by_row(monkeypatch, most_terms):
    monkeypatch.setattr(stacked, "_MOST_TERMS", most_terms)
    rows = clustered(28, d=BLOCK + 7, spread=1.0)
    groups = np.split(np.random.default_rng(29).permutation(M), [4, 8])
    matrix = np.zeros((4, M), np.float32)
    for i, group in enumerate([*groups, groups[0][:1]]):
        matrix[i, group] = 1 / len(group)
    finite = np.array([True, False, True, True])
    rows[groups[1][0]] = np.nan
    mixed = (np.float64(matrix) @ np.float64(np.nan_to_num(rows)))[finite]

    def mix(x, **reduce):
        return stacked.mix(
            x, jnp.asarray(matrix), jnp.asarray(finite), sizes=[4, 4, 3, 1], **reduce
        )

    got, pullback = jax.vjp(mix, jnp.asarray(rows))
    assert np.isnan(got[1]).all()
    np.testing.assert_allclose(got[finite], mixed, rtol=1e-5, atol=1e-6)
    cotangent = np.random.default_rng(30).normal(size=got.shape).astype(np.float32)
    expected = np.float64(matrix[finite]).T @ cotangent[finite]
    (gradient,) = pullback(jnp.asarray(cotangent))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)

    got = jax.jit(functools.partial(mix, reduce=order.middle))(rows)
    padded = np.append(mixed, np.full((1, mixed.shape[1]), np.inf), axis=0)
    expected = np.median(padded, axis=0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# --- sums -----------------------------------------------------------------------------


def test_a_row_of_weight_zero_is_never_read():
    for poison in (np.nan, np.inf, -np.inf, 3e38):
        rows, weights = clustered(21), np.linspace(0, 0.3, M).astype(np.float32)
        expected = np.float64(weights) @ np.float64(rows)
        rows[0] = poison
        got = jax.jit(stacked.weighted_sum)(jnp.asarray(rows), jnp.asarray(weights))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        _, pullback = jax.vjp(stacked.weighted_sum, rows, jnp.asarray(weights))
        gradient = pullback(got)[1]
        assert np.isfinite(gradient).all()


def test_what_weights_lack_to_one_is_at_the_origin():
    rows, origin = clustered(22), clustered(23)[0]
    weights = np.full(M, 0.5 / M, np.float32)
    got = stacked.weighted_sum(rows, jnp.asarray(weights), origin=origin)
    np.testing.assert_allclose(
        got, 0.5 * rows.mean(axis=0) + 0.5 * origin, rtol=1e-5, atol=1e-6
    )


def test_distances_to_a_tree():
    rows, center = clustered(24, d=BLOCK + 3), clustered(25, d=BLOCK + 3)[0]
    rows[0], rows[1, 7], rows[2, 9] = np.nan, 1e30, -np.inf
    trees = [([x[..., :6], x[..., 6:]]) for x in (jnp.asarray(rows), center)]
    got = jax.jit(stacked.distances_to_tree)(*trees).plain()
    assert np.isinf(got[:3]).all()
    exact = np.sqrt(squared(rows[3:], center[None])[:, 0])
    np.testing.assert_allclose(got[3:], exact, rtol=1e-5)


def test_derivatives_of_distances_do_not_depend_on_the_centre():
    rows = jnp.asarray(clustered(26, spread=0.5))
    with jax.enable_x64(True):
        rows = rows.astype(jnp.float64)
        tangent = jnp.asarray(np.random.default_rng(27).normal(size=rows.shape))

        def measure(x):
            geometry = stacked.geometry(x)
            return geometry.squared_distances, geometry.norms**2

        _, (distances, norms) = jax.jvp(measure, (rows,), (tangent,))
        gaps = rows[:, None] - rows[None]
        moves = tangent[:, None] - tangent[None]
        np.testing.assert_allclose(
            distances, 2 * np.sum(gaps * moves, axis=2), rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(
            norms, 2 * np.sum(rows * tangent, axis=1), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("rule", [byzjax.krum(1), byzjax.ctma(byzjax.median(), 1)])
def test_leaves_without_coordinates_add_nothing(rule):
    rows = jnp.asarray(np.random.default_rng(40).normal(size=(7, 5)), jnp.float32)
    nothing = jnp.zeros((7, 0), jnp.bfloat16)
    got = rule.aggregate([nothing, rows])
    assert got[0].shape == (0,) and got[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(got[1], rule.aggregate(rows))
    assert rule.aggregate(nothing).shape == (0,)

"""The geometry of a stack and the passes over it, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import columns, order, stacked

M, D = 11, 50
BLOCK = columns._block_columns(M, columns._CPU_BLOCK)

geometry = jax.jit(stacked.geometry)


def clustered(seed=0, m=M, d=D, spread=1e-3):
    """Honest rows late in training: spread 1e-3 of their norm."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=d) + spread * rng.normal(size=(m, d))).astype(np.float32)


def squared(rows, others=None):
    rows = np.asarray(rows, np.float64)
    others = rows if others is None else np.asarray(others, np.float64)
    return np.sum((rows[:, None] - others[None]) ** 2, axis=2)


def assert_distances(rows, honest, got=None, rtol=1e-4):
    """Distances among `honest` rows are right to `rtol`, whatever the others are."""
    got = geometry(jnp.asarray(rows)) if got is None else got
    at = np.ix_(honest, honest)
    exact = squared(rows[honest])
    # Of distances; their squares are what is stored.
    np.testing.assert_allclose(
        np.sqrt(np.float64(got.squared_distances[at])), np.sqrt(exact), rtol=rtol
    )
    norms = np.sum(np.float64(rows[honest]) ** 2, axis=1)
    np.testing.assert_allclose(got.squared_norms[honest], norms, rtol=1e-5)


# --- accuracy -------------------------------------------------------------------------


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


def test_identical_rows_are_at_no_distance():
    rows = np.tile(clustered(3)[:1], (M, 1))
    np.testing.assert_array_equal(geometry(jnp.asarray(rows)).squared_distances, 0)


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


@pytest.mark.parametrize("width", [17, 5003, BLOCK + 3])
def test_leaves_of_one_width_leave_nothing_out(width):
    """They share a loop: more of them than one takes, with columns left over."""
    count = 3 if width > BLOCK else columns.PRODUCTS + 3
    rows = clustered(9, d=count * width + 40)
    # What only the last column of each leaf tells.
    rows[:, width - 1 :: width] += np.arange(M, dtype=np.float32)[:, None]
    leaves = np.split(rows, np.arange(1, count + 1) * width, axis=1)
    tree = [jnp.asarray(x) for x in leaves]
    assert_distances(rows, np.arange(M), geometry(tree), rtol=1e-5)
    center = [x[0] + 1 for x in tree]
    got = jax.jit(stacked.squared_distances_to_tree)(tree, center)
    exact = squared(rows, rows[:1] + np.float32(1))[:, 0]
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
        np.testing.assert_array_equal(np.isinf(got.squared_norms), ~expected)
        outside = ~(expected[:, None] & expected[None])
        np.testing.assert_array_equal(np.isinf(got.squared_distances), outside)
        assert np.isfinite(got.gram).all()


def test_all_rows_out_of_range():
    for value in (np.nan, np.inf, 3e38):
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
    np.testing.assert_allclose(got.squared_norms, exact, rtol=1e-5)
    at_origin = jnp.zeros((M,))
    got = stacked.squared_distances_to(got, at_origin)
    np.testing.assert_allclose(got, exact, rtol=1e-3)


def test_norms_alone():
    rows = clustered(12, d=BLOCK + 3)
    rows[2], rows[3] = np.nan, 1e30
    got = jax.jit(stacked.norms)(jnp.asarray(rows))
    np.testing.assert_array_equal(got.finite, ~np.isin(np.arange(M), [2, 3]))
    ok = np.asarray(got.finite)
    np.testing.assert_allclose(
        got.squared_norms[ok], np.sum(np.float64(rows[ok]) ** 2, axis=1), rtol=1e-5
    )


# --- points of the plane, mixing ------------------------------------------------------


@functools.cache
def mixing(n=7, total=1.0):
    rng = np.random.default_rng(13)
    matrix = rng.random((n, M)) * (rng.random((n, M)) < 0.5)
    matrix[0] = np.eye(M)[4]
    return np.float32(total * matrix / matrix.sum(axis=1, keepdims=True))


def test_distances_to_a_weighting():
    rows, weights = clustered(14), mixing()[3]
    got = stacked.squared_distances_to(geometry(jnp.asarray(rows)), weights)
    z = np.float64(weights) @ np.float64(rows)
    np.testing.assert_allclose(got, squared(rows, z[None])[:, 0], rtol=1e-3)


@pytest.mark.parametrize("total", [1.0, 0.5])
def test_mixing_the_geometry_is_mixing_the_rows(total):
    """Rows that sum to less than one, as clipped ones do, lie nearer the origin."""
    rows = clustered(15, spread=1e-1)
    matrix = mixing(total=total)
    got = stacked.mix_geometry(geometry(jnp.asarray(rows)), jnp.asarray(matrix))
    mixed = np.float64(matrix) @ np.float64(rows)
    np.testing.assert_allclose(
        got.squared_distances, squared(mixed), rtol=1e-3, atol=1e-5
    )
    norms = np.sum(mixed**2, axis=1)
    np.testing.assert_allclose(got.squared_norms, norms, rtol=1e-4)
    assert got.num_workers == len(matrix)


def test_mixing_twice_is_mixing_by_the_product():
    rows, first = clustered(16), mixing()
    second = np.float32(np.random.default_rng(17).dirichlet(np.ones(7), size=5))
    start = geometry(jnp.asarray(rows))
    twice = stacked.mix_geometry(stacked.mix_geometry(start, first), second)
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
    got = stacked.mix_geometry(geometry(jnp.asarray(rows)), jnp.asarray(matrix))
    exact = squared((np.float64(matrix) @ np.float64(rows))[clean])
    np.testing.assert_allclose(
        got.squared_distances[np.ix_(clean, clean)], exact, rtol=1e-2, atol=1e-10
    )


def test_mixed_rows_are_finite_if_all_that_enter_are():
    rows, matrix = clustered(19), mixing()
    rows[10] = np.nan
    start = geometry(jnp.asarray(rows))
    got = stacked.mix_geometry(start, jnp.asarray(matrix))
    np.testing.assert_array_equal(got.finite, matrix[:, 10] == 0)
    np.testing.assert_array_equal(stacked.mixed_finite(start, matrix), got.finite)


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
    got = jax.jit(stacked.squared_distances_to_tree)(*trees)
    assert np.isinf(got[:3]).all()
    exact = squared(rows[3:], center[None])[:, 0]
    np.testing.assert_allclose(got[3:], exact, rtol=1e-5)


def test_nearest_takes_exactly_so_many_and_the_lowest_of_equals():
    distances = jnp.array([2.0, 1.0, 1.0, 0.0, 1.0, jnp.inf, jnp.inf, jnp.nan])
    for count, expected in (
        (1, [3]),
        (2, [1, 3]),
        (3, [1, 2, 3]),
        (6, [0, 1, 2, 3, 4, 5]),
        (8, range(8)),
    ):
        got = stacked.nearest(distances, count)
        np.testing.assert_array_equal(np.flatnonzero(got), list(expected))
        assert got.sum() == count


def test_derivatives_of_distances_do_not_depend_on_the_centre():
    rows = jnp.asarray(clustered(26, spread=0.5))
    with jax.enable_x64(True):
        rows = rows.astype(jnp.float64)
        tangent = jnp.asarray(np.random.default_rng(27).normal(size=rows.shape))

        def measure(x):
            geometry = stacked.geometry(x)
            return geometry.squared_distances, geometry.squared_norms

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

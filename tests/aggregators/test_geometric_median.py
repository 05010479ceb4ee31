"""The geometric median, which is found by iteration, where that is hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference as ref
from tests.stacks import D, gaussian

COMPILED = jax.jit(byzjax.geometric_median().aggregate)


def _median_cases():
    rng = np.random.default_rng(90)
    honest = rng.normal(size=(9, D))
    yield "nine against eight alike", np.concatenate([honest, np.full((8, D), 5.0)])
    yield "eight alike far off", np.concatenate([honest, np.full((8, D), 1e3)])
    centre = rng.normal(size=(1, D))
    pairs = rng.normal(size=(8, D))
    yield (
        "a row at the median",
        np.concatenate([centre, centre + pairs, centre - pairs]),
    )
    yield "collinear", np.linspace(-3, 7, 17)[:, None] ** 3 * rng.normal(size=D)
    yield "two places", np.repeat(rng.normal(size=(2, D)), [9, 8], axis=0)
    for far in (1e6, 1e12, 1e15):
        out = rng.normal(size=(4, D)) * far
        yield f"outliers at {far:g}", np.concatenate([out, rng.normal(size=(13, D))])
    close = rng.normal(size=D) + 1e-3 * rng.normal(size=(17, D))
    yield "late in training", close
    yield "late, one far", np.concatenate([[[1e6] * D], close[1:]])


@pytest.mark.parametrize("case", [c for c, _ in _median_cases()])
def test_geometric_median_is_reached(case):
    rows = np.float32(dict(_median_cases())[case])
    got = COMPILED(jnp.asarray(rows))
    expected = ref.geometric_median(rows.astype(np.float64))
    lengths = np.linalg.norm(rows - expected, axis=1)
    spread = np.median(lengths[lengths > 0])
    floor = 4e-7 * np.linalg.norm(expected)  # The rounding of the result itself.
    assert np.linalg.norm(got - expected) <= 1e-4 * spread + floor


FAR = {
    "all at one point": lambda rng, f, d, size: np.full((f, d), size),
    "every way": lambda rng, f, d, size: rng.normal(size=(f, d)) * size,
    "two scales": lambda rng, f, d, size: (
        np.where(np.arange(f)[:, None] % 2, size, 30.0) * np.ones((f, d))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e3, 1e6, 1e10, 1e17])
@pytest.mark.parametrize("m, d", [(17, 3), (9, 1), (48, 7), (65, 20), (512, 5)])
def test_no_minority_moves_it_from_its_place(m, d, size):
    """As many attackers as can be, wherever they are: 1e-4 of the spread."""
    rng = np.random.default_rng(m + d)
    f = (m - 1) // 2
    honest = rng.normal(size=(m - f, d)) + rng.normal(size=d)
    for place in FAR.values():
        rows = np.float32(np.concatenate([honest, place(rng, f, d, size)]))
        expected = ref.geometric_median(rows.astype(np.float64))
        got = COMPILED(jnp.asarray(rows))
        spread = np.median(np.linalg.norm(honest - honest.mean(0), axis=1))
        assert np.linalg.norm(got - expected) <= 1e-4 * spread


def _rows_of_many_scales():
    """Honest rows some of which are a millionth of the spread from each other."""
    yield [[10, 0], [100, 0], [0, 1e-6], [1e-6, -1e-6], [0.5, -1]]
    rng = np.random.default_rng(7)
    for _ in range(20):
        honest = rng.normal(size=(3, 2)) * [[1e-6], [10 ** rng.uniform(-6, -3)], [1]]
        line = np.outer(10 ** rng.uniform(-1, 3, 2), rng.normal(size=2))
        yield np.concatenate([line, honest])


def test_a_short_step_beside_a_row_is_not_the_end():
    """Beside a row every step is short, and seen from afar near rows are one."""
    for rows in map(np.float32, _rows_of_many_scales()):
        expected = ref.geometric_median(rows.astype(np.float64))
        half = np.sort(np.linalg.norm(rows - expected, axis=1))[2]
        got = COMPILED(jnp.asarray(rows))
        assert np.linalg.norm(got - expected) <= 1e-4 * half, rows.tolist()


@pytest.mark.parametrize("m, d", [(50, 3), (64, 8), (129, 5)])
def test_a_crowd_about_an_honest_row_is_no_one_place(m, d):
    """Attackers who copy a row but for a little: products see them all in one place."""
    rng = np.random.default_rng(m)
    f = (m - 1) // 2
    for size in 10.0 ** np.arange(-5, 0):
        honest = rng.normal(size=(m - f, d))
        crowd = honest[7] + size * rng.normal(size=(f, d))
        rows = np.float32(np.concatenate([crowd, honest]))
        expected = ref.geometric_median(rows.astype(np.float64))
        half = np.median(np.linalg.norm(rows - expected, axis=1))
        got = COMPILED(jnp.asarray(rows))
        floor = 4e-7 * np.linalg.norm(expected)
        assert np.linalg.norm(got - expected) <= 1e-4 * half + floor


@pytest.mark.slow
def test_derivatives_where_all_rows_count_alike():
    """Equal weights are no sign of a row: in the middle of a cross they move."""
    rows = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    got = jax.jacobian(byzjax.geometric_median().aggregate)(rows)
    for row, moved in zip(rows, jnp.moveaxis(got, 1, 0), strict=True):
        # H⁻¹ (I − u uᵀ), with H = Σ (I − u uᵀ) = 2 I.
        want = (np.eye(2) - np.outer(row, row)) / 2
        np.testing.assert_allclose(moved, want, atol=1e-5)


def test_the_middle_of_an_even_number_on_a_line():
    """All between the middle two is a minimum; they count alike."""
    got = byzjax.geometric_median().aggregate(jnp.asarray([[4.0], [0.0], [9.0], [1.0]]))
    np.testing.assert_allclose(got, [2.5], rtol=1e-6)


def test_weiszfeld_alone_has_a_start_and_a_smoothing():
    for given in (dict(init="mean"), dict(tolerance=0.1), dict(smoothing=0.1)):
        with pytest.raises(ValueError, match="needs num_iterations with smoothing"):
            byzjax.geometric_median(**given)
    rows = jnp.asarray(gaussian(9, D, seed=92))

    def with_smoothing(nu):
        rule = byzjax.geometric_median(smoothing=nu, num_iterations=3)
        return rule.aggregate(rows)

    traced = jax.vmap(with_smoothing)(jnp.asarray([0.1, 2.0]))
    for got, nu in zip(traced, (0.1, 2.0), strict=True):
        np.testing.assert_allclose(got, with_smoothing(nu), rtol=1e-5)


def test_tolerance_stops_near_the_geometric_median():
    rows = gaussian(17, D, seed=91)
    rule = byzjax.geometric_median(num_iterations=100, tolerance=1e-3)
    got = jax.jit(rule.aggregate)(rows)
    assert np.linalg.norm(got - ref.geometric_median(rows.astype(np.float64))) < 1e-1


@pytest.mark.parametrize("init", ["mean", "median", "zeros"])
def test_no_smoothing_is_too_small(init):
    """Traced zeros, and what is none in the unit of the rows."""
    rows = jnp.array([[0.0], [1.0], [3.0]])

    def of(nu, x):
        rule = byzjax.geometric_median(smoothing=nu, num_iterations=3, init=init)
        return rule.aggregate(x)

    assert np.isfinite(jax.jit(of)(0.0, rows)).all()
    assert np.isfinite(of(1e-50, jnp.ones((3, 2)))).all()
    assert np.isfinite(of(1e-10, rows * 1e30)).all()

"""Distances measured pair by pair, against NumPy in float64, and how blocks are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzjax.numerics import _pairs
from tests.compiling import AS_USERS_DO
from tests.numerics.clusters import squared

# Beside the ends of blocks: leaves that are copied, cut once, and cut often.
WIDTHS = {
    "nothing": [0],
    "one column": [1],
    "less than a tile": [63],
    "small leaves": [5, 0, 1, 300],
    "one leaf": [4099],
    "leaves of one width": [5003, 5003, 5003],
    "leaves of many widths": [7001, 12, 20_011, 4097],
    "blocks": [150_001],
}


def stack(m, widths, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(m, sum(widths))).astype(np.float32)
    if rows.size:  # What only the last column of each leaf tells.
        ends = np.cumsum([w for w in widths if w])
        rows[:, ends - 1] += np.arange(m, dtype=np.float32)[:, None]
    return rows, np.split(rows, np.cumsum(widths)[:-1], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("m", [1, 2, 9, 17, 25, _pairs.MOST_ROWS])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=list(WIDTHS))
def test_every_column_counts_once(m, widths):
    rows, leaves = stack(m, widths)
    norms, distances = jax.jit(_pairs.measured)([jnp.asarray(x) for x in leaves])
    zero = np.zeros_like(rows[:1])
    np.testing.assert_allclose(norms, squared(rows, zero)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(distances, squared(rows), rtol=1e-5)
    np.testing.assert_array_equal(distances, distances.T)


@pytest.mark.slow
@pytest.mark.parametrize("m", [1, 2, 9, 17, 25, _pairs.MOST_ROWS])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=list(WIDTHS))
def test_products_around_a_row(m, widths):
    """A far row takes nothing from the products of others, nor from its own."""
    rows, leaves = stack(m, widths)
    rows[-1] *= 1e6
    for center in {0, m // 2}:
        products, towards = jax.jit(_pairs.multiplied)(
            [jnp.asarray(x) for x in leaves], jnp.int32(center)
        )
        y = np.float64(rows) - rows[center]
        lengths = np.linalg.norm(y, axis=1)
        exact = y @ y.T
        np.fill_diagonal(exact, 0)
        error = np.abs(products - exact)
        assert (error <= 1e-6 * np.outer(lengths, lengths)).all()
        np.testing.assert_array_equal(products, products.T)
        own = np.linalg.norm(np.float64(rows[center]))
        error = np.abs(towards - y @ -np.float64(rows[center]))
        assert (error <= 1e-6 * lengths * own).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("at", [0, 2500, 5002])
def test_what_is_out_of_range_stays_in_its_row(bad, at):
    rows, _ = stack(9, [5003])
    rows[4, at] = bad
    norms, distances = jax.jit(_pairs.measured)([jnp.asarray(rows)])
    others = np.delete(np.arange(9), 4)
    assert not np.isfinite(norms[4])
    assert not np.isfinite(distances[4, others]).any()
    exact = squared(rows[others])
    np.testing.assert_allclose(distances[np.ix_(others, others)], exact, rtol=1e-5)


def test_leaves_of_different_precision():
    _, leaves = stack(9, [5003, 40, 6000])
    halves = [jnp.asarray(x, jnp.float16) for x in leaves[:2]]
    norms, distances = jax.jit(_pairs.measured)([*halves, jnp.asarray(leaves[2])])
    assert norms.dtype == distances.dtype == jnp.float32
    rounded = np.concatenate([*map(np.float32, halves), leaves[2]], axis=1)
    np.testing.assert_allclose(distances, squared(rounded), rtol=1e-5)


def test_nothing_is_written_but_sums_of_lanes():
    """XLA would write out all that is compared, were a loop or a piece gone."""
    for widths in ([5000], [16_384] * 3, [100_000, 16_384, 700]):
        leaves = [jax.ShapeDtypeStruct((17, w), jnp.float32) for w in widths]
        stack_bytes = 4 * 17 * sum(widths)
        center = jax.ShapeDtypeStruct((), jnp.int32)
        for function, *args in (_pairs.measured,), (_pairs.multiplied, center):
            program = jax.jit(function).lower(leaves, *args).compile(AS_USERS_DO)
            temp = program.memory_analysis().temp_size_in_bytes
            assert temp <= stack_bytes + (1 << 20)


@given(
    m=st.integers(1, _pairs.MOST_ROWS),
    n=st.integers(0, 3_000_000),
    most=st.integers(1, 16),
)
def test_blocks(m, n, most):
    turns, tiles, pieces = _pairs._blocks(m, n, most)
    assert 1 <= pieces <= most
    kept = tiles * m * (m + 1) // 2 * _pairs._lanes(m)
    assert n >= turns * tiles * pieces * _pairs._lanes(m)
    assert turns != 1 and kept <= max(_pairs._KEPT, kept // tiles)
    assert tiles % 4 or tiles < 4
    turns, tiles, pieces = _pairs._blocks(m, n, most, up=True)
    lacking = turns * tiles * pieces * _pairs._lanes(m) - n
    assert turns > 1 and 0 <= lacking <= 2 * tiles * pieces * _pairs._lanes(m)

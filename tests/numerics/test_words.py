"""Order statistics of many rows: exact in both ways, and in a bounded program."""

import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax.numerics import _counting, _planes, _words, order
from tests.compiling import AS_USERS_DO
from tests.numerics.test_order import awkward, sort

WAYS = {
    "words": _words.by_words,
    "planes": _planes.by_planes,
    "count": _counting.by_count,
}
FUSED = _words._MOST_FUSED  # 32 bits of a word for 32 rows.
UNROLLED = 32 * _words._MOST_UNROLLED
TINY = np.finfo(np.float32).tiny
# One, some and all words of a bit in use, whole and in part; in one kernel, in some, in
# a loop.
SIZES = [2, 31, 32, 33, 65, 96, FUSED, FUSED + 1, 200, UNROLLED, UNROLLED + 1, 1000]


@functools.cache
def compiled(way, ranks):
    return jax.jit(functools.partial(WAYS[way], ranks=ranks))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("m", SIZES)
def test_any_ranks_are_exact(way, m):
    rows = awkward(m, m)
    rows[some_rows(m), 25] = -np.float32(np.nan)  # Its sign bit is set.
    for ranks in [(0,), (m // 2,), (m - 1,), ((m - 1) // 2, m // 2), (0, m // 3)]:
        got = compiled(way, ranks)(rows)
        np.testing.assert_array_equal(got, sort(rows)[list(ranks)])


def some_rows(m):
    return np.random.default_rng(m).integers(0, m, size=1 + m // 4)


@pytest.mark.slow
@hypothesis.given(
    hypothesis.extra.numpy.arrays(
        np.uint32, (35, 3), elements=st.integers(0, 2**32 - 1)
    ),
    st.integers(0, 34),
)
def test_any_bits(bits, rank):
    rows = bits.view(np.float32)
    # Subnormal numbers are zero on most accelerators and on XLA:CPU.
    rows = np.where(np.abs(rows) < TINY, np.float32(0), rows)
    for way in WAYS:
        got = _of_rank(way)(rows, np.uint32(rank))
        np.testing.assert_array_equal(got, sort(rows)[rank])


@functools.cache
def _of_rank(way):
    """One compiled program for all ranks."""

    def all_ranks(rows, rank):
        ranks = tuple(range(len(rows)))
        return jnp.stack(WAYS[way](rows, ranks))[rank]

    return jax.jit(all_ranks)


def test_words_hold_the_bits_of_keys():
    rows = np.random.default_rng(1).normal(size=(70, 5)).astype(np.float32)
    words = np.asarray(jax.jit(lambda x: jnp.stack(_words._words(x)))(rows))
    assert words.shape == (32, 3, 5)
    bits = (words[:, :, None] >> np.arange(32, dtype=np.uint32)[:, None]) & 1
    weights = 2.0 ** np.arange(31, -1, -1)
    keys = np.tensordot(weights, bits.astype(np.float64), axes=1)  # [words, bit, n]
    keys = np.sort(keys.reshape(-1, 5), axis=0)
    raw = np.sort(rows, axis=0).view(np.uint32).astype(np.float64)
    expected = np.where(np.sort(rows, axis=0) < 0, 2.0**32 - 1 - raw, raw + 2.0**31)
    np.testing.assert_array_equal(keys[:70], expected)
    assert (keys[70:] == 2.0**32 - 1).all()  # Rows that are missing come last.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_exact(dtype):
    with np.errstate(over="ignore"):
        rows = jnp.asarray(np.tile(awkward(100, 7), (1, 4)).astype(dtype))
    (got,) = jax.jit(lambda x: order.order_statistics(x, (50,)))(rows)
    assert got.dtype == dtype
    expected = sort(np.asarray(rows, np.float64))[50]
    np.testing.assert_array_equal(np.asarray(got, np.float64), expected)


def test_double_precision_is_exact():
    with jax.enable_x64(True):
        rows = 1 + 1e-12 * np.random.default_rng(8).normal(size=(70, 100))
        (got,) = jax.jit(lambda x: order.order_statistics(x, (35,)))(jnp.asarray(rows))
        np.testing.assert_array_equal(got, np.sort(rows, axis=0)[35])


def test_under_vmap_and_of_any_shape():
    rows = np.random.default_rng(9).normal(size=(2, 70, 4, 30)).astype(np.float32)
    (got,) = jax.jit(jax.vmap(lambda x: order.order_statistics(x, (35,))))(rows)
    np.testing.assert_array_equal(got, np.sort(rows, axis=1)[:, 35])
    (got,) = order.order_statistics(jnp.asarray(rows[0]), (35,))  # Not compiled.
    np.testing.assert_array_equal(got, np.sort(rows[0], axis=0)[35])


def test_rows_share_a_derivative_in_equal_parts():
    rows = np.random.default_rng(10).normal(size=(100, 80)).astype(np.float32)
    rows[:40] = 0.0

    def middle(x):
        return jnp.sum(order.order_statistics(x, (50,))[0])

    value = np.sort(rows, axis=0)[50]
    same = (rows == value).astype(np.float32)
    np.testing.assert_allclose(jax.grad(middle)(jnp.asarray(rows)), same / same.sum(0))


def test_derivatives_of_what_is_not_a_number_are_zero():
    rows = jnp.full((100, 80), jnp.nan).at[:30].set(1.0)
    for rank in (0, 50):
        shares = jax.grad(
            lambda x, r=rank: jnp.sum(order.order_statistics(x, (r,))[0])
        )(rows)
        np.testing.assert_allclose(jnp.sum(shares, axis=0), rank == 0, rtol=1e-5)


def test_programs_are_bounded():
    def size(m):
        rows = jax.ShapeDtypeStruct((m, 1000), jnp.float32)
        lowered = jax.jit(lambda x: order.order_statistics(x, (m // 2,))).lower(rows)
        return lowered.as_text().count("\n")

    most = size(UNROLLED)
    assert most < 3 * size(FUSED)
    assert max(size(m) for m in (UNROLLED + 1, 4096, 100_000)) < most


def test_leaves_of_any_size_and_dtype():
    shapes = [(3,), (), (70, 80), (5000,), (4097,), (2,), (0, 4), (9000,), (1,)]
    rows = [np.random.default_rng(11).normal(size=(99, *shape)) for shape in shapes]
    dtypes = [jnp.float32, jnp.bfloat16, jnp.float32] * 3
    tree = [jnp.asarray(x, dtype) for x, dtype in zip(rows, dtypes, strict=True)]
    for leaves in (tree, tree[:2], [tree[6]]):
        got = jax.jit(byzjax.median().aggregate)(leaves)
        for leaf, x in zip(got, leaves, strict=True):
            assert leaf.dtype == x.dtype
            np.testing.assert_array_equal(leaf, np.sort(np.asarray(x), axis=0)[49])


@pytest.mark.slow
@pytest.mark.parametrize("m", [FUSED, FUSED + 100, UNROLLED + 1])
def test_as_users_compile_it(m):
    rows = np.tile(awkward(m, m), (1, 4))
    ranks = (m // 3, m // 2)
    program = jax.jit(lambda x: order.order_statistics(x, ranks))
    got = program.lower(rows).compile(AS_USERS_DO)(rows)
    np.testing.assert_array_equal(got, sort(rows)[list(ranks)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule, values, together",
    [
        (byzjax.median(), 2, 1),
        (byzjax.trimmed_mean(30), 2, 1),
        (byzjax.meamed(30), 3, 2),  # Of the middle, and of the distance from it.
    ],
)
def test_values_are_found_once(rule, values, together):
    """What reads a value must not find it again, for every row that it looks at.

    Nor the next bits: the values that one kernel finds together count once.
    """

    def counts(m):
        x = jax.ShapeDtypeStruct((m, 100_000), jnp.float32)
        text = jax.jit(rule.aggregate).lower(x).compile(AS_USERS_DO).as_text()
        return text.count(" popcnt(")

    # The first bit of two values may be counted once.
    assert (values - 1) * FUSED < counts(FUSED) <= values * FUSED
    assert (together - 1) * UNROLLED < counts(UNROLLED) <= together * UNROLLED

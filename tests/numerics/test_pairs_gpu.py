"""The kernel for GPUs against NumPy in float64: interpreted where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu

import byzjax
from byzjax.numerics import _gram, _pairs_gpu
from tests.numerics.clusters import squared

pytestmark = pytest.mark.slow
ON_CPU = jax.default_backend() == "cpu"
# A few columns of a program: interpreted, every one takes its time.
PROGRAMS = 3
UNIT = _pairs_gpu._LANES * PROGRAMS
WIDTHS = {
    "nothing": [0],
    "one column": [1],
    "small leaves": [5, 0, 1, 300],
    "exactly one turn": [UNIT],
    "a little more": [UNIT + 1],
    "leaves": [4099, 12, 5003],
}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    monkeypatch.setattr(_pairs_gpu, "_PROGRAMS", PROGRAMS)
    if ON_CPU:
        interpret(monkeypatch)


def interpret(monkeypatch):
    if hasattr(mosaic_gpu, "InterpretGPUParams"):
        params = mosaic_gpu.InterpretGPUParams()
    else:  # Of jax 0.10, where it is not public, and knows no layouts.
        from jax._src.pallas.mosaic_gpu.interpret import params as private

        params = private.InterpretGPUParams()
        monkeypatch.setattr(mosaic_gpu, "layout_cast", lambda x, layout: x)
    monkeypatch.setattr(_pairs_gpu, "INTERPRET", params)


def measured(leaves):
    # Compiled anew for every test's constants.
    program = jax.jit(lambda rows: _pairs_gpu.measured(rows))
    return program([jnp.asarray(x) for x in leaves])


def stack(m, widths):
    rows = np.random.default_rng(m).normal(size=(m, sum(widths))).astype(np.float32)
    if rows.size:  # What only the last column of each leaf tells.
        ends = np.cumsum([w for w in widths if w])
        rows[:, ends - 1] += np.arange(m, dtype=np.float32)[:, None]
    return rows, np.split(rows, np.cumsum(widths)[:-1], axis=1)


def check(rows, leaves, rtol=1e-5):
    norms, distances = measured(leaves)
    zero = np.zeros_like(rows[:1])
    np.testing.assert_allclose(norms, squared(rows, zero)[:, 0], rtol=rtol)
    np.testing.assert_allclose(distances, squared(rows), rtol=rtol)
    np.testing.assert_array_equal(distances, distances.T)


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=list(WIDTHS))
def test_every_column_counts_once(widths):
    check(*stack(5, widths))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 8])
def test_groups_of_rows_leave_no_pair_out(m, monkeypatch):
    """The last group full and not: as with dozens of rows, whose program is long."""
    monkeypatch.setattr(_pairs_gpu, "_MOST_ALONE", 2)
    monkeypatch.setattr(_pairs_gpu, "_MOST_OF_GROUP", 3)
    check(*stack(m, [700]))


@pytest.mark.parametrize("m", [17, 18, 19, 33, _pairs_gpu.MOST_ROWS])
def test_as_many_rows_as_there_are(m):
    check(*stack(m, [1500, 40]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("at", [0, 770, 1002])
def test_what_is_out_of_range_stays_in_its_row(bad, at):
    rows, _ = stack(4, [1003])
    rows[2, at] = bad
    norms, distances = measured([rows])
    others = np.array([0, 1, 3])
    assert not np.isfinite(norms[2])
    assert not np.isfinite(distances[2, others]).any()
    exact = squared(rows[others])
    np.testing.assert_allclose(distances[np.ix_(others, others)], exact, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_measured_in_single(dtype):
    rows, _ = stack(3, [900])
    rows = np.array(jnp.asarray(rows, dtype), np.float64)
    norms, distances = measured([jnp.asarray(rows, dtype), jnp.asarray(rows, dtype)])
    assert norms.dtype == distances.dtype == jnp.float32
    np.testing.assert_allclose(distances, 2 * squared(rows), rtol=1e-5)


def test_under_vmap():
    stacks = np.stack([stack(4, [600])[0] + 3 * i for i in range(3)])
    shared, _ = stack(4, [5])

    def of_stack(x):
        return _pairs_gpu.measured([x, jnp.asarray(shared)])

    norms, distances = jax.jit(jax.vmap(of_stack))(jnp.asarray(stacks))
    for x, n, each in zip(stacks, norms, distances, strict=True):
        whole = np.concatenate([x, shared], axis=1, dtype=np.float64)
        np.testing.assert_allclose(n, np.sum(whole**2, axis=1), rtol=1e-5)
        np.testing.assert_allclose(each, squared(whole), rtol=1e-5)


def test_wide_leaves_are_not_copied(monkeypatch):
    """Side by side are the smallest, by dtype, as far as the memory goes."""
    monkeypatch.setattr(_pairs_gpu, "_MOST_COPIED", 3 * 180)
    half, single = jnp.bfloat16, jnp.float32
    widths = [(700, single), (40, single), (70, half), (30, half), (40, single)]
    leaves = [of_shape(3, n, dtype=dtype) for n, dtype in widths]
    copied, wide = _pairs_gpu._split(leaves)
    assert [x.shape[1] for x in wide] == [700]
    together = jax.eval_shape(_pairs_gpu._side_by_side, copied)
    found = {x.dtype.name: x.shape for x in together}
    assert found == {"bfloat16": (3, 100), "float32": (3, 80)}


def test_wide_and_narrow_leaves_all_count(monkeypatch):
    monkeypatch.setattr(_pairs_gpu, "_MOST_COPIED", 5 * 600)
    check(*stack(5, [1200, 40, UNIT, 500, 1200]))


def of_shape(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


class Device:
    def __init__(self, compute_capability):
        self.compute_capability = compute_capability


def as_with(monkeypatch, *capabilities):
    """As if there were these GPUs."""
    devices = [Device(capability) for capability in capabilities]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: len(devices))
    monkeypatch.setattr(jax, "devices", lambda: devices)


@pytest.mark.skipif(not ON_CPU, reason="for machines without a GPU")
def test_without_a_gpu_it_is_not_traced():
    assert not _pairs_gpu.can_measure([of_shape(17, 9)])


def test_whom_it_serves(monkeypatch):
    """Not what its indices or sums cannot hold, or what takes long to compile."""
    as_with(monkeypatch, "9.0")
    assert _pairs_gpu.can_measure([of_shape(17, 10**8), of_shape(17, 3)])
    assert _pairs_gpu.can_measure([of_shape(17, 9, dtype=jnp.bfloat16)])
    assert not _pairs_gpu.can_measure([of_shape(_pairs_gpu.MOST_ROWS + 1, 9)])
    assert not _pairs_gpu.can_measure([of_shape(17, 3), of_shape(17, 2**31 // 17 + 1)])
    assert not _pairs_gpu.can_measure([of_shape(17, 9, dtype=jnp.float64)])
    wide = of_shape(17, 2**21)
    many = _pairs_gpu._MOST_WIDE * [wide]
    assert _pairs_gpu.can_measure(many + 60 * [of_shape(17, 9)])
    assert not _pairs_gpu.can_measure([*many, wide])


@pytest.mark.parametrize(
    "capabilities, serves",
    [
        (["9.0"], True),
        (["12.0"], True),
        (["8.9"], False),
        (["gfx942"], False),
        ([None], False),
        (["9.0", "9.0"], False),  # What several hold would go to each.
    ],
)
def test_which_gpus_it_is_for(capabilities, serves, monkeypatch):
    as_with(monkeypatch, *capabilities)
    assert _pairs_gpu.can_measure([of_shape(17, 9)]) == serves


@pytest.mark.skipif(not ON_CPU, reason="runs natively there")
@pytest.mark.parametrize(
    "rule",
    [byzjax.krum(2), byzjax.ctma(byzjax.geometric_median(), 3)],
    ids=["distances", "inner products"],
)
@pytest.mark.parametrize("far", [1.0, 1e6])
def test_rules_are_the_same_by_it(rule, far, monkeypatch):
    """With inner products that follow from distances, and of a second pass."""
    rows, _ = stack(7, [700])
    rows[-1] *= far
    expected = jax.jit(rule.aggregate)(rows)
    as_with(monkeypatch, "9.0")
    monkeypatch.setattr(_gram.lax, "platform_dependent", as_on_a_gpu)
    got = jax.jit(lambda x: rule.aggregate(x))(rows)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def as_on_a_gpu(*args, default, cuda=None, **_):
    return (cuda or default)(*args)

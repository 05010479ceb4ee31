"""The kernel for GPUs against NumPy in float64: interpreted where there is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import byzjax
from byzjax import gram, pairs_gpu
from tests.clusters import squared

UNIT = pairs_gpu._LANES * pairs_gpu._UNROLL
# A few columns a program: interpreted, every one takes its time.
PROGRAMS = 3
WIDTHS = {
    "nothing": [0],
    "one column": [1],
    "small leaves": [5, 0, 1, 300],
    "exactly one turn": [UNIT * PROGRAMS],
    "a little more": [UNIT * PROGRAMS + 1],
    "leaves": [4099, 12, 5003],
}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    monkeypatch.setattr(pairs_gpu, "_PROGRAMS", PROGRAMS)


def measured(leaves):
    interpret = jax.default_backend() == "cpu"
    program = jax.jit(functools.partial(pairs_gpu.measured, interpret=interpret))
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
    monkeypatch.setattr(pairs_gpu, "_MOST_ALONE", 2)
    monkeypatch.setattr(pairs_gpu, "_MOST_OF_GROUP", 3)
    check(*stack(m, [700]))


@pytest.mark.slow
@pytest.mark.parametrize("m", [17, 18, 19, 33, pairs_gpu.MOST_ROWS])
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
    norms, distances = jax.vmap(lambda x: measured([x]))(jnp.asarray(stacks))
    for x, n, each in zip(stacks, norms, distances, strict=True):
        np.testing.assert_allclose(n, np.sum(np.float64(x) ** 2, axis=1), rtol=1e-5)
        np.testing.assert_allclose(each, squared(x), rtol=1e-5)


def of_shape(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_whom_it_serves(monkeypatch):
    """Not what its indices or its sums cannot hold, nor what several devices hold."""
    assert jax.default_backend() == "gpu" or not pairs_gpu.can_measure(
        [of_shape(17, 9)]
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert pairs_gpu.can_measure([of_shape(17, 10**8), of_shape(17, 3)])
    assert pairs_gpu.can_measure([of_shape(17, 9, dtype=jnp.bfloat16)])
    assert not pairs_gpu.can_measure([of_shape(pairs_gpu.MOST_ROWS + 1, 9)])
    assert not pairs_gpu.can_measure([of_shape(17, 3), of_shape(17, 2**31 // 17)])
    assert not pairs_gpu.can_measure([of_shape(17, 9, dtype=jnp.float64)])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not pairs_gpu.can_measure([of_shape(17, 9)])


def test_inside_shard_map_every_device_has_its_own(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    found = []

    def of_shard(x):
        found.append(pairs_gpu.can_measure([x]))
        return x

    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("rows",), auto, devices=jax.devices()[:1])
    spec = PartitionSpec("rows")
    jax.shard_map(of_shard, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.ones((4, 4)))
    assert found == [True]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="runs natively there")
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
    kernel = functools.partial(pairs_gpu.measured, interpret=True)
    monkeypatch.setattr(pairs_gpu, "measured", kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gram.lax, "platform_dependent", as_on_a_gpu)
    got = jax.jit(lambda x: rule.aggregate(x))(rows)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def as_on_a_gpu(*args, default, cuda=None, **_):
    return (cuda or default)(*args)

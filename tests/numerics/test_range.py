"""Lengths are right though their squares, or they themselves, are no floats."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax.numerics import stacked

FLTRUST = lambda size: byzjax.fltrust()  # noqa: E731
SCALES = [1e-35, 1e-28, 1e-19, 1e-10, 1.0, 1e15, 1e19, 1e25, 1e36]


def rows(m=5, d=300, seed=0):
    return np.random.default_rng(seed).normal(size=(m, d)).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_powers_of_two(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        info = jnp.finfo(dtype)
        exponents = np.arange(8 - info.maxexp, info.maxexp - 8)
        powers = jnp.asarray(np.ldexp(np.ones((), dtype), exponents))
        for at in (1, 1.5, 1.999):
            np.testing.assert_array_equal(stacked.power_of_two(powers * at), powers)
        np.testing.assert_array_equal(stacked.inverse(powers) * powers, 1)
        odd = jnp.asarray([0, jnp.inf, jnp.nan], dtype)
        np.testing.assert_array_equal(stacked.power_of_two(odd), 1)
        ends = stacked.power_of_two(jnp.asarray([info.tiny, info.max], dtype))
        assert jnp.isfinite(stacked.inverse(ends)).all() and jnp.all(ends > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lengths(dtype):
    """Rows of any size beside each other, as lengths are taken row by row."""
    with jax.enable_x64(dtype == np.float64):
        x = np.concatenate([rows(1, seed=k) * dtype(s) for k, s in enumerate(SCALES)])
        x = np.concatenate([x, np.zeros_like(x[:1])])
        exact = np.linalg.norm(np.float64(x), axis=1)
        got = jax.jit(stacked.distances_to_tree)(jnp.asarray(x), None).plain()
        near = np.where(exact < 1e19, exact, np.inf)  # Of the others in the middle.
        np.testing.assert_allclose(got, near, rtol=1e-5)
        tree = {"a": jnp.asarray(x[:, :7]), "b": jnp.asarray(x[:, 7:])}
        norms = jax.jit(lambda tree: stacked.norms(tree).norms)(tree)
        np.testing.assert_allclose(norms, near, rtol=1e-5)
        for row, length in zip(x, exact, strict=True):
            got = jax.jit(stacked.norm)({"a": row[:7], "b": row[7:]})
            np.testing.assert_allclose(got, length, rtol=1e-5)


def test_lengths_beyond_the_largest_float():
    """They are told apart, and beside them so are the others."""
    x = rows(7)
    x[2:] *= np.float32(1e37)
    x[5], x[6, 0] = 3e38, np.inf
    x[2] *= np.float32(1e-30)
    exact = np.linalg.norm(np.float64(x), axis=1)
    got = jax.jit(stacked.distances_to_tree)(jnp.asarray(x), None)
    assert got.unit > 1
    values = np.float64(got.values) * np.float64(got.unit)
    np.testing.assert_allclose(values, exact, rtol=1e-5)
    most = np.finfo(np.float32).max
    plain = np.where(np.isinf(exact), np.inf, np.minimum(values, most))
    np.testing.assert_allclose(got.plain(), plain, rtol=1e-6)
    short = stacked.distances_to_tree(jnp.asarray(x[:5] * np.float32(0.1)), None)
    assert short.unit == 1


@pytest.mark.parametrize("rule", [byzjax.krum(1), byzjax.nnm(byzjax.mean(), 1)])
@pytest.mark.parametrize(
    "length, beside, limit",
    [(5.0, 1e38, 1.0), (1e-20, 1.0, 1e-30), (2e38, 2e38, 1e30)],
)
def test_no_row_is_longer_than_what_it_was_clipped_to(rule, length, beside, limit):
    """Beside rows so long that of its square nothing is left, and rows so long."""
    x = rows(6, 200)
    x = np.sign(x) * np.float32(beside)
    x[0] = 0
    x[0, 0] = length
    out = jax.jit(byzjax.clipping(rule, limit).aggregate)(jnp.asarray(x))
    got = np.linalg.norm(np.float64(out))
    assert got <= limit * (1 + 1e-3)
    assert got > 0 or limit / beside < 1e-37


@pytest.mark.parametrize(
    "rule", [byzjax.arc(byzjax.mean(), 2), byzjax.flame(noise=0.0), byzjax.cge(2)]
)
def test_nobody_is_longer_than_the_honest_by_lengths_that_are_no_floats(rule):
    # 3.2e38 long, with the attackers' way in their midst.
    x = (1 + rows(9, 1000) / 10) * np.float32(1e37)
    for ours in (0.1, 1.0, 8.0):  # Beyond the floats as well.
        sent = x * np.float32(ours)
        sent[:2] = 3.3e38  # In front, where ties go.
        out = np.float64(jax.jit(rule.aggregate)(jnp.asarray(sent)))
        longest = np.max(np.linalg.norm(np.float64(sent[2:]), axis=1))
        assert np.linalg.norm(out) <= longest * (1 + 1e-5)


def test_clipping_around_a_center_by_lengths_that_are_no_floats():
    x = np.ones((5, 1000), np.float32) * np.float32(1e38)
    for steps in (1, 3):
        rule = byzjax.centered_clipping(1e35, num_iterations=steps)
        state = rule.init(jnp.zeros(1000))
        out, _ = jax.jit(rule.update)(jnp.asarray(x), state)
        got = np.linalg.norm(np.float64(out))
        np.testing.assert_allclose(got, 1e35 * steps, rtol=1e-4)


# At the ends derivatives would be of what is subnormal, which is taken for zero.
@pytest.mark.parametrize("scale", SCALES[1:-1])
def test_derivatives_of_lengths(scale):
    x = rows() * np.float32(scale)
    center = x[0] / 2

    def summed(x, c):
        to = stacked.distances_to_tree(x, c).values
        among = stacked.distances_to_row(x, 1).values
        return jnp.sum(to) + stacked.norm(c) + jnp.sum(among)

    to_x, to_center = jax.jit(jax.grad(summed, argnums=(0, 1)))(x, center)

    def units(gaps):
        lengths = np.linalg.norm(gaps, axis=1, keepdims=True)
        return gaps / np.where(lengths > 0, lengths, 1)

    x, center = np.float64(x), np.float64(center)
    away, apart = units(x - center), units(x - x[1])
    wanted = away + apart
    wanted[1] -= np.sum(apart, axis=0)
    np.testing.assert_allclose(to_x, wanted, rtol=1e-4, atol=1e-5)
    wanted = units(center[None])[0] - np.sum(away, axis=0)
    np.testing.assert_allclose(to_center, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exponent", [-93, -50, 56, 83])
@pytest.mark.parametrize("m", [5, 65])  # Pair by pair, and by products.
def test_a_geometry_in_a_unit(exponent, m):
    x, scale = rows(m), np.float32(2.0**exponent)
    measure = jax.jit(stacked.geometry)
    one, got = measure(x), measure(x * scale)
    size = np.float64(got.unit) / np.float64(scale)
    np.testing.assert_allclose(got.norms / scale, one.norms, rtol=1e-6)
    squares = np.float64(got.squared_distances) * size**2
    np.testing.assert_allclose(squares, one.squared_distances, rtol=1e-5)
    weights = jnp.full((m,), 1 / m)
    np.testing.assert_allclose(
        np.float64(got.squared_distances_to(weights)) * size**2,
        one.squared_distances_to(weights),
        rtol=1e-4,
    )


def test_rows_of_ordinary_size_are_no_outliers_of_tiny_ones():
    """Beside a majority that is next to nothing they count as what they are."""
    x = rows(9)
    x[:5] *= np.float32(1e-22)
    x[5:] *= np.float32(1e-3)
    got = stacked.distances_to_tree(jnp.asarray(x), None).plain()
    np.testing.assert_allclose(got, np.linalg.norm(np.float64(x), axis=1), rtol=1e-5)
    for huge in (1e30, np.inf):
        x[8] = huge
        got = stacked.distances_to_tree(jnp.asarray(x), None).plain()
        np.testing.assert_array_equal(np.isinf(got), np.arange(9) == 8)


def trainer(loss, **how):
    """The mean of workers whose gradients are clipped."""
    how = {"aggregator": byzjax.mean(), "server": optax.sgd(1.0), **how}
    return byzjax.trainer(loss, **how)


def test_no_minority_moves_the_unit():
    x = rows(9)
    for size in (1e-30, 1e30, np.inf):
        sent = x.copy()
        sent[:4] *= np.float32(size)
        assert stacked.geometry(jnp.asarray(sent)).unit == 1


@pytest.mark.parametrize("size", [1e-19, 1e-30, 1e20, 1e30, 2.5e38])
@pytest.mark.parametrize("length", [1e-25, 1.0, 8e23])
def test_fltrust_is_no_longer_than_its_reference(size, length):
    reference = np.full(10_000, length, np.float32)
    x = np.full((3, 10_000), size, np.float32)
    x[0, 0] *= np.float32(1.2)
    out = jax.jit(byzjax.fltrust().aggregate)(x, reference=reference)
    got, most = (np.linalg.norm(np.float64(v)) for v in (out, reference))
    assert got <= most * (1 + 1e-5)
    assert got > 0.99 * most or size / length < 1e-36 or size / length > 1e37


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [-93, 83])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: byzjax.geometric_median(),
        lambda size: byzjax.ctma(byzjax.median(), 2),
        lambda size: byzjax.nnm(byzjax.median(), 2),
        lambda size: byzjax.clipping(byzjax.mean(), 1.5 * size),
        lambda size: byzjax.arc(byzjax.geometric_median(), 2),
        lambda size: byzjax.centered_clipping(1.5 * size),
        FLTRUST,
    ],
)
def test_derivatives_of_rules_do_not_depend_on_the_unit(make, exponent):
    size, x = np.float32(2.0**exponent), rows(7, 4)

    def derivative(size):
        extra = {}
        if make is FLTRUST:
            extra = {"reference": jnp.asarray(x[0] * size)}
        rule = make(size)
        return jax.jit(jax.jacobian(lambda v: rule.aggregate(v, **extra)))(x * size)

    wanted = derivative(np.float32(1))
    np.testing.assert_allclose(derivative(size), wanted, rtol=1e-3, atol=1e-4)


def test_gradients_are_clipped_and_measured_at_any_size():
    def loss(params, batch):
        return jnp.vdot(params, batch)

    for size in (1e-28, 1e25):
        clipped = trainer(loss, num_workers=5, max_grad_norm=2 * size)
        state = clipped.init(jnp.zeros(300))
        batches = rows() * np.float32(size)
        state, metrics = jax.jit(clipped.step)(state, batches, jax.random.key(0))
        kept = (
            np.float64(batches) / np.linalg.norm(np.float64(batches), axis=1)[:, None]
        )
        mean = 2 * size * np.mean(kept, axis=0)
        np.testing.assert_allclose(-state.params / size, mean / size, atol=1e-5)
        got = metrics.aggregate_norm
        np.testing.assert_allclose(got, np.linalg.norm(mean), rtol=1e-4)


def test_losses_and_steps_that_overflow_only_in_sums():
    def loss(params, batch):
        return jnp.sum(params * batch) + 1e38

    clipped = trainer(loss, num_workers=9, max_grad_norm=0.5)
    batches = jnp.full((9, 4), 5e37)  # Half over this length is no float.
    metrics = clipped.step(clipped.init(jnp.zeros(4)), batches, jax.random.key(0))[1]
    np.testing.assert_allclose(metrics.loss, 1e38, rtol=1e-6)
    np.testing.assert_allclose(metrics.aggregate_norm, 0.5, rtol=1e-6)


def test_fltrust_wants_a_reference_of_the_rows_dtype():
    rows = jnp.ones((3, 4), jnp.float16)
    with pytest.raises(TypeError, match=r"float16.*float32"):
        byzjax.fltrust().aggregate(rows, reference=jnp.ones(4, jnp.float32))
    byzjax.fltrust().aggregate(rows.astype(jnp.float32), reference=np.ones(4))

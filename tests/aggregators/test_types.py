"""Every rule for rows of every width, with `jax_enable_x64` and without."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import rules, stacks

DTYPES = jnp.float32, jnp.bfloat16, jnp.float64
FEW = (
    "median",
    "krum",
    "geometric_median",
    "centered_clipping",
    "nnm(ctma(geometric_median))",
    "bulyan",
    "foolsgold",
)
few = pytest.mark.parametrize("rule", stacks.where(lambda r: r.name in FEW))
weighted = pytest.mark.parametrize("rule", stacks.where(lambda r: r.weighted))


def made(rule, m):
    return rule.make(m, max(0, min(1, rule.most(m))))


def types(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def assert_keeps_types(rule, m, dtype):
    aggregator = made(rule, m)
    with jax.enable_x64(True):
        rows = jnp.asarray(stacks.gaussian(m, 6), dtype)
        arguments = rules.arguments(rule, rows)
        state = aggregator.init(rows[0])
        out, after = jax.eval_shape(
            lambda x, s: aggregator.update(x, s, **arguments), rows, state
        )
        assert (out.shape, out.dtype) == ((6,), dtype)
        assert types(after) == types(state), "a scan could not carry this state"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@stacks.every
def test_every_rule_takes_every_width_with_x64(rule, dtype):
    assert_keeps_types(rule, 9, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("m", [25, 49, 65])
@stacks.every
def test_every_rule_takes_every_width_of_many_rows_with_x64(rule, m):
    if rule.name in ("mda", "smea") and m > 49:
        pytest.skip("too many subsets")
    for dtype in DTYPES:
        assert_keeps_types(rule, m, dtype)


def assert_the_same_with_x64(rule, m):
    """In float32 with x64 as without, in float64 nearly, and jitted as not."""
    aggregator = made(rule, m)
    rows = stacks.gaussian(m, 6)
    arguments = rules.arguments(rule, jnp.asarray(rows))
    one = jax.jit(lambda x: aggregator.aggregate(x, **arguments))
    plain = np.asarray(one(rows))
    assert plain.dtype == np.float32 and np.all(np.isfinite(plain))
    with jax.enable_x64(True):
        arguments = rules.arguments(rule, jnp.asarray(rows))
        for dtype in (np.float32, np.float64):
            arguments = jax.tree.map(
                lambda x, d=dtype: x if x.dtype != jnp.float32 else x.astype(d),
                arguments,
            )
            got = jax.jit(lambda x, a: aggregator.aggregate(x, **a))(
                rows.astype(dtype), arguments
            )
            assert got.dtype == dtype
            tolerance = max(rule.tolerance, 1e-4)
            stacks.assert_near(np.asarray(got), plain, rows, tolerance)


@few
def test_a_rule_says_the_same_with_x64(rule):
    assert_the_same_with_x64(rule, 9)


@pytest.mark.slow
@pytest.mark.parametrize("rule", stacks.where(lambda r: not r.random))
def test_every_rule_says_the_same_with_x64(rule):
    assert_the_same_with_x64(rule, 12)


@few
def test_influence_with_x64(rule):
    for dtype in DTYPES:
        with jax.enable_x64(True):
            rows = jnp.asarray(stacks.gaussian(9, 6), dtype)
            arguments = rules.arguments(rule, rows)
            shares = jax.eval_shape(
                lambda x, a=arguments: byzjax.influence(made(rule, 9), x, **a), rows
            )
            wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
            assert (shares.shape, shares.dtype) == ((9,), wide)


@stacks.every
def test_numpys_doubles_are_floats_without_x64(rule):
    rows = stacks.gaussian(9, 6)
    double = rows.astype(np.float64)
    double[-1] = 1e300  # Out of the range of float32: an outlier, and no warning.
    aggregator = made(rule, 9)
    arguments = rules.arguments(rule, jnp.asarray(rows))
    out = jax.eval_shape(lambda: aggregator.aggregate(double, **arguments))
    assert out.dtype == jnp.float32


def test_what_float32_cannot_hold_is_an_outlier():
    rows = np.array([[1.0], [2.0], [3.0], [1e300]])
    assert byzjax.krum(0).aggregate(rows) == 2
    assert byzjax.influence(byzjax.krum(0), rows)[1] == 1


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize(
    "aggregator",
    [
        byzjax.centered_clipping(1.0),
        byzjax.foolsgold(num_workers=5),
        byzjax.clipped_clustering(),
    ],
    ids=["centered_clipping", "foolsgold", "clipped_clustering"],
)
def test_a_state_keeps_the_dtype_of_its_parameters(aggregator, dtypes):
    state = aggregator.init(jnp.ones(3, dtypes[0]))
    rows = jnp.ones((5, 3), dtypes[1])
    out, after = jax.eval_shape(aggregator.update, rows, state)
    assert out.dtype == rows.dtype
    assert types(after) == types(state)


# --- weights --------------------------------------------------------------------------

COUNTS = [3, 1, 0, 2, 2, 1, 1, 5, 1]


@weighted
def test_counts_are_weights(rule):
    rows = jnp.asarray(stacks.gaussian(9, 3))
    aggregator = made(rule, 9)

    @jax.jit
    def aggregated(weights):
        return aggregator.aggregate(rows, weights=weights)

    plain = aggregated(jnp.asarray(COUNTS, jnp.float32))
    for dtype in (jnp.int32, jnp.uint8):
        np.testing.assert_allclose(
            aggregated(jnp.asarray(COUNTS, dtype)), plain, rtol=1e-6
        )


def test_weights_of_python_and_numpy():
    rows = jnp.asarray([[1.0], [2.0], [6.0]])
    mean = byzjax.mean()
    for weights in ([2, 0, 2], (2, 0, 2), np.array([2, 0, 2]), [True, False, True]):
        assert mean.aggregate(rows, weights=weights) == 3.5
    # Of 64 bits, which would wrap to 32.
    assert mean.aggregate(rows, weights=np.array([2**40, 0, 2**40])) == 3.5
    with jax.enable_x64(True):
        for weights in ([2, 0, 2], np.array([2.0, 0, 2]), jnp.asarray([2, 0, 2])):
            out = mean.aggregate(rows, weights=weights)
            assert out == 3.5 and out.dtype == jnp.float32


@weighted
def test_weights_that_are_no_numbers_are_refused(rule):
    rows = jnp.ones((9, 3))
    aggregator = made(rule, 9)
    for weights in (np.ones(9, complex), ["a"] * 9, jnp.ones(9, jnp.complex64)):
        with pytest.raises(TypeError, match=r"^[\w ]+ needs weights that are real n"):
            jax.eval_shape(lambda w=weights: aggregator.aggregate(rows, weights=w))


# --- trees without coordinates --------------------------------------------------------


@stacks.every
def test_a_tree_without_coordinates(rule):
    if rule.name.startswith("fltrust"):
        extra = {"reference": jnp.ones((0,))}
    else:
        extra = {"key": jax.random.key(0)} if rule.random else {}
    out = jax.eval_shape(
        lambda x: made(rule, 9).aggregate(x, **extra), jnp.ones((9, 0))
    )
    assert (out.shape, out.dtype) == ((0,), jnp.float32)


# --- leaves of two widths, where the unit of the wider is no float of the narrower ----


def of_two_widths(narrow, wide):
    return {"a": jnp.asarray(narrow, jnp.float32), "b": jnp.asarray(wide, jnp.float64)}


BY_LENGTHS = {
    "krum": byzjax.krum(2),
    "nnm": byzjax.nnm(byzjax.median(), 2),
    "nnm(trimmed_mean)": byzjax.nnm(byzjax.trimmed_mean(2), 2),
    "ctma": byzjax.ctma(byzjax.median(), 2),
    "geometric_median": byzjax.geometric_median(),
    "caf": byzjax.caf(2),
    "cge": byzjax.cge(2),
    "dnc": byzjax.dnc(2),
    "arc": byzjax.arc(byzjax.mean(), 2),
    "clipping": byzjax.clipping(byzjax.mean(), 1.0),
    "centered_clipping": byzjax.centered_clipping(1.0),
    "signguard": byzjax.signguard(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_LENGTHS)
def test_the_wider_leaf_alone_has_a_scale(name):
    """Zeros beside 1e-50, of attackers and of all, and a row of these beside ones."""
    draws = np.random.default_rng(0).normal(size=(2, 9, 2))
    zeros = np.zeros((9, 2))
    few, first = zeros.copy(), np.arange(9)[:, None] == 0
    few[:2] = 1e-50
    rule, key = BY_LENGTHS[name], jax.random.key(0)
    with jax.enable_x64(True):
        for narrow, wide in (
            (zeros, few),
            (zeros, 1e-50 * draws[0]),
            (np.where(first, 0, draws[0]), np.where(first, 1e-50, draws[1])),
        ):
            stack = of_two_widths(narrow, wide)
            out = rule.aggregate(stack, key=key)
            assert out["a"].dtype == jnp.float32 and out["b"].dtype == jnp.float64
            for leaf in (*out.values(), byzjax.influence(rule, stack, key=key)):
                assert np.isfinite(leaf).all()
            if narrow is zeros:
                assert not out["a"].any() and np.abs(out["b"]).max() < 1e-49
        nothing = of_two_widths(np.ones((9, 0)), np.ones((9, 0)))
        assert rule.aggregate(nothing, key=key)["a"].shape == (0,)


def test_attacks_and_steps_on_leaves_of_two_widths():
    with jax.enable_x64(True):
        stack = of_two_widths(np.zeros((9, 2)), 1e-50 * np.ones((9, 2)))
        for make in (byzjax.attacks.min_max, byzjax.attacks.rop):
            for leaf in make().apply(stack, num_byzantine=2).values():
                assert np.isfinite(leaf).all()
        reference = jax.tree.map(lambda x: x[0], stack)
        kept = byzjax.fltrust().aggregate(stack, reference=reference)
        np.testing.assert_allclose(kept["b"], 1e-50)
        trainer = byzjax.trainer(
            lambda p, batch: sum(jnp.sum(p[k] * batch[k]).astype(float) for k in p),
            aggregator=byzjax.median(),
            server=optax.sgd(1.0),
            num_workers=9,
            max_grad_norm=1e-55,
        )
        state = trainer.init(jax.tree.map(jnp.zeros_like, reference))
        state, metrics = trainer.step(state, stack, jax.random.key(0))
        np.testing.assert_allclose(metrics.aggregate_norm, 1e-55)
        assert not state.params["a"].any()

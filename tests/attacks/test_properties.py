"""All attacks: one table through the same properties and oracles; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import attacks
from tests.attacks_table import (
    KEY,
    TABLE,
    TRIMMED,
    F,
    H,
    M,
    applied,
    as_matrix,
    as_tree,
    key_of,
    matrix,
    table,
    where,
)

# --- every attack ---------------------------------------------------------------------


def test_every_public_attack_is_in_the_table():
    names = {row.name.split()[0] for row in TABLE}
    states = {name for name in attacks.__all__ if name.endswith("State")}
    assert names == set(attacks.__all__) - states


@where(lambda row: row.oracle is not None)  # For the others see the tests below.
def test_equals_its_definition(row):
    for seed in range(3):
        x = matrix(seed)
        wide = x.astype(np.float64)
        expected = row.oracle(wide[:H], wide[H:])
        got = np.asarray(applied(row, jnp.asarray(x)))[H:]
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


@table
def test_honest_rows_pass_bit_by_bit(row):
    x = matrix()
    x[0, :3] = [-0.0, 1e-42, 3e-39]
    before = x.copy()
    out = np.asarray(applied(row, jnp.asarray(x)))
    assert out.shape == x.shape
    assert out[:H].tobytes() == before[:H].tobytes()


@table
def test_reads_own_messages_only_if_it_says_so(row):
    attack = row.make()
    assert attack.needs_own == row.needs_own
    x = matrix()

    def forge(honest):
        state = attack.init(honest[0])
        return attack.forge(honest, None, state, num_byzantine=F, key=key_of(row))[0]

    if row.needs_own:
        with pytest.raises(ValueError, match="own"):
            forge(jnp.asarray(x[:H]))
        return
    assert jax.eval_shape(forge, x[:H]).shape == (F, 12)
    other = x.copy()
    other[H:] = np.nan
    a, b = np.asarray(applied(row, x)), np.asarray(applied(row, other))
    assert a.tobytes() == b.tobytes()


@pytest.mark.slow
@table
def test_jit_equals_eager_in_a_chain_over_steps(row):
    attack = row.make(num_byzantine=F)
    steps = jnp.stack([jnp.asarray(matrix(seed)) for seed in range(2)])
    state, eager = attack.init(steps[0, 0]), []
    for step in steps:
        out, state = attack.update(step, state, key=key_of(row))
        eager.append(byzjax.median().aggregate(out))

    @jax.jit
    def run(steps):
        chain = optax.chain(attack, byzjax.median())

        def one(state, step):  # Refused by scan if the state changed its form.
            out, state = chain.update(step, state, key=key_of(row))
            return state, out

        return jax.lax.scan(one, chain.init(steps[0, 0]), steps)

    np.testing.assert_allclose(run(steps)[1], jnp.stack(eager), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@table
def test_tree_equals_ravelled_matrix(row):
    x = matrix()
    out = applied(row, as_tree(x))
    np.testing.assert_allclose(
        as_matrix(out), applied(row, jnp.asarray(x)), rtol=1e-4, atol=1e-4
    )


# What they send is partly of a size of its own.
OF_THEIR_OWN = ("gaussian", "constant", "random", "small", "rop", "fang krum", "bit")


@where(lambda row: not row.name.startswith(OF_THEIR_OWN))
@pytest.mark.parametrize("exponent", [-93, 83])
def test_squares_out_of_range_change_nothing(row, exponent):
    """Rows of 1e-28 and 1e25 are rows: a power of two is exact."""
    x, scale = matrix(4), np.float32(2.0**exponent)
    got = np.asarray(applied(row, jnp.asarray(x * scale))) / scale
    wanted = applied(row, jnp.asarray(x))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@table
def test_keeps_structure_shapes_and_dtypes(row):
    x = as_tree(matrix())
    x = {"a": x["a"].astype(jnp.bfloat16), "b": (x["b"][0], x["b"][1].astype("f2"))}
    attack = row.make(num_byzantine=F)

    def two_steps(x):
        state = attack.init(jax.tree.map(lambda leaf: leaf[0], x))
        first, after = attack.update(x, state, key=key_of(row))
        return first, attack.update(x, after, key=key_of(row))[0], state, after

    first, second, state, after = jax.eval_shape(two_steps, x)
    for out, given in ((first, x), (second, x), (after, state)):
        assert jax.tree.structure(out) == jax.tree.structure(given)
        for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(given), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)


@table
def test_says_what_is_missing(row):
    x = jnp.asarray(matrix())
    with pytest.raises(ValueError, match="needs num_byzantine"):
        row.make().apply(x, key=KEY)
    with pytest.raises(ValueError, match="num_byzantine < num_workers"):
        row.make(num_byzantine=M).apply(x, key=KEY)
    with pytest.raises(ValueError, match="num_byzantine=2 in its factory"):
        row.make(num_byzantine=2).apply(x, num_byzantine=3, key=KEY)
    if row.draws:
        with pytest.raises(ValueError, match="needs a key"):
            row.make().apply(x, num_byzantine=F)
    assert row.make().apply(x, num_byzantine=0) is x


STRENGTHS = {
    "ipm": attacks.ipm,
    "scaled_sign_flip": attacks.scaled_sign_flip,
    "alie": attacks.alie,
    "gaussian": attacks.gaussian,
    "constant": attacks.constant,
    "small_perturbation": attacks.small_perturbation,
    "rop": attacks.rop,
    "rop angle": lambda angle: attacks.rop(angle=angle),
    "fang": lambda spread: attacks.fang("trimmed_mean", spread=spread + 1.1),
    "optimized": lambda s: attacks.optimized(attacks.ipm, TRIMMED, start=s),
    "intermittent": lambda s: attacks.intermittent(attacks.ipm(), s / 2),
    "adaptive": lambda s: attacks.adaptive(TRIMMED, step=s + 0.1, num_steps=3),
}


@pytest.mark.parametrize("name", STRENGTHS)
def test_vmap_over_the_strength_equals_a_loop(name):
    x = jnp.asarray(matrix())
    strengths = jnp.asarray([0.0, 0.7, 2.0])

    def run(strength):
        return STRENGTHS[name](strength).apply(x, num_byzantine=F, key=KEY)

    many = jax.jit(jax.vmap(run))(strengths)
    one_by_one = jnp.stack([jax.jit(run)(s) for s in strengths])
    np.testing.assert_allclose(many, one_by_one, rtol=1e-4, atol=1e-4)
    assert not np.allclose(many[0], many[2])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["ipm", "alie", "min_max std", "fang trimmed_mean"])
def test_short_floats_get_what_float32_rounds_to(name, dtype):
    (row,) = (row for row in TABLE if row.name == name)
    x = jnp.asarray(matrix()).astype(dtype)
    expected = applied(row, x.astype(jnp.float32)).astype(dtype)
    np.testing.assert_array_equal(applied(row, x), expected)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: attacks.sign_flip(of="other"), ValueError, "of='other'"),
        (lambda: attacks.ipm(-1.0), ValueError, "scale=-1.0"),
        (lambda: attacks.ipm(jnp.inf), ValueError, "scale=inf"),
        (lambda: attacks.ipm("big"), TypeError, "scale"),
        (lambda: attacks.ipm(num_byzantine=-1), ValueError, "num_byzantine=-1"),
        (lambda: attacks.ipm(num_byzantine=1.5), TypeError, "num_byzantine=1.5"),
        (lambda: attacks.scaled_sign_flip(np.nan), ValueError, "scale=nan"),
        (lambda: attacks.alie(np.nan), ValueError, "z=nan"),
        (lambda: attacks.alie(direction="up"), ValueError, "direction='up'"),
        (lambda: attacks.alie(ddof=2), ValueError, "ddof=2"),
        (lambda: attacks.alie(quantile="some"), ValueError, "quantile='some'"),
        (lambda: attacks.gaussian(-1.0), ValueError, "std=-1.0"),
        (lambda: attacks.gaussian(1.0, around="x"), ValueError, "around='x'"),
        (lambda: attacks.constant(np.inf), ValueError, "value=inf"),
        (lambda: attacks.free_rider("late"), ValueError, "send='late'"),
        (lambda: attacks.mimic(-1), ValueError, "worker=-1"),
        (lambda: attacks.mimic(warmup=0), ValueError, "warmup=0"),
        (lambda: attacks.min_max("dot"), ValueError, "perturbation='dot'"),
        (lambda: attacks.min_sum(bound="mean"), ValueError, "bound='mean'"),
        (lambda: attacks.small_perturbation(np.nan), ValueError, "scale=nan"),
        (lambda: attacks.small_perturbation(coordinate=1.0), TypeError, "coordinate"),
        (lambda: attacks.fang("median"), ValueError, "against='median'"),
        (lambda: attacks.fang("krum", spread=1.0), ValueError, "spread=1.0"),
        (lambda: attacks.rop(np.nan), ValueError, "z=nan"),
        (lambda: attacks.rop(aggregator=attacks.ipm()), TypeError, "Aggregator"),
        (lambda: attacks.adaptive(attacks.ipm()), TypeError, "Aggregator"),
        (lambda: attacks.adaptive(TRIMMED, start=TRIMMED), TypeError, "Attack"),
        (lambda: attacks.adaptive(TRIMMED, num_steps=0), ValueError, "num_steps=0"),
        (lambda: attacks.optimized(attacks.ipm(), TRIMMED), TypeError, "function"),
        (lambda: attacks.bit_flips(()), ValueError, r"bits=\(\)"),
        (lambda: attacks.bit_flips(64), ValueError, "bits=64"),
        (lambda: attacks.bit_flips(-1), ValueError, "bits=-1"),
        (lambda: attacks.bit_flips(1.0), TypeError, "bits"),
        (lambda: attacks.bit_flips(period=0), ValueError, "period=0"),
        (lambda: attacks.bit_flips(period=4, offset=4), ValueError, "offset=4"),
        (lambda: attacks.bit_flips(how="stuck"), ValueError, "how='stuck'"),
        (lambda: attacks.intermittent(TRIMMED, 0.5), TypeError, "Attack"),
        (lambda: attacks.intermittent(attacks.ipm(), 1.5), ValueError, "=1.5"),
        (lambda: attacks.intermittent(attacks.ipm(), -0.5), ValueError, "=-0.5"),
        (lambda: attacks.optimized(lambda s: TRIMMED, TRIMMED), TypeError, "Attack"),
        (lambda: attacks.optimized(attacks.ipm, None), TypeError, "Aggregator"),
        (
            lambda: attacks.optimized(attacks.ipm, TRIMMED, ratio=1.0),
            ValueError,
            "ratio=1.0",
        ),
        (
            lambda: attacks.optimized(attacks.ipm, TRIMMED, num_evaluations=0),
            ValueError,
            "num_evaluations=0",
        ),
    ],
)
def test_bad_hyper_parameters_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("attack", "m", "f", "match"),
    [
        (attacks.mimic(3), 4, 1, "worker=3 and 3 honest workers"),
        (attacks.small_perturbation(coordinate=2), 4, 1, "coordinate=2"),
        (attacks.anti_cge(), 4, 2, "num_workers=4 and num_byzantine=2"),
        (attacks.bit_flips(32), 4, 1, "bits < 32 for float32, got 32"),
        (attacks.fang("krum"), 6, 2, "num_workers=6 and num_byzantine=2"),
    ],
)
def test_bad_numbers_of_workers_are_refused(attack, m, f, match):
    with pytest.raises(ValueError, match=match):
        attack.apply(jnp.ones((m, 2)), num_byzantine=f)

"""All attacks: one table through the same properties, oracles, and their effect."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import attacks
from tests import attacks_reference as oracle

M, F = 11, 4
H = M - F
KEY = jax.random.key(3)


class Row(NamedTuple):
    """One attack of the table."""

    name: str
    make: Callable[..., byzjax.Attack]  # Takes num_byzantine.
    oracle: Callable[..., np.ndarray] | None = None  # (honest, own) → [f, d].
    draws: bool = False  # Needs a key.
    by_leaf: bool = False  # Leaves have draws of their own: tree != ravelled matrix.
    needs_own: bool = False


def of(factory, *args, **kwargs):
    return functools.partial(factory, *args, **kwargs)


def searched(attack, rule):
    return of(attacks.optimized, attack, rule)


TRIMMED = byzjax.trimmed_mean(F)
TABLE = [
    Row("sign_flip own", attacks.sign_flip, oracle.sign_flip, needs_own=True),
    Row("sign_flip mean", of(attacks.sign_flip, of="mean"), of(oracle.ipm, scale=1)),
    Row("scaled_sign_flip", attacks.scaled_sign_flip, oracle.scaled_sign_flip),
    Row("ipm", attacks.ipm, of(oracle.ipm, scale=0.5)),
    Row("ipm 2", of(attacks.ipm, 2.0), of(oracle.ipm, scale=2.0)),
    Row("alie", attacks.alie, oracle.alie),
    Row(
        "alie all",
        of(attacks.alie, quantile="all", direction="positive"),
        of(oracle.alie, quantile="all", sign=1),
    ),
    Row("alie 1.5", of(attacks.alie, 1.5, ddof=0), of(oracle.alie, z=1.5, ddof=0)),
    Row("gaussian", of(attacks.gaussian, 3.0), draws=True, by_leaf=True),
    Row(
        "gaussian mean",
        of(attacks.gaussian, 3.0, around="mean"),
        draws=True,
        by_leaf=True,
    ),
    Row(
        "constant",
        of(attacks.constant, -7.0),
        lambda honest, own: np.full_like(own, -7.0),
    ),
    Row("infinity", attacks.infinity, lambda honest, own: np.full_like(own, np.inf)),
    Row("nan", attacks.nan, lambda honest, own: np.full_like(own, np.nan)),
    Row("random_garbage", attacks.random_garbage, draws=True, by_leaf=True),
    Row("free_rider", attacks.free_rider, lambda honest, own: np.zeros_like(own)),
    Row("free_rider stale", of(attacks.free_rider, "stale")),
    Row(
        "mimic",
        of(attacks.mimic, 2),
        lambda honest, own: oracle.repeated(honest[2], own),
    ),
    Row("mimic warmup", of(attacks.mimic, warmup=2), by_leaf=True),
    *(
        Row(f"min_max {p}", of(attacks.min_max, p), of(oracle.min_max, p=p))
        for p in ("unit", "sign", "std")
    ),
    *(
        Row(f"min_sum {p}", of(attacks.min_sum, p), of(oracle.min_sum, p=p))
        for p in ("unit", "sign", "std")
    ),
    Row(
        "min_sum min",
        of(attacks.min_sum, bound="min"),
        of(oracle.min_sum, p="unit", bound="min"),
    ),
    Row(
        "small_perturbation",
        attacks.small_perturbation,
        of(oracle.small_perturbation, coordinate=-1),
    ),
    Row(
        "small_perturbation 9",
        of(attacks.small_perturbation, 9.0, coordinate=3),
        of(oracle.small_perturbation, scale=9.0, coordinate=3),
    ),
    Row(
        "small_perturbation all",
        of(attacks.small_perturbation, coordinate=None),
        of(oracle.small_perturbation, coordinate=None),
    ),
    Row("anti_cge", attacks.anti_cge, oracle.anti_cge),
    Row("fang krum", of(attacks.fang, "krum"), oracle.fang_krum),
    Row(
        "fang trimmed_mean",
        of(attacks.fang, "trimmed_mean", random=False),
        oracle.fang_trimmed_mean,
    ),
    Row(
        "fang trimmed_mean drawn",
        of(attacks.fang, "trimmed_mean"),
        draws=True,
        by_leaf=True,
    ),
    Row("rop", attacks.rop, oracle.rop),
    Row(
        "rop 180",
        of(attacks.rop, 2.0, angle=150.0, relocation=0.0, mixing=0.5),
        of(oracle.rop, z=2.0, angle=150.0, relocation=0.0, mixing=0.5),
    ),
    Row("rop informed", of(attacks.rop, aggregator=byzjax.centered_clipping(1.0))),
    Row(
        "optimized ipm",
        searched(attacks.ipm, TRIMMED),
        of(
            oracle.optimized,
            attack=lambda honest, own, scale: oracle.ipm(honest, own, scale=scale),
            rule=oracle.trimmed_mean,
        ),
    ),
    Row(
        "optimized alie",
        searched(lambda z: attacks.alie(z, direction="positive"), TRIMMED),
        of(
            oracle.optimized,
            attack=lambda honest, own, z: oracle.alie(honest, own, z=z, sign=1),
            rule=oracle.trimmed_mean,
        ),
    ),
    Row("adaptive", of(attacks.adaptive, TRIMMED, num_steps=5)),
]


def where(condition):
    rows = [row for row in TABLE if condition(row)]
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


table = where(lambda row: True)


def matrix(seed=0, d=12):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(M, d)) + rng.normal(size=d)).astype(np.float32)


def as_tree(x):
    """A matrix [m, 12] as a tree whose leaves in tree order ravel to it."""
    x = jnp.asarray(x)
    return {"a": x[:, :6].reshape(-1, 2, 3), "b": (x[:, 6], x[:, 7:])}


def as_matrix(tree):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def key_of(row):
    return KEY if row.draws else None


def applied(row, updates):
    return compiled(row.name)(updates)


@functools.cache
def compiled(name):
    """One program for each row and shape, shared by the tests."""
    (row,) = (row for row in TABLE if row.name == name)
    return jax.jit(lambda x: row.make().apply(x, num_byzantine=F, key=key_of(row)))


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


@where(lambda row: not row.by_leaf)  # Whose leaves have draws of their own.
def test_tree_equals_ravelled_matrix(row):
    x = matrix()
    out = applied(row, as_tree(x))
    np.testing.assert_allclose(
        as_matrix(out), applied(row, jnp.asarray(x)), rtol=1e-4, atol=1e-4
    )


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


# --- single attacks -------------------------------------------------------------------


@pytest.mark.parametrize(("m", "f"), [(17, 8), (17, 4), (50, 24), (10, 1), (20, 9)])
@pytest.mark.parametrize("quantile", ["honest", "all"])
def test_alie_strength_of_m_and_f(m, f, quantile):
    x = np.random.default_rng(0).normal(size=(m, 5)).astype(np.float32)
    attack = attacks.alie(quantile=quantile)
    expected = oracle.alie(x[: m - f], x[m - f :], quantile=quantile)
    got = attack.apply(jnp.asarray(x), num_byzantine=f)[m - f :]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_alie_of_the_papers_example():
    # 50 workers, 24 of them corrupted: z = Φ⁻¹(24 / 26).
    assert oracle.alie_strength(26, 24) == pytest.approx(1.426, abs=1e-3)


@pytest.mark.parametrize(("m", "f"), [(2, 1), (4, 3), (10, 6), (9, 5)])
def test_alie_without_a_quantile_says_so(m, f):
    with pytest.raises(ValueError, match="alie needs"):
        attacks.alie().apply(jnp.ones((m, 2)), num_byzantine=f)


def test_one_honest_worker():
    x = jnp.asarray(matrix())[:2]
    for make in (
        attacks.alie,
        lambda: attacks.alie(1.0),
        lambda: attacks.min_max("std"),
    ):
        with pytest.raises(ValueError, match="ddof=1"):
            make().apply(x, num_byzantine=1)
    for attack in (attacks.min_max(), attacks.min_sum(), attacks.alie(1.0, ddof=0)):
        out = attack.apply(x, num_byzantine=1)
        np.testing.assert_allclose(out[1], x[0], rtol=1e-6)


def test_identical_and_zero_honest_rows_stay_finite():
    for value in (0.0, 2.0):
        x = np.full((M, 12), value, np.float32)
        for row in TABLE:
            if row.name in ("nan", "infinity", "random_garbage"):
                continue
            assert jnp.isfinite(applied(row, x)).all(), row.name


def test_gaussian_has_the_moments_asked_for():
    x = jnp.full((5, 20_000), 10.0)
    for around, center in (("zero", 0.0), ("mean", 10.0)):
        out = attacks.gaussian(3.0, around=around).apply(x, num_byzantine=2, key=KEY)
        sent = np.asarray(out[3:])
        np.testing.assert_allclose(sent.mean(1), center, atol=0.1)
        np.testing.assert_allclose(sent.std(1), 3.0, rtol=0.02)
        assert abs(np.corrcoef(sent)[0, 1]) < 0.03  # Each draws its own.
    other = attacks.gaussian(3.0).apply(x, num_byzantine=2, key=jax.random.key(4))
    assert not np.allclose(other[3:], sent)


def test_random_garbage_spans_the_dtype():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x = jnp.ones((2, 20_000), dtype)
        out = attacks.random_garbage().apply(x, num_byzantine=1, key=KEY)[1]
        out = np.asarray(out.astype(jnp.float32))
        assert np.isnan(out).any()
        assert np.nanmax(np.abs(out)) > 1e4
        assert np.nanmin(np.abs(out)) < 1e-4


@pytest.mark.parametrize("p", ["unit", "sign", "std"])
def test_min_max_is_as_far_out_as_it_may_be(p):
    x = matrix(7).astype(np.float64)
    out = attacks.min_max(p).apply(jnp.asarray(matrix(7)), num_byzantine=F)
    sent = np.asarray(out[-1:], np.float64)
    limit = oracle.squared(x[:H], x[:H]).max()
    assert oracle.squared(x[:H], sent).max() == pytest.approx(limit, rel=1e-5)


def test_min_max_far_from_the_origin():
    # Honest rows agree to a thousandth of their norm.
    x = (1000 + matrix()).astype(np.float32)
    out = np.asarray(
        attacks.min_max().apply(jnp.asarray(x), num_byzantine=F), np.float64
    )
    limit = oracle.squared(out[:H], out[:H]).max()
    assert oracle.squared(out[:H], out[H:]).max() == pytest.approx(limit, rel=1e-3)


def test_anti_cge_is_kept_by_norm():
    for seed in range(10):
        out = np.asarray(compiled("anti_cge")(jnp.asarray(matrix(seed))))
        order = np.argsort(np.linalg.norm(out, axis=1), kind="stable")
        assert set(range(H, M)) <= set(order[:H].tolist())


def test_fang_makes_krum_choose_it():
    rule = byzjax.krum(F)
    for seed in range(5):
        x = compiled("fang krum")(jnp.asarray(matrix(seed)))
        np.testing.assert_allclose(rule.aggregate(x), x[-1], rtol=1e-5)
        mean = np.asarray(x[:H]).mean(0)
        assert (np.asarray(x[-1]) * mean <= 0).all()


def test_fang_draws_between_the_honest_range_and_the_far_end():
    x = jnp.asarray(matrix())
    drawn = attacks.fang("trimmed_mean").apply(x, num_byzantine=F, key=KEY)[H:]
    far = attacks.fang("trimmed_mean", random=False).apply(x, num_byzantine=F)[H:]
    up = np.asarray(x[:H]).mean(0) > 0
    near = np.where(up, x[:H].min(0), x[:H].max(0))
    low, high = np.where(up, far[0], near), np.where(up, near, far[0])
    assert (low[None] <= drawn).all() and (drawn <= high[None]).all()
    assert len(np.unique(drawn, axis=0)) == F


def test_rop_follows_what_the_server_went_by():
    steps = [matrix(seed) for seed in range(3)]
    informed = attacks.rop(aggregator=byzjax.median(), num_byzantine=F)
    guessing = attacks.rop(num_byzantine=F)
    for attack in (informed, guessing):
        state, v = attack.init(jnp.zeros(12)), None
        for x in steps:
            out, state = attack.update(jnp.asarray(x), state)
            wide = np.asarray(x, np.float64)
            expected = oracle.rop(wide[:H], wide[H:], v=v)
            np.testing.assert_allclose(out[H:], expected, rtol=1e-4, atol=1e-5)
            if attack is informed:
                v = np.median(np.asarray(out, np.float64), axis=0)
            else:
                v = wide[:H].mean(0)


def test_mimic_learns_whom_to_mimic():
    steps = [matrix(seed) for seed in range(6)]
    attack = attacks.mimic(warmup=4, num_byzantine=F)
    state = attack.init(jnp.zeros(12))
    start = np.asarray(state.direction, np.float64)
    chosen = oracle.mimic_warmup([x[:H].astype(np.float64) for x in steps], start, 4)
    for x, worker in zip(steps, chosen, strict=True):
        out, state = attack.update(jnp.asarray(x), state)
        assert int(state.worker) == worker
        np.testing.assert_array_equal(out[H:], np.tile(x[worker], (F, 1)))
    assert int(state.step) == 4


def test_mimic_finds_the_odd_one_out():
    x = np.random.default_rng(0).normal(size=(M, 50)) * 0.01
    x[3] += 5.0  # All variance lies along one worker's data.
    attack = attacks.mimic(warmup=3, num_byzantine=F)
    state = attack.init(jnp.zeros(50))
    for _ in range(3):
        _, state = attack.update(jnp.asarray(x, jnp.float32), state)
    direction = np.asarray(state.direction)
    assert abs(direction.sum() / np.sqrt(50)) > 0.99


def test_free_rider_is_one_step_late():
    attack = attacks.free_rider("stale", num_byzantine=F)
    state, last = attack.init(jnp.zeros(12)), np.zeros(12)
    for seed in range(3):
        out, state = attack.update(jnp.asarray(matrix(seed)), state)
        np.testing.assert_allclose(out[H:], np.tile(last, (F, 1)), rtol=1e-5, atol=1e-6)
        last = matrix(seed)[:H].mean(0)


# --- what searching achieves ----------------------------------------------------------

RULES = {
    "mean": byzjax.mean(),
    "trimmed_mean": TRIMMED,
    "geometric_median": byzjax.geometric_median(num_iterations=8),
    "krum": byzjax.krum(F),
    "ctma(nnm)": byzjax.ctma(byzjax.nnm(byzjax.median(), F), F),
    "bucketing": byzjax.bucketing(byzjax.median(), 2),
}


def harm(rule, out, key=None):
    mean = np.asarray(out[:H], np.float64).mean(0)
    return np.linalg.norm(np.asarray(rule.aggregate(out, key=key), np.float64) - mean)


@pytest.mark.parametrize("name", RULES)
def test_a_search_is_no_weaker_than_its_start(name):
    rule, key = RULES[name], KEY if name == "bucketing" else None
    # The rule's half of the attack's key, so that buckets are those of the search.
    rule_key = None if key is None else jax.random.split(key)[1]
    begin = attacks.alie(0.5, ddof=0)
    searches = {
        "ipm": (attacks.optimized(attacks.ipm, rule, start=0.5), attacks.ipm(0.5)),
        "adaptive": (attacks.adaptive(rule, num_steps=5, start=begin), begin),
    }
    for search, start in searches.values():
        run = jax.jit(lambda x, a=search: a.apply(x, num_byzantine=F, key=key))
        for seed in range(3):
            x = jnp.asarray(matrix(seed))
            found = harm(rule, run(x), rule_key)
            before = harm(rule, start.apply(x, num_byzantine=F), rule_key)
            assert found >= before * (1 - 1e-5)


@pytest.mark.parametrize("name", ["mean", "trimmed_mean", "geometric_median"])
def test_searches_do_find_something(name):
    rule, x = RULES[name], jnp.asarray(matrix())
    start = harm(rule, attacks.alie(0.5).apply(x, num_byzantine=F))
    ascent = jax.jit(lambda x: attacks.adaptive(rule).apply(x, num_byzantine=F))(x)
    assert harm(rule, ascent) > 1.2 * start
    search = attacks.optimized(attacks.alie, rule, step=0.5)
    line = jax.jit(lambda x: search.apply(x, num_byzantine=F))(x)
    assert harm(rule, line) > 1.2 * start


def test_a_search_keeps_the_rules_state():
    rule = byzjax.centered_clipping(0.5)
    attack = attacks.optimized(attacks.ipm, rule, num_byzantine=F)
    state, rule_state = attack.init(jnp.zeros(12)), rule.init(jnp.zeros(12))
    update = jax.jit(attack.update)
    for seed in range(3):
        out, state = update(jnp.asarray(matrix(seed)), state)
        _, rule_state = rule.update(out, rule_state)
    np.testing.assert_allclose(
        state.rule_state.center, rule_state.center, rtol=1e-5, atol=1e-6
    )


def test_a_search_over_an_attack_that_reads_own_messages():
    def stronger(scale):
        flip = attacks.sign_flip()

        def forge(honest, own, state, **extra):
            sent, state = flip.forge(honest, own, state, **extra)
            return scale * sent, state

        return byzjax.Attack(forge, needs_own=True)

    attack = attacks.optimized(stronger, byzjax.mean())
    assert attack.needs_own
    x = jnp.asarray(matrix())
    assert harm(byzjax.mean(), attack.apply(x, num_byzantine=F)) > 1e3


def test_attacks_with_state_in_the_trainer():
    def loss(params, batch):
        return jnp.mean((params[None] - batch) ** 2)

    for attack in (attacks.mimic(warmup=2), attacks.optimized(attacks.ipm, TRIMMED)):
        trainer = byzjax.trainer(
            loss,
            attack=attack,
            aggregator=TRIMMED,
            server=optax.sgd(0.3),
            num_workers=M,
            num_byzantine=F,
        )
        state = trainer.init(jnp.zeros(12))
        batches = jnp.asarray(matrix())[:, None]
        for key in jax.random.split(KEY, 3):
            state, metrics = jax.jit(trainer.step)(state, batches, key)
        assert jnp.isfinite(metrics.loss)


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
        (attacks.fang("krum"), 6, 2, "num_workers=6 and num_byzantine=2"),
    ],
)
def test_bad_numbers_of_workers_are_refused(attack, m, f, match):
    with pytest.raises(ValueError, match=match):
        attack.apply(jnp.ones((m, 2)), num_byzantine=f)

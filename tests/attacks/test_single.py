"""Single attacks against their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import attacks
from tests import attacks_reference as oracle
from tests.attacks_table import KEY, TABLE, F, H, M, applied, compiled, matrix


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


# --- broken hardware ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bits_are_counted_from_the_front_of_any_float(dtype):
    """Bit 0 is the sign of every width, and bit 1 makes 1.0 the largest power, inf."""
    with jax.enable_x64(True):
        rows = jnp.ones((3, 7), dtype)
        sign = attacks.bit_flips(0, period=3, offset=2).apply(rows, num_byzantine=1)
        high = attacks.bit_flips(1, period=7).apply(rows, num_byzantine=1)
        last = attacks.bit_flips(rows.dtype.itemsize * 8 - 1, period=1)
        last = last.apply(rows, num_byzantine=1)[-1]
        assert sign.dtype == high.dtype == last.dtype == rows.dtype
        assert sign[-1].tolist() == [1, 1, -1, 1, 1, -1, 1]
        assert bool(jnp.isinf(high[-1, 0])) and bool((high[-1, 1:] == 1).all())
        assert bool((last == 1 + jnp.finfo(rows.dtype).eps).all())


def test_a_lane_is_stuck_in_the_same_place_whatever_the_leaves():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 40)), jnp.float32)
    attack = attacks.bit_flips((1, 4), period=7, offset=5)
    tree = {"a": x[:, :9], "b": (x[:, 9:10], x[:, 10:].reshape(3, 5, 6))}
    whole = attack.apply(x, num_byzantine=1)
    parts = jax.tree.leaves(attack.apply(tree, num_byzantine=1))
    parts = np.concatenate([np.asarray(p).reshape(3, -1) for p in parts], axis=1)
    assert parts.tobytes() == np.asarray(whole).tobytes()
    wrong = np.flatnonzero(np.asarray(whole)[-1] != np.asarray(x)[-1])
    assert wrong.tolist() == [5, 12, 19, 26, 33]


def test_now_and_then_is_as_often_as_said_for_each_worker_by_itself():
    attack = attacks.intermittent(attacks.constant(9.0), 0.2)
    rows = jnp.ones((5, 2))

    def sent(key):
        return attack.apply(rows, num_byzantine=3, key=key)

    out = np.asarray(jax.jit(jax.vmap(sent))(jax.random.split(jax.random.key(5), 4000)))
    assert (out[:, :2] == 1).all()
    bad = out[:, 2:] == 9
    assert (bad | (out[:, 2:] == 1)).all()
    bad = bad.all(axis=2)
    np.testing.assert_allclose(bad.mean(0), 0.2, atol=0.025)
    assert abs(np.corrcoef(bad.T)[0, 1]) < 0.06


def test_never_and_always():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
    made = {p: attacks.intermittent(attacks.ipm(), p) for p in (0, 1)}
    key = jax.random.key(0)
    never, always = (made[p].apply(x, num_byzantine=2, key=key) for p in (0, 1))
    assert never.tobytes() == x.tobytes()
    assert always.tobytes() == attacks.ipm().apply(x, num_byzantine=2).tobytes()
    # f of the inner attack is that of the whole.
    inner = attacks.intermittent(attacks.ipm(num_byzantine=2), 1.0)
    assert inner.apply(x, key=key).tobytes() == always.tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda: attacks.ipm(0.5),
        lambda: attacks.sign_flip(of="mean"),
        lambda: attacks.alie(z=1.0),
    ],
)
def test_rows_whose_sum_is_no_float_have_a_mean(make):
    rows = jnp.full((9, 2), 1.0).at[:, 1].set(jnp.linspace(0.9, 1.1, 9))
    sent = jax.jit(lambda x: make().apply(x, num_byzantine=2))
    scale = np.float32(2.0**126)
    np.testing.assert_allclose(sent(rows * scale) / scale, sent(rows), rtol=1e-5)

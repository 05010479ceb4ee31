"""The guard: what it promises of clean runs, what it finds, and that it never harms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax

M, D = 8, 48
KEY = jax.random.key(0)


def guarded(rule=None, m=M, **options):
    return byzjax.guard(rule or byzjax.median(), m, **options)


def batches(key, m=M, d=D, heavy=0.0):
    """Rows of replicas: a common gradient and each one's noise, of a random size."""
    noise, size = jax.random.split(key)
    scale = jnp.exp(heavy * jax.random.normal(size, (m, 1)))
    return 0.3 + jax.random.normal(noise, (m, d)) * scale


def run(rule, rows, keys):
    """A run of steps: the last state, and what each step returned."""

    def step(state, key):
        out, state = rule.update(rows(key, state.step), state)
        return state, (out, state.suspected, state.strongest)

    return jax.lax.scan(step, rule.init(jnp.zeros(D)), keys)


def run_on(rule, stacks):
    """The same on stacks that are made: what is fused with a draw rounds otherwise."""

    def over(stacks):
        return run(rule, lambda stack, step: stack, stacks)

    return jax.jit(over)(stacks)


@functools.cache
def clean_runs():
    """Final states and histories of clean runs at a high rate of false alarms."""
    rule = guarded(m=5, false_alarms=1e-3, probation=10, window=32)

    def one(key):
        def step(state, key):
            heavy = jnp.where(state.step % 2 == 0, 0.0, 1.0)  # Not alike over time.
            _, state = rule.update(batches(key, 5, 6, heavy), state)
            return state, state.evidence

        start = rule.init(jnp.zeros(6))
        return jax.lax.scan(step, start, jax.random.split(key, 400))[0]

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 100))


# --- what it promises -----------------------------------------------------------------


def test_false_alarms_are_as_rare_as_stated():
    """At most 400 · 10⁻³ expected in a run, of heavy tails that come and go."""
    alarms = np.asarray(clean_runs().alarms).sum(axis=1)
    bound = 400 * 1e-3
    assert (alarms > 0).any()
    assert alarms.mean() <= bound + 3 * alarms.std() / np.sqrt(len(alarms))


def test_bets_are_fair():
    """Of rows that change places the factors of each bet have mean one, or less."""
    rule = guarded(m=5)
    state = run_of(5)

    def factors(key, rows):
        after = rule.update(jax.random.permutation(key, rows), state)[1]
        return jnp.expm1(after.evidence) / jnp.exp(state.evidence)

    of_many = jax.jit(jax.vmap(factors, (0, None)))
    for seed in range(3):
        rows = batches(jax.random.key(seed), 5, 6, heavy=1.0)
        keys = jax.random.split(jax.random.key(9), 3000)
        every = np.asarray(of_many(keys, rows))
        means = every.mean(axis=0)
        slack = 4 * every.std(axis=0) / np.sqrt(len(every)) + 1e-5
        assert (means <= 1 + slack).all()
        upwards = means[:, :-2]  # Those for near rows allow for some who are far out.
        assert (upwards >= 1 - slack[:, :-2]).all()


@functools.cache
def run_of(m):
    rule = guarded(m=m)

    def step(state, key):
        return rule.update(batches(key, m, 6), state)[1], None

    keys = jax.random.split(jax.random.key(4), 50)
    return jax.jit(lambda: jax.lax.scan(step, rule.init(jnp.zeros(6)), keys))()[0]


def test_a_clean_step_is_the_mean_bit_by_bit_and_few_are_not():
    rule = guarded(window=64)
    stacks = jax.vmap(batches)(jax.random.split(jax.random.key(1), 600))
    state, (out, suspected, _) = run_on(rule, stacks)
    assert not bool(suspected.any())
    means = jax.jit(lambda x: jax.lax.map(byzjax.mean().aggregate, x))(stacks)
    medians = jax.jit(lambda x: jax.lax.map(byzjax.median().aggregate, x))(stacks)
    same = np.asarray((out == means).all(axis=1))
    assert (same | np.asarray((out == medians).all(axis=1))).all()
    # At most one in as many as are remembered of others, 56, but for the first ones.
    assert (
        0 < (~same).sum() <= sum(1 / (1 + min(t, 64) * 7 / 8) for t in range(600)) * 2
    )
    # Of two in one step both are counted.
    assert state.outside.max() <= (~same).sum() <= state.outside.sum()


# --- what it finds --------------------------------------------------------------------

FOUND_WITHIN = {
    # What worker 5 sends, from step 100 on; and how many steps of it go unseen.
    "sign flip": (lambda x, key: -x, 60),
    "twice": (lambda x, key: 2 * x, 12),
    "half": (lambda x, key: x / 2, 15),
    "zeros": (lambda x, key: 0 * x, 15),
    "noise": (lambda x, key: x + jax.random.normal(key, x.shape), 15),
    "stuck lane": (lambda x, key: x.at[::16].multiply(32.0), 12),
    "one huge number": (lambda x, key: x.at[7].set(1e30), 12),
    "now and then": (
        lambda x, key: jnp.where(jax.random.uniform(key) < 0.05, 100 * x, x),
        400,
    ),
    "not a number": (lambda x, key: x.at[3].set(jnp.nan), 1),
    "infinite": (lambda x, key: x.at[3].set(jnp.inf), 1),
}


@functools.cache
def found():
    """Of every corruption: the verdicts, and the aggregates, over 600 steps."""
    rule = guarded()

    def one(which, key):
        def rows(key, step):
            x = batches(key)
            fault = jax.random.fold_in(key, 1)
            bad = jax.lax.switch(
                which, [f for f, _ in FOUND_WITHIN.values()], x[5], fault
            )
            return x.at[5].set(jnp.where(step >= 100, bad, x[5]))

        return run(rule, rows, jax.random.split(key, 600))

    def of_each(which):
        return jax.lax.map(
            lambda key: one(which, key), jax.random.split(jax.random.key(2), 3)
        )

    return jax.jit(lambda: jax.lax.map(of_each, jnp.arange(len(FOUND_WITHIN))))()


@pytest.mark.parametrize("name", FOUND_WITHIN)
def test_the_worker_who_computes_wrongly_is_named_and_no_other(name):
    at = list(FOUND_WITHIN).index(name)
    state, (out, suspected, _) = jax.tree.map(lambda x: np.asarray(x[at]), found())
    assert not suspected[:, :100].any()
    assert not np.delete(suspected, 5, axis=2).any()
    delays = 1 + suspected[:, 100:, 5].argmax(axis=1)
    assert suspected[:, 100:, 5].any(axis=1).all()
    assert delays.max() <= FOUND_WITHIN[name][1]
    assert suspected[:, -1, 5].all()
    # Never harmed: by what is not finite, nor by what is gross, from its first step on.
    assert np.abs(out).max() < 3
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf, float)).all()


def test_a_worker_who_is_well_again_is_let_go():
    rule = guarded(probation=50)

    def rows(key, step):
        x = batches(key)
        return x.at[2].multiply(jnp.where((step >= 20) & (step < 100), 4.0, 1.0))

    keys = jax.random.split(jax.random.key(3), 200)
    state, (out, suspected, _) = jax.jit(functools.partial(run, rule, rows))(keys)
    assert bool(suspected[40:140, 2].all())
    assert not bool(suspected[-40:].any())
    assert int(state.alarms[2]) >= 2 and int(state.since[2]) < 120
    means = jax.vmap(lambda k: batches(k).mean(0))(keys[-40:])
    np.testing.assert_allclose(out[-40:], means, atol=1e-6)


def test_two_of_eight_are_both_named():
    def rows(key, step):
        return batches(key).at[jnp.array([1, 6])].multiply(3.0)

    keys = jax.random.split(jax.random.key(3), 60)
    state, _ = jax.jit(functools.partial(run, guarded(), rows))(keys)
    assert np.flatnonzero(state.suspected).tolist() == [1, 6]


def test_replicas_that_are_equal_bit_by_bit():
    """Of the same batch: who differs in a last place is who is wrong."""
    stacks = np.array(jax.vmap(batches)(jax.random.split(jax.random.key(3), 50)))
    stacks[:] = stacks[:, :1]
    stacks[30:, 4, 9] *= 1 + 2.0**-20
    state, (_, suspected, strongest) = run_on(guarded(), jnp.asarray(stacks))
    assert float(strongest[29].max()) < 6
    assert np.flatnonzero(state.suspected).tolist() == [4]
    assert int(jnp.argmax(suspected[:, 4])) <= 42


def test_rows_of_which_most_are_not_finite_are_nobodys_fault():
    """As of a loss scale that is too large: no worker is named, and it passes."""
    rule = guarded()
    update, state = jax.jit(rule.update), rule.init(jnp.zeros(D))
    for step in range(3):
        x = batches(jax.random.key(step))
        out, state = update(x.at[:4].set(jnp.inf) if step == 1 else x, state)
    assert state.broken.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert not bool(state.suspected.any())
    np.testing.assert_allclose(out, x.mean(axis=0), atol=1e-6)


def test_rows_too_far_for_squares_are_the_farthest_and_not_an_alarm():
    """A clean run, if with a tail: now this worker, now that one sends a spike."""
    watch = byzjax.guard(byzjax.median(), 8)

    def step(state, key):
        rows, who = jax.random.normal(key, (8, 20)), jax.random.randint(key, (), 0, 8)
        update, state = watch.update(rows.at[who, 0].set(1e20), state)
        return state, jnp.max(jnp.abs(update))

    keys = jax.random.split(jax.random.key(5), 500)
    state, largest = jax.jit(lambda s: jax.lax.scan(step, s, keys))(
        watch.init(jnp.zeros(20))
    )
    assert not state.alarms.any() and not state.broken.any()
    assert largest.max() < 10  # Each of these steps is served by the rule.
    # One of them who does so always is named.
    rows = jax.random.normal(jax.random.key(6), (20, 8, 20)).at[:, 3, 0].set(1e30)
    run = jax.jit(
        lambda s: jax.lax.scan(lambda s, x: watch.update(x, s)[::-1], s, rows)
    )
    assert np.flatnonzero(run(watch.init(jnp.zeros(20)))[0].suspected) == [3]


def test_absence_is_no_evidence():
    rule = guarded()
    state = rule.init(jnp.zeros(D))
    update = jax.jit(rule.update)
    present = jnp.arange(M) != 3
    for seed in range(12):
        x = batches(jax.random.key(seed)).at[3].set(jnp.nan)
        out, state = update(x, state, present=present)
        np.testing.assert_allclose(out, np.delete(x, 3, axis=0).mean(0), atol=1e-6)
    assert not bool(state.suspected.any())
    assert state.steps.tolist() == [12, 12, 12, 0, 12, 12, 12, 12]
    assert float(state.evidence[3].max()) == 0 == int(state.broken[3])
    # One under suspicion who is not there is no reason to give up the mean.
    _, state = update(x, state, present=jnp.ones(M, bool))
    assert bool(state.suspected[3])
    x = batches(jax.random.key(1))
    for there, wanted in ((present, jnp.delete(x, 3, axis=0).mean(0)), (None, None)):
        out, after = update(x, state, present=there)
        wanted = jnp.median(x, axis=0) if wanted is None else wanted
        np.testing.assert_allclose(out, wanted, atol=1e-6)
    assert int(after.probation[3]) == int(state.probation[3]) - 1

"""Every property of every row of the table in `rules.py`; see the files beside it.

`test_byzantine.py` has what attackers can do, `test_derivatives.py` the
derivatives.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

import byzjax
from tests import rules
from tests.compiling import AS_USERS_DO
from tests.rules import Rule
from tests.stacks import (
    DATA,
    D,
    M,
    assert_near,
    assert_oracle,
    compiled,
    compiles,
    every,
    gaussian,
    run,
    some_f,
    where,
    where_each,
)

# --- against the definition -----------------------------------------------------------


def _ties(seed):
    rows = np.random.default_rng(seed).integers(-2, 3, size=(10, D))
    return rows.astype(np.float32)


def serves(rule: Rule, m: int) -> bool:
    """Whether the rule serves m workers, few enough of them if it is random."""
    return rule.most(m) >= 0 and not (rule.random and m > 6)


def _workers(rule: Rule, rows) -> int:
    return len(_enumerable(rule, rows))


def _enumerable(rule: Rule, rows):
    """Random rules have few enough outcomes to list for six workers."""
    return rows[:6] if rule.random else rows


@pytest.mark.parametrize(
    "rule, data", where_each(DATA, lambda r, data: r.most(_workers(r, DATA[data])) >= 0)
)
def test_equals_the_oracle(rule, data):
    rows = _enumerable(rule, DATA[data])
    assert_oracle(rule, rows, some_f(rule, len(rows)))


@pytest.mark.parametrize(
    "rule, seed", where_each(range(4), lambda r, _: r.most(10) >= 2 and not r.random)
)
def test_equals_the_oracle_on_ties(rule, seed):
    # Eight of ten are kept: their mean of small integers is exact, and so are all ties.
    assert_oracle(rule, _ties(seed), 2)


@pytest.mark.parametrize(
    "rule, m",
    where_each([10, 6, 1], lambda r, m: serves(r, m) and (m != 6 or r.random)),
)
def test_equals_the_oracle_at_other_shapes(rule, m):
    rows = gaussian(m, 4 if m == 1 else 12, seed=11)
    assert_oracle(rule, rows, min(2, rule.most(m)))


@pytest.mark.slow
@pytest.mark.parametrize("rule", where(lambda r: r.most(3) >= 0))
def test_equals_the_oracle_without_byzantine_workers(rule):
    assert_oracle(rule, gaussian(3, 3, seed=12), 0)


@pytest.mark.slow
@pytest.mark.parametrize("rule, m", where_each([3, 4, 8, 17], serves))
def test_equals_the_oracle_at_the_largest_f(rule, m):
    # Drawn so that nothing hangs on a rounding, as where NNM makes two pairs of equal
    # rows, and every point between them is a geometric median.
    assert_oracle(rule, gaussian(m, 5, seed=30 + m), rule.most(m))


# --- JAX ------------------------------------------------------------------------------


@compiles
def test_jit_is_eager_in_one_trace_and_inputs_stay(rule):
    f = some_f(rule)
    _, traced = compiled(rule.name, M, f, quick=False)
    rows, other = gaussian(seed=20), gaussian(seed=21)
    got = run(rule, rows, f)
    so_far = len(traced)
    run(rule, other, f)
    assert traced and len(traced) == so_far, "a second call traced again"
    kept = rows.copy()
    arguments = rules.arguments(rule, jnp.asarray(rows))
    eager = rule.make(M, f).aggregate(rows, **arguments)  # NumPy in: could be written.
    np.testing.assert_array_equal(rows, kept)
    assert_near(eager, got, rows)


@compiles
def test_tree_is_its_ravelled_matrix(rule):
    rows = jnp.asarray(gaussian(seed=22))
    tree = rules.tree_of(rows)
    f = some_f(rule)
    got = compiled(rule.name, M, f, quick=True)[0](tree, **rules.arguments(rule, tree))
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    assert [leaf.shape for leaf in jax.tree.leaves(got)] == [(3, 2), (5,), ()]
    assert_near(rules.flat(got), run(rule, rows, f), rows)


@pytest.mark.slow
@compiles
def test_vmap_is_a_loop(rule):
    batch = np.stack([gaussian(seed=s) for s in (23, 24, 25)])
    f = some_f(rule)
    function = compiled(rule.name, M, f, quick=True)[0]
    arguments = rules.arguments(rule, jnp.asarray(batch[0]))
    together = jax.vmap(lambda rows: function(rows, **arguments))
    # The older way to emit code, which other tests compile with for its speed, takes
    # minutes for a network over rows gathered by a batch of indices.
    got = jax.jit(together, compiler_options=AS_USERS_DO)(jnp.asarray(batch))
    for out, rows in zip(got, batch, strict=True):
        assert_near(out, run(rule, rows, f), rows)


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_and_structure_are_kept(rule, dtype):
    with jax.enable_x64(dtype == "float64"):
        tree = rules.tree_of(jnp.asarray(gaussian(), dtype))
        tree["nest"][0] = tree["nest"][0].astype(jnp.float32)  # Not all the same.
        aggregator = rule.make(M, some_f(rule))
        out = jax.eval_shape(
            lambda x: aggregator.aggregate(x, **rules.arguments(rule, x)), tree
        )
        assert jax.tree.structure(out) == jax.tree.structure(tree)
        for got, given in zip(jax.tree.leaves(out), jax.tree.leaves(tree), strict=True):
            assert (got.dtype, got.shape) == (given.dtype, given.shape[1:])


@pytest.mark.slow
@compiles
def test_half_precision_accumulates_in_float32(rule):
    rows = jnp.asarray(gaussian(seed=26), jnp.bfloat16)
    f = some_f(rule)
    got = compiled(rule.name, M, f, quick=True)[0](rows, **rules.arguments(rule, rows))
    exact = run(rule, rows.astype(jnp.float32), f)
    # One rounding to eight bits, of the result, is all that may be lost.
    np.testing.assert_allclose(
        got.astype(jnp.float32), exact, rtol=2**-8, atol=2**-8 * 0.1
    )


@pytest.mark.parametrize(
    "rule",
    where(lambda r: r.most(_workers(r, gaussian())) >= 0),
)
def test_double_precision_is_used(rule):
    rows = _enumerable(rule, gaussian(seed=27))
    m = len(rows)
    f = some_f(rule, m)
    with jax.enable_x64(True):
        x = jnp.asarray(rows, jnp.float64)
        function = compiled(rule.name, m, f, quick=True)[0]
        got = np.asarray(function(x, **rules.arguments(rule, x)))
    expected = rule.oracle(rows.astype(np.float64), f)
    gap = np.min(np.max(np.abs(np.atleast_2d(expected) - got), axis=1))
    assert gap <= 1e-9 if rule.tolerance <= 1e-5 else gap <= 1e-6


@every
def test_is_a_link_of_a_chain(rule):
    optimizer = optax.chain(rule.make(M, some_f(rule)), optax.sgd(0.1, momentum=0.9))
    params = rules.tree_of(jnp.ones((1, D)))
    params = jax.tree.map(lambda leaf: leaf[0], params)
    rows = rules.tree_of(jnp.asarray(gaussian()))
    state = jax.eval_shape(optimizer.init, params)
    updates, new = jax.eval_shape(
        lambda r, s, p: optimizer.update(r, s, p, **rules.arguments(rule, r)),
        rows,
        state,
        params,
    )
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    # A scan or a loop can carry the state: nothing in it changes its type.
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.leaves(new) == jax.tree.leaves(state)


CHAINED = ("median", "geometric_median", "ctma(median)", "bucketing(median)")


@pytest.mark.parametrize(
    "rule",
    where(lambda r: r.stateful or r.name in CHAINED),
)
def test_scans_with_its_state(rule):
    f = some_f(rule)
    steps = jnp.asarray(np.stack([gaussian(seed=30 + s) for s in range(4)]))
    optimizer = optax.chain(rule.make(M, f), optax.sgd(0.1, momentum=0.9))
    params = jnp.ones((D,))

    def step(carry, rows):
        params, state = carry
        updates, state = optimizer.update(
            rows, state, params, **rules.arguments(rule, rows)
        )
        return (optax.apply_updates(params, updates), state), None

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, steps)[0])
    last, _ = scan((params, optimizer.init(params)))

    aggregator = rule.make(M, f)
    update = jax.jit(aggregator.update)
    state, expected, trace = aggregator.init(params), np.ones(D), np.zeros(D)
    for rows in steps:
        if rule.stateful:
            out, state = update(rows, state, **rules.arguments(rule, rows))
        else:
            out = run(rule, rows, f)
        trace = np.asarray(out) + 0.9 * trace
        expected = expected - 0.1 * trace
    np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("standard_promotion")  # Which Adam itself needs.
def test_a_chain_with_adam_learns_under_attack():
    optimizer = optax.chain(byzjax.ctma(byzjax.median(), 2), optax.adam(0.1))
    target, noise = jnp.arange(float(D)) / D, 0.01 * gaussian(seed=35)

    def step(carry, _):
        params, state = carry
        rows = (params - target)[None] + noise
        rows = rows.at[-2:].set(jnp.asarray([[jnp.nan], [-3e38]]))
        updates, state = optimizer.update(rows, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.ones((D,))
    carry = (start, optimizer.init(start))
    carry, _ = jax.jit(lambda c: jax.lax.scan(step, c, length=300))(carry)
    np.testing.assert_allclose(carry[0], target, atol=0.02)


@pytest.mark.parametrize("rule", where(lambda r: not r.extra(np.float32([[1]]))))
def test_fits_optax_aggregating_process(rule):
    aggregator = rule.make(M, some_f(rule))
    if rule.random:
        aggregator = byzjax.with_key(aggregator, jax.random.key(rules.KEY))
    optimizer = aggregating.process(optax.identity(), aggregator, optax.sgd(1.0))
    rows, params = jnp.asarray(gaussian(seed=34)), jnp.zeros((D,))
    updates, _ = jax.eval_shape(optimizer.update, rows, optimizer.init(params), params)
    assert updates.shape == (D,)


# --- equivariance ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", where(lambda r: r.permutation and not r.random))
def test_order_of_workers_does_not_matter(rule):
    for seed in range(5):
        rows = gaussian(seed=40 + seed)
        order = np.random.default_rng(seed).permutation(M)
        assert_near(run(rule, rows[order]), run(rule, rows), rows, rule.tolerance)


@pytest.mark.parametrize("rule", where(lambda r: r.translation))
def test_translation_moves_the_result(rule):
    rows, shift = gaussian(seed=45), 30 * gaussian(1, seed=46)
    moved = rows + shift
    # What rounding the moved rows loses is lost before any rule sees them.
    assert_near(run(rule, moved), run(rule, rows) + shift[0], moved, 2e-6)


@pytest.mark.parametrize("rule", where(lambda r: r.scaling))
@pytest.mark.parametrize("scale", [2.5, 1e-10, 1e10, 1e-28, 1e25, 1e38])
def test_scale_scales_the_result(rule, scale):
    rows = gaussian(seed=47)
    scaled = run(rule, rows * np.float32(scale)) / np.float32(scale)
    assert_near(scaled, run(rule, rows), rows, rule.tolerance)


@pytest.mark.parametrize("rule", where(lambda r: r.translation or r.scaling))
def test_identical_rows_give_that_row(rule):
    for value in gaussian(5, seed=48):
        assert_near(run(rule, np.tile(value, (M, 1))), value, value[None], 1e-6)


# --- the constraint of each rule ------------------------------------------------------


@pytest.mark.parametrize("rule", where(lambda r: r.takes_f))
def test_too_many_byzantine_workers_are_refused(rule):
    f = rule.most(M) + 1
    with pytest.raises(ValueError, match=rf"needs num_workers >= .*={f}\b"):
        jax.eval_shape(
            lambda rows: rule.make(M, f).aggregate(rows, **rules.arguments(rule, rows)),
            jnp.ones((M, D)),
        )


@pytest.mark.parametrize("rule", where(lambda r: r.takes_f and not r.variant))
def test_the_number_of_byzantine_workers_is_a_static_int(rule):
    for bad in (-1, 1.0, True, "2"):
        with pytest.raises((TypeError, ValueError), match="needs num_byzantine"):
            rule.make(M, bad)  # type: ignore[arg-type]

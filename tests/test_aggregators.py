"""Every property of every row of the table in `rules.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

import byzjax
from tests import reference as ref
from tests import rules
from tests.compiling import AS_USERS_DO
from tests.rules import RULES, Rule

M, D = 11, 12  # The shape that nearly all tests share, so each rule compiles it once.
HUGE = {
    "nan": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "3e38": 3e38,
    "-3e38": -3e38,
    "1e30": 1e30,
}


def where(condition, slow=lambda rule: False) -> list:
    """Rows of the table as parameters; one process runs all that concerns a row."""
    chosen = []
    for rule in filter(condition, RULES):
        marks = [pytest.mark.xdist_group(rule.name)]
        marks += [pytest.mark.slow] if slow(rule) else []
        chosen.append(pytest.param(rule, id=rule.name, marks=marks))
    return chosen


def where_each(values, condition) -> list:
    """The same for pairs of a row of the table and one of some values."""
    return [
        pytest.param(
            rule,
            value,
            id=f"{value}-{rule.name}",
            marks=pytest.mark.xdist_group(rule.name),
        )
        for value in values
        for rule in RULES
        if condition(rule, value)
    ]


# What takes a compilation of its own is left to the full run for mere conventions.
compiles = pytest.mark.parametrize(
    "rule", where(lambda r: True, slow=lambda r: r.variant)
)
every = pytest.mark.parametrize("rule", where(lambda r: True))
proof = pytest.mark.parametrize("rule", where(lambda r: r.poison_proof))


def some_f(rule: Rule, m: int = M) -> int:
    """Two Byzantine workers, or as many as the rule serves."""
    return max(0, min(2, rule.most(m)))


@functools.cache
def compiled(name: str, m: int, f: int, *, quick: bool):
    """The rule, jitted once for all tests, and the shapes it was traced for."""
    rule = RULES[rules.NAMES.index(name)]
    aggregator, traced = rule.make(m, f), []

    def counted(updates, **arguments):
        leaves = jax.tree.leaves((updates, arguments))
        traced.append(tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))
        return aggregator.aggregate(updates, **arguments)

    options = None if quick else AS_USERS_DO
    return jax.jit(counted, compiler_options=options), traced


def run(rule: Rule, rows, f: int | None = None, **arguments) -> np.ndarray:
    """The compiled rule on float32 rows [m, d]."""
    rows = jnp.asarray(np.asarray(rows, np.float32))
    m = rows.shape[0]
    f = some_f(rule, m) if f is None else f
    arguments = {**rules.arguments(rule, rows), **arguments}
    return np.asarray(compiled(rule.name, m, f, quick=m != M)[0](rows, **arguments))


def gaussian(m=M, d=D, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(m, d)).astype(np.float32)


def size(rows) -> float:
    """The size of the rows that float32 can measure: what errors are relative to."""
    rows = np.asarray(rows, np.float64)
    rows = rows[ref.is_finite(rows)]
    return max(float(np.max(np.abs(rows), initial=0)), 1e-30)


def assert_near(got, expected, rows, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=tolerance * size(rows))


def assert_oracle(rule: Rule, rows, f: int, got=None):
    rows = np.asarray(rows, np.float32)
    got = run(rule, rows, f) if got is None else got
    expected = rule.oracle(rows.astype(np.float64), f)
    if expected.ndim == 1:
        assert_near(got, expected, rows, rule.tolerance)
        return
    gaps = np.max(np.abs(expected - got), axis=1)
    assert np.min(gaps) <= 2 * rule.tolerance * size(rows), (got, expected[:5])


# --- against the definition -----------------------------------------------------------


def _ties(seed):
    rows = np.random.default_rng(seed).integers(-2, 3, size=(10, D))
    return rows.astype(np.float32)


def _clustered(seed):
    """Honest spread 1e-3 of the norm: where a plain Gram matrix cancels."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=D) + 1e-3 * rng.normal(size=(M, D))).astype(np.float32)


def _with(rows, at, value):
    rows = np.array(rows)
    rows[at] = value
    return rows


DATA = {
    "gaussian": gaussian(seed=1),
    "clustered": _clustered(2),
    "large": gaussian(seed=3) * np.float32(1e6),
    "small": gaussian(seed=4) * np.float32(1e-6),
    "identical": np.tile(gaussian(1, seed=5), (M, 1)),
    "zero": np.zeros((M, D), np.float32),
    "most identical": _with(gaussian(seed=6), slice(3, 10), gaussian(1, seed=6)[0]),
    "one zero row": _with(gaussian(seed=7), 4, 0),
    "one row far out": _with(gaussian(seed=8), 0, 1e6),
    "two far out": _with(gaussian(seed=9), [3, 8], [[1e12], [-1e9]]),
    "sparse": gaussian(seed=10) * (np.random.default_rng(0).random((M, D)) < 0.3),
}


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


@pytest.mark.parametrize(
    "rule", where(lambda r: r.most(3) >= 0, slow=lambda r: r.variant)
)
def test_equals_the_oracle_without_byzantine_workers(rule):
    assert_oracle(rule, gaussian(3, 3, seed=12), 0)


@pytest.mark.slow
@pytest.mark.parametrize("rule, m", where_each([3, 4, 5, 8, 11, 17], serves))
def test_equals_the_oracle_at_the_largest_f(rule, m):
    assert_oracle(rule, gaussian(m, 5, seed=m), rule.most(m))


# --- JAX ------------------------------------------------------------------------------


@compiles
def test_jit_is_eager_in_one_trace_and_inputs_stay(rule):
    f = some_f(rule)
    _, traced = compiled(rule.name, M, f, quick=False)
    rows, other = gaussian(seed=20), gaussian(seed=21)
    got = run(rule, rows, f)
    run(rule, other, f)
    shape = traced[-1]
    assert traced.count(shape) == 1, "a second call traced again"
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


@compiles
def test_vmap_is_a_loop(rule):
    batch = np.stack([gaussian(seed=s) for s in (23, 24, 25)])
    f = some_f(rule)
    function = compiled(rule.name, M, f, quick=True)[0]
    arguments = rules.arguments(rule, jnp.asarray(batch[0]))
    together = jax.vmap(lambda rows: function(rows, **arguments))
    got = jax.jit(together)(jnp.asarray(batch))
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
    where(lambda r: r.most(_workers(r, gaussian())) >= 0, slow=lambda r: r.variant),
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
    where(lambda r: True, slow=lambda r: not r.stateful and r.name not in CHAINED),
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
@pytest.mark.parametrize("scale", [2.5, 1e-10, 1e10])
def test_scale_scales_the_result(rule, scale):
    rows = gaussian(seed=47)
    scaled = run(rule, rows * np.float32(scale)) / np.float32(scale)
    assert_near(scaled, run(rule, rows), rows, rule.tolerance)


@pytest.mark.parametrize("rule", where(lambda r: r.translation or r.scaling))
def test_identical_rows_give_that_row(rule):
    for value in gaussian(5, seed=48):
        assert_near(run(rule, np.tile(value, (M, 1))), value, value[None], 1e-6)


# --- Byzantine rows -------------------------------------------------------------------


def poisons(f: int):
    """Fillings [f, D] that no honest worker sends, by name."""
    for name, value in HUGE.items():
        yield name, np.full((f, D), value, np.float32)
    one = gaussian(max(f, 1), seed=50)[:f]
    one[:, 3] = np.nan
    yield "one nan in a row", one
    one = gaussian(max(f, 1), seed=51)[:f]
    one[:, -1] = np.inf
    yield "one inf in a row", one
    values = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 1.0]
    drawn = np.random.default_rng(52).choice(values, size=(f, D))
    yield "mixed", drawn.astype(np.float32)
    alternating = np.full((f, D), 3e38, np.float32)
    alternating[:, ::2] *= -1
    yield "alternating", alternating
    many = np.resize([np.nan, 1e30, np.inf, -3e38, 3e38], f)
    yield "one of each", np.tile(many.astype(np.float32)[:, None], (1, D))


PLACES = {
    "back": lambda f: np.arange(M - f, M),
    "front": lambda f: np.arange(f),
    "spread": lambda f: np.sort(np.random.default_rng(f).permutation(M)[:f]),
}


@proof
@pytest.mark.parametrize("place", PLACES)
def test_poisoned_rows_do_no_harm(rule, place):
    assert_unharmed(rule, some_f(rule), place)


@pytest.mark.parametrize(
    "rule", where(lambda r: r.poison_proof, slow=lambda r: r.variant)
)
@pytest.mark.parametrize("place", PLACES)
def test_as_many_poisoned_rows_as_allowed_do_no_harm(rule, place):
    assert_unharmed(rule, rule.most(M), place)


def assert_unharmed(rule: Rule, f: int, place: str):
    at = PLACES[place](f)
    for name, poison in poisons(f):
        rows = gaussian(seed=53)
        rows[at] = poison
        honest = np.delete(rows, at, axis=0)
        got = run(rule, rows, f)
        assert np.isfinite(got).all(), name
        if rule.hull:
            slack = 1e-5 * size(honest)
            assert (got >= honest.min(axis=0) - slack).all(), name
            assert (got <= honest.max(axis=0) + slack).all(), name
        else:
            assert np.linalg.norm(got) <= 10 * np.linalg.norm(honest), name
        if not rule.random:
            expected = rule.oracle(rows.astype(np.float64), f)
            np.testing.assert_allclose(
                got, expected, rtol=1e-5, atol=rule.tolerance * size(honest)
            )


@pytest.mark.parametrize(
    "rule", where(lambda r: r.poison_proof, slow=lambda r: r.variant)
)
def test_a_poisoned_leaf_poisons_its_worker_only(rule):
    f = some_f(rule)
    rows = gaussian(seed=54)
    rows[:f, 11] = np.nan  # The scalar leaf of the first workers.
    tree = rules.tree_of(jnp.asarray(rows))
    got = compiled(rule.name, M, f, quick=True)[0](tree, **rules.arguments(rule, tree))
    assert_near(rules.flat(got), run(rule, rows, f), rows)
    assert np.isfinite(rules.flat(got)).all()


@pytest.mark.parametrize("rule", where(lambda r: not r.poison_proof))
def test_rules_without_defence_are_said_to_be(rule):
    assert not np.isfinite(run(rule, _with(gaussian(), -1, np.nan), 0)).all()


def attacks(honest: np.ndarray, f: int):
    """Messages [f, D] of colluding workers that know all about the honest ones."""
    rng = np.random.default_rng(60)
    centre, std = honest.mean(axis=0), honest.std(axis=0)
    spread = np.linalg.norm(honest - centre, axis=1).max()
    yield np.tile(-centre, (f, 1))
    yield np.tile(honest[0], (f, 1))
    yield np.resize(honest, (f, D))
    for z in (0.3, 1, 1.5, 3, 10, 100, 1e4, 1e8):
        yield np.tile(centre - z * std, (f, 1))
        yield np.tile(centre + z * spread * rng.normal(size=D) / D**0.5, (f, 1))
        yield centre + z * spread * rng.normal(size=(f, D)) / D**0.5
        # One near, the rest behind it: what chains of neighbours fall for.
        yield centre + np.geomspace(z, 1, f)[:, None] * spread * rng.normal(size=D)


@pytest.mark.parametrize(
    "rule", where(lambda r: r.kappa is not None, slow=lambda r: r.variant)
)
@pytest.mark.parametrize("most", [False, True], ids=["two", "most"])
def test_error_is_within_the_proven_constant(rule, most):
    f = rule.most(M) if most else some_f(rule)
    kinds = [gaussian(M - f, seed=61), _clustered(62)[f:]]
    kinds.append(np.tile(gaussian(1, seed=63), (M - f, 1)))  # No spread, no error.
    kinds.append(_with(np.zeros((M - f, D), np.float32), 0, 1))  # One of them far out.
    for honest in kinds:
        centre = honest.astype(np.float64).mean(axis=0)
        variance = np.mean(np.sum((honest - centre) ** 2, axis=1))
        for messages in attacks(honest.astype(np.float64), f):
            rows = np.concatenate([messages.astype(np.float32), honest])
            error = np.linalg.norm(run(rule, rows, f) - centre)
            bound = np.sqrt(rule.kappa(M, f) * variance)
            assert error <= bound * (1 + 1e-4) + 1e-6 * np.linalg.norm(centre)


# --- weights --------------------------------------------------------------------------

weighted = pytest.mark.parametrize("rule", where(lambda r: r.weighted))


@weighted
def test_equal_weights_are_no_weights(rule):
    rows = gaussian(seed=70)
    for weight in (1.0, 0.3, 1e-38, 3e38, 0.0):
        got = run(rule, rows, weights=jnp.full((M,), weight))
        assert_near(got, run(rule, rows), rows, rule.tolerance)


@pytest.mark.parametrize("rule", where(lambda r: r.weighted, lambda r: r.variant))
def test_integer_weights_are_repeated_rows(rule):
    rows, f = gaussian(seed=71), some_f(rule)
    weights = np.array([0, 1, 2, 3, 4, 5, 6, 5, 4, 2, 1])
    assert weights.sum() == 3 * M  # So a fraction of the weight is one of the rows.
    got = run(rule, rows, f, weights=jnp.asarray(weights, jnp.float32))
    again = np.repeat(rows, weights, axis=0)
    assert_near(got, run(rule, again, 3 * f), rows, rule.tolerance)
    got = run(rule, rows, f, weights=jnp.asarray(weights / 7, jnp.float32))
    assert_near(got, run(rule, again, 3 * f), rows, rule.tolerance)


@weighted
def test_a_worker_without_weight_is_absent(rule):
    rows, weights = gaussian(seed=72), jnp.ones((M,)).at[jnp.array([0, 7])].set(0)
    expected = run(rule, rows, weights=weights)
    for poison in HUGE.values():
        got = run(rule, _with(rows, [0, 7], poison), weights=weights)
        assert_near(got, expected, rows, rule.tolerance)


@weighted
def test_bad_weights_count_as_zero(rule):
    rows = gaussian(seed=73)
    good = jnp.asarray(np.linspace(0.5, 2, M), jnp.float32)
    expected = run(rule, rows, weights=good.at[3].set(0))
    for bad in (-1.0, np.nan, np.inf, -np.inf):
        got = run(rule, rows, weights=good.at[3].set(bad))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("rule", where(lambda r: r.weighted and r.poison_proof))
def test_poison_does_no_harm_under_weights(rule):
    f = some_f(rule)
    weights = jnp.asarray(np.linspace(0.9, 1.1, M)[::-1].copy(), jnp.float32)
    for name, poison in poisons(f):
        rows = gaussian(seed=74)
        rows[M - f :] = poison
        honest = rows[: M - f]
        got = run(rule, rows, f, weights=weights)
        assert np.isfinite(got).all(), name
        assert (got >= honest.min(axis=0) - 1e-5).all(), name
        assert (got <= honest.max(axis=0) + 1e-5).all(), name


@weighted
def test_weights_of_a_wrong_shape_are_refused(rule):
    with pytest.raises(ValueError, match=r"weights of shape .*\(11,\).*\(4,\)"):
        rule.make(M, 2).aggregate(jnp.ones((M, 2)), weights=jnp.ones((4,)))


@pytest.mark.parametrize("rule", where(lambda r: not r.weighted))
def test_rules_without_a_weighted_form_refuse_weights(rule):
    rows = jnp.ones((M, D))
    with pytest.raises(ValueError, match=r"^\w+ has no weighted form") as error:
        jax.eval_shape(
            lambda rows: rule.make(M, some_f(rule)).aggregate(
                rows, weights=jnp.ones((M,)), **rules.arguments(rule, rows)
            ),
            rows,
        )
    assert str(error.value).split()[0] in rule.name


# --- derivatives ----------------------------------------------------------------------


@functools.cache
def derivatives(name: str, f: int):
    """Jitted: the gradient of ⟨c, A(x)⟩; and, along t, its value and derivative."""
    function = compiled(name, M, f, quick=True)[0]
    rule = RULES[rules.NAMES.index(name)]

    def along(rows):
        c = jnp.asarray(gaussian(1, seed=80)[0], rows.dtype)
        return jnp.vdot(c, function(rows, **rules.arguments(rule, rows)))

    def forward(rows, tangent):
        return jax.jvp(along, (rows,), (tangent,))

    gradient = jax.jit(jax.grad(along))
    return gradient, jax.jit(forward)


def corners(rule: Rule, f: int):
    """Stacks where a careless root or quotient has no derivative."""
    yield from DATA.items()
    for name, poison in poisons(f) if rule.poison_proof else ():
        yield name, _with(gaussian(seed=82), slice(M - f, M), poison)
        yield name + " in front", _with(gaussian(seed=82), slice(f), poison)


@compiles
def test_gradients_are_finite(rule):
    f = some_f(rule)
    gradient, _ = derivatives(rule.name, f)
    for name, rows in corners(rule, f):
        assert np.isfinite(gradient(jnp.asarray(np.float32(rows)))).all(), name


@pytest.mark.slow
@every
def test_forward_derivatives_are_finite_and_those_of_the_gradient(rule):
    f = some_f(rule)
    gradient, forward = derivatives(rule.name, f)
    tangent = jnp.asarray(gaussian(seed=81))
    for name, rows in corners(rule, f):
        rows = jnp.asarray(np.float32(rows))
        _, ahead = forward(rows, tangent)
        assert np.isfinite(ahead), name
        if name in ("gaussian", "clustered"):
            back = jnp.vdot(gradient(rows), tangent)
            np.testing.assert_allclose(back, ahead, rtol=1e-2, atol=1e-2)


@compiles
def test_derivatives_match_finite_differences(rule):
    f = some_f(rule)
    step = 1e-6
    with jax.enable_x64(True):
        _, forward = derivatives(rule.name, f)
        rows = jnp.asarray(gaussian(seed=83), jnp.float64)
        tangent = jnp.asarray(gaussian(seed=84), jnp.float64)
        above, _ = forward(rows + step * tangent, tangent)
        below, _ = forward(rows - step * tangent, tangent)
        _, derivative = forward(rows, tangent)
        if not rule.frozen:
            np.testing.assert_allclose(
                derivative, (above - below) / (2 * step), rtol=1e-5, atol=1e-5
            )
        for name, corner in corners(rule, f):
            corner = jnp.asarray(np.float32(corner), jnp.float64)
            assert np.isfinite(forward(corner, tangent)[1]), name


# --- the geometric median, which is found by iteration --------------------------------


def _median_cases():
    rng = np.random.default_rng(90)
    honest = rng.normal(size=(9, D))
    yield "nine against eight alike", np.concatenate([honest, np.full((8, D), 5.0)])
    yield "eight alike far off", np.concatenate([honest, np.full((8, D), 1e3)])
    centre = rng.normal(size=(1, D))
    pairs = rng.normal(size=(8, D))
    yield (
        "a row at the median",
        np.concatenate([centre, centre + pairs, centre - pairs]),
    )
    yield "collinear", np.linspace(-3, 7, 17)[:, None] ** 3 * rng.normal(size=D)
    yield "two places", np.repeat(rng.normal(size=(2, D)), [9, 8], axis=0)
    for far in (1e6, 1e12, 1e15):
        out = rng.normal(size=(4, D)) * far
        yield f"outliers at {far:g}", np.concatenate([out, rng.normal(size=(13, D))])
    close = rng.normal(size=D) + 1e-3 * rng.normal(size=(17, D))
    yield "late in training", close
    yield "late, one far", np.concatenate([[[1e6] * D], close[1:]])


@pytest.mark.parametrize("init", ["mean", "median"])
@pytest.mark.parametrize("case", [c for c, _ in _median_cases()])
def test_geometric_median_is_reached(init, case):
    rows = np.float32(dict(_median_cases())[case])
    got = _compiled_median(init)(jnp.asarray(rows))
    expected = ref.geometric_median(rows.astype(np.float64))
    lengths = np.linalg.norm(rows - expected, axis=1)
    spread = np.median(lengths[lengths > 0])
    floor = 4e-7 * np.linalg.norm(expected)  # The rounding of the result itself.
    assert np.linalg.norm(got - expected) <= 1e-4 * spread + floor


@functools.cache
def _compiled_median(init):
    return jax.jit(byzjax.geometric_median(init=init).aggregate)


def test_tolerance_stops_near_the_geometric_median():
    rows = gaussian(17, D, seed=91)
    rule = byzjax.geometric_median(tolerance=1e-3)
    got = jax.jit(rule.aggregate)(rows)
    assert np.linalg.norm(got - ref.geometric_median(rows.astype(np.float64))) < 1e-1


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

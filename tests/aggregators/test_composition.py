"""Meta-rules over rules over meta-rules: in the geometry, as if on the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax.base import Aggregator
from byzjax.numerics import stacked
from tests import reference as ref
from tests.rules import RULES, Rule
from tests.stacks import gaussian

M, F, D = 11, 2, 12
SMALL = 6  # So few workers that all ways to deal them into buckets can be listed.

# name → (wrapper of a rule, the same of an oracle); f is the same all the way down.
METAS = {
    "ctma": (lambda rule, f: byzjax.ctma(rule, f), ref.ctma),
    "nnm": (lambda rule, f: byzjax.nnm(rule, f), ref.nnm),
    "bucketing": (
        lambda rule, f: byzjax.bucketing(rule, 2),
        lambda oracle: ref.bucketing(oracle, 2),
    ),
}
BASES = {
    "mean": (lambda f: byzjax.mean(), ref.finite_mean, 1e-5),
    "median": (lambda f: byzjax.median(), ref.median, 1e-5),
    "geometric_median": (
        lambda f: byzjax.geometric_median(),
        ref.geometric_median,
        1e-4,
    ),
    "centered_clipping": (
        lambda f: byzjax.centered_clipping(2.0, num_iterations=3),
        ref.centered_clipping(2.0, 3),
        1e-5,
    ),
    "trimmed_mean": (byzjax.trimmed_mean, ref.trimmed_mean, 1e-5),
    # Of the three rows that bucketing leaves, as many as there are honest others.
    "krum": (
        lambda f: byzjax.krum(f, num_neighbors=2 - f),
        ref.krum(lambda m, f: 2 - f),
        1e-5,
    ),
}
PAIRS = [(outer, inner) for outer in METAS for inner in METAS]


@functools.cache
def nested(outer, inner, base, f):
    """The jitted rule outer(inner(base)), its oracle and its tolerance."""
    make, oracle, tolerance = BASES[base]
    rule = METAS[outer][0](METAS[inner][0](make(f), f), f)

    def aggregate(rows, key):
        return rule.aggregate(rows, key=key)

    return jax.jit(aggregate), METAS[outer][1](METAS[inner][1](oracle)), tolerance


def assert_one_of(got, expected, atol):
    """`got` is one of the outcomes [k, d] that a rule may have, or the only one [d]."""
    gaps = np.max(np.abs(np.atleast_2d(expected) - np.asarray(got)), axis=1)
    assert np.min(gaps) <= atol, np.min(gaps)


def _pairs(condition):
    """Bases in pairs of meta-rules; bucketing is doubled where it leaves two rows."""
    cases = []
    for base in BASES:
        marks = [] if base in ("median", "geometric_median") else [pytest.mark.slow]
        for outer, inner in PAIRS:
            if condition(base, outer == inner == "bucketing"):
                cases.append(pytest.param(base, outer, inner, marks=marks))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(
    "base, outer, inner",
    # Of two rows, Krum can choose none, and all between are geometric medians.
    _pairs(lambda base, double: not (double and base in ("krum", "geometric_median"))),
)
def test_every_pair_equals_its_oracle(outer, inner, base):
    buckets = "bucketing" in (outer, inner)
    # Of three rows each of the two nearest is the other's one neighbour: a tie.
    f = 0 if outer == inner == "bucketing" or (buckets and base == "krum") else 1
    function, oracle, tolerance = nested(outer, inner, base, f)
    # Other seeds, mixed twice, give three and three rows alike, with no one median.
    for seed in range(1, 4):
        rows = gaussian(SMALL, seed=seed)
        got = function(rows, jax.random.key(seed))
        assert_one_of(got, oracle(rows.astype(np.float64), f), 3 * tolerance)


@pytest.mark.parametrize(
    "base, outer, inner",
    _pairs(lambda base, double: not double),  # Too few buckets for a poisoned one.
)
def test_no_pair_is_harmed_by_poisoned_rows(outer, inner, base):
    function, *_ = nested(outer, inner, base, 1)
    for seed, poison in enumerate((np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30)):
        for at in (0, SMALL - 1):
            rows = gaussian(SMALL, seed=10 + seed)
            rows[at] = poison
            got = function(rows, jax.random.key(seed))
            assert np.isfinite(got).all(), (poison, at)
            honest = np.delete(rows, at, axis=0)
            slack = 1.0 if base == "centered_clipping" else 1e-4
            assert (got >= honest.min(axis=0) - slack).all(), (poison, at)
            assert (got <= honest.max(axis=0) + slack).all(), (poison, at)


@pytest.mark.slow
@pytest.mark.parametrize("outer, inner", PAIRS)
def test_pairs_serve_trees(outer, inner):
    function, *_ = nested(outer, inner, "median", 1)
    rows, key = jnp.asarray(gaussian(seed=20)), jax.random.key(1)
    got = function([rows[:, :6].reshape(M, 2, 3), rows[:, 6:]], key)
    assert [leaf.shape for leaf in got] == [(2, 3), (6,)]
    got = jnp.concatenate([leaf.ravel() for leaf in got])
    np.testing.assert_allclose(got, function(rows, key), rtol=1e-5, atol=1e-5)


# --- in the geometry or on the rows ---------------------------------------------------


def opaque(rule: Aggregator) -> Aggregator:
    """The same rule, not known to be a weighting: meta-rules must form the rows."""
    return Aggregator(rule.init, rule.update)


def weighings():
    yield "geometric_median", byzjax.geometric_median(), 1e-4
    yield "krum", byzjax.krum(F), 1e-5
    yield "multi_krum", byzjax.multi_krum(F), 1e-5
    yield "mean", byzjax.mean(), 1e-5
    yield "ctma(krum)", byzjax.ctma(byzjax.krum(F), F), 1e-5
    yield "nnm(geometric_median)", byzjax.nnm(byzjax.geometric_median(), F), 1e-4


WEIGHINGS = [pytest.param(*case, id=case[0]) for case in weighings()]


@pytest.mark.slow
@pytest.mark.parametrize("name, rule, atol", WEIGHINGS)
@pytest.mark.parametrize("meta", ["ctma", "nnm"])
def test_composing_in_the_geometry_is_composing_on_rows(name, rule, atol, meta):
    wrap = METAS[meta][0]
    known, formed = wrap(rule, F), wrap(opaque(rule), F)
    assert known.weigh is not None and formed.weigh is None
    known, formed = jax.jit(known.aggregate), jax.jit(formed.aggregate)
    centre = 30 * gaussian(1, seed=30)
    for rows in (gaussian(seed=31), centre + gaussian(seed=32) * 0.03):
        size = np.max(np.std(rows, axis=0))
        np.testing.assert_allclose(
            known(rows), formed(rows), rtol=2e-6, atol=3 * atol * size
        )
        rows = np.array(rows)
        rows[:F] = 1e6 * gaussian(F, seed=33)
        np.testing.assert_allclose(
            known(rows), formed(rows), rtol=2e-6, atol=3 * atol * size
        )


def test_bucketing_in_the_geometry_is_bucketing_on_rows():
    rule, rows, key = byzjax.geometric_median(), gaussian(seed=34), jax.random.key(3)
    known = jax.jit(byzjax.bucketing(rule, 2).aggregate)(rows, key=key)
    formed = jax.jit(byzjax.bucketing(opaque(rule), 2).aggregate)(rows, key=key)
    np.testing.assert_allclose(known, formed, rtol=1e-4, atol=1e-4)


def test_weights_of_the_composition_are_those_of_the_physical_mixing():
    """A(y) for y = W x, materialised in NumPy, is Σ weigh_i x_i."""
    rows = gaussian(seed=35)
    rule = byzjax.nnm(byzjax.krum(F), F)
    assert rule.weigh is not None
    shares = rule.weigh(stacked.geometry(jnp.asarray(rows)), key=None, weights=None)
    mixed = ref.nnm_rows(rows.astype(np.float64), F)
    chosen = mixed[ref.first(ref.krum_scores(mixed, F), 1)[0]]
    np.testing.assert_allclose(
        np.float64(shares) @ rows.astype(np.float64), chosen, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(np.sort(shares)[-(M - F) :], 1 / (M - F), rtol=1e-6)


def _passes(rule, d=7919):
    """How many times the program of a rule reads or writes something of d columns."""
    rows = jax.ShapeDtypeStruct((M, d), jnp.float32)
    jaxpr = jax.make_jaxpr(rule.aggregate)(rows)
    # Each pass over the stack is one branch for CPU and one for other platforms.
    return str(jaxpr).count("platform_index")


def test_composition_adds_no_pass_over_the_stack():
    single = _passes(byzjax.geometric_median())
    deep = byzjax.geometric_median()
    for _ in range(3):
        deep = byzjax.ctma(byzjax.nnm(deep, F), F)
    assert _passes(deep) == single


# --- which nesting is which -----------------------------------------------------------


def test_ctma_over_nnm_trims_the_original_rows():
    rows = gaussian(seed=36)
    x = rows.astype(np.float64)
    center = ref.median(ref.nnm_rows(x, F), F)
    outside = np.mean(x[ref.first(ref.distances_to(x, center), M - F)], axis=0)
    got = byzjax.ctma(byzjax.nnm(byzjax.median(), F), F).aggregate(rows)
    np.testing.assert_allclose(got, outside, rtol=1e-5, atol=1e-6)

    y = ref.nnm_rows(x, F)
    center = ref.median(y, F)
    inside = np.mean(y[ref.first(ref.distances_to(y, center), M - F)], axis=0)
    got = byzjax.nnm(byzjax.ctma(byzjax.median(), F), F).aggregate(rows)
    np.testing.assert_allclose(got, inside, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(inside - outside)) > 1e-3


def test_ctma_keeps_exactly_so_many_of_equally_far_rows():
    """All rows but one are equally far from the median: the lowest indices stay."""
    rows = np.float32([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    got = byzjax.ctma(byzjax.median(), 2).aggregate(rows)
    np.testing.assert_allclose(got, [0, 0], atol=1e-7)  # Rows 0, 1 and 4.
    rows = rows[[0, 2, 1, 3, 4]]
    got = byzjax.ctma(byzjax.median(), 2).aggregate(rows)
    np.testing.assert_allclose(got, [1 / 3, 1 / 3], rtol=1e-6)


def test_ctma_keeps_all_of_equally_far_rows_if_asked():
    """As in the authors' code: all five rows, divided by three."""
    rows = np.float32([[1, 1], [-1, 1], [1, 1], [-1, 1], [0, 1]])
    for rule in (byzjax.median(), byzjax.geometric_median()):
        got = byzjax.ctma(rule, 2, ties="all").aggregate(rows)
        np.testing.assert_allclose(got, [0, 5 / 3], rtol=1e-6, atol=1e-6)
    rows = gaussian(seed=39)
    rows[0] = np.nan
    got = byzjax.ctma(byzjax.median(), F, ties="all").aggregate(rows)
    want = byzjax.ctma(byzjax.median(), F).aggregate(rows)  # Adds in another order.
    np.testing.assert_allclose(got, want, rtol=1e-6)
    with pytest.raises(ValueError, match='ties to be "lowest" or "all", got ties=1'):
        byzjax.ctma(byzjax.median(), F, ties=1)
    with pytest.raises(ValueError, match='ties="lowest" with weights'):
        byzjax.ctma(byzjax.median(), F, ties="all").aggregate(
            rows, weights=np.ones(M, np.float32)
        )


# --- state, weights and extra arguments through the layers ----------------------------


@pytest.mark.parametrize("meta", METAS)
def test_the_state_of_the_base_is_carried(meta):
    base = byzjax.centered_clipping(0.5)
    rule = METAS[meta][0](base, F)
    rows = gaussian(seed=42) + 3
    state, norms = rule.init(rows[0]), []
    for seed in range(8):
        key = jax.random.key(seed)
        _, state = jax.jit(rule.update)(rows, state, key=key)
        assert isinstance(state, byzjax.CenteredClippingState)
        norms.append(float(optax.tree.norm(state.center)))
    assert (np.diff(norms) > 0.1).all(), "the centre should walk towards the rows"


def test_ctma_hands_weights_to_its_base():
    rows = gaussian(seed=43)
    weights = np.zeros(M, np.float32)
    weights[[2, 5, 7]] = [1, 1, 5]
    got = byzjax.ctma(byzjax.median(), 0).aggregate(rows, weights=weights)
    expected = weights @ rows / weights.sum()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"^krum has no weighted form"):
        byzjax.ctma(byzjax.krum(2), 2).aggregate(rows, weights=weights)
    for rule in (byzjax.nnm(byzjax.median(), 2), byzjax.nnm(byzjax.mean(), 2)):
        with pytest.raises(ValueError, match=r"^nnm has no weighted form"):
            rule.aggregate(rows, weights=weights)
        with pytest.raises(ValueError, match=r"^nnm has no weighted form"):
            byzjax.ctma(rule, 2).aggregate(rows, weights=weights)


def _over_every_rule():
    for rule in RULES:
        for meta in METAS:
            if meta == "bucketing" and rule.honest_row is not None:
                continue  # Refused: see below.
            if _largest_f(rule, meta) >= 0 and not rule.variant:
                yield pytest.param(rule, meta, id=f"{meta}({rule.name})")


def _largest_f(rule, meta):
    """At most one, as the rule serves the rows that the meta-rule leaves it."""
    return min(1, rule.most(_seen(meta)), rule.most(M))


def _seen(meta):
    return -(-M // 2) if meta == "bucketing" else M


@pytest.mark.slow
@pytest.mark.parametrize("rule, meta", list(_over_every_rule()))
def test_every_meta_rule_nests_over_every_rule(rule: Rule, meta: str):
    f = _largest_f(rule, meta)
    aggregator = METAS[meta][0](rule.make(_seen(meta), f), f)
    rows = gaussian(seed=44)

    @jax.jit
    def run(rows):
        extra = rule.extra(jnp.asarray(gaussian(seed=44)))
        return aggregator.aggregate(rows, key=jax.random.key(0), **extra)

    got = np.asarray(run(rows))
    assert got.shape == (D,) and np.isfinite(got).all()
    known = not (rule.random or rule.extra(rows)) and rule.poison_proof
    if known and meta != "bucketing":
        expected = METAS[meta][1](rule.oracle)(rows.astype(np.float64), f)
        np.testing.assert_allclose(got, expected, atol=3 * rule.tolerance, rtol=1e-5)
    if f and rule.poison_proof:
        for poison in (np.nan, np.inf, -3e38, 1e30):
            bad = np.array(rows)
            bad[0] = poison
            assert np.isfinite(run(bad)).all(), poison


def test_no_bucket_is_to_be_trusted():
    """Which of them has the trusted worker, and who else, is drawn."""
    for rule in (byzjax.monna(1), byzjax.nnm(byzjax.monna(1), 1)):
        with pytest.raises(
            ValueError, match=r"^bucketing needs a rule that trusts no r"
        ):
            byzjax.bucketing(rule, 2)

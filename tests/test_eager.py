"""Without jit a rule is as quick as with it, and nothing else is different."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import eager
from tests import rules

ROWS = np.random.default_rng(4).normal(size=(7, 6)).astype(np.float32)
RULE = byzjax.ctma(byzjax.median(), 2)


@contextlib.contextmanager
def compilations(caplog):
    """A list that gets the name of every program that is compiled."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        names = []
        yield names
        messages = [record.getMessage() for record in caplog.records]
        names += [text for text in messages if text.startswith("Finished XLA")]
    caplog.clear()


@pytest.fixture
def calls(monkeypatch):
    """A list that gets what every program is asked for."""
    asked = []
    of = eager.SHARED.of

    def listed(what, function):
        asked.append(what)
        return of(what, function)

    monkeypatch.setattr(eager.SHARED, "of", listed)
    return asked


MADE = {
    "krum": lambda: byzjax.krum(2),
    "ctma": lambda: byzjax.ctma(byzjax.median(), 2),
    "with_key": lambda: byzjax.with_key(byzjax.bucketing(byzjax.median(), 2), KEY),
    "stateful": lambda: byzjax.centered_clipping(2.0),
}
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", MADE)
def test_the_next_call_compiles_nothing_and_is_jits(name, caplog):
    rule, rows = MADE[name](), jnp.asarray(ROWS)
    first = rule.aggregate(rows)
    fresh = rule.init(rows[0])
    _, state = rule.update(rows, fresh)
    with compilations(caplog) as compiled:
        second = rule.aggregate(rows)
        again = MADE[name]().aggregate(ROWS)  # Another of the same, and NumPy's rows.
        _, after = rule.update(rows, state)
    assert not compiled
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, jax.jit(rule.aggregate)(rows))
    wanted = jax.jit(rule.update)(rows, state)[1]
    for got, want in zip(jax.tree.leaves(after), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        np.testing.assert_array_equal(got, want)


def test_the_listing_sees_what_is_compiled(caplog):
    with compilations(caplog) as compiled:
        jax.jit(lambda x: x * 3)(jnp.ones(11))
    assert compiled


def test_an_attack_is_a_program_for_each_number(calls):
    attack = byzjax.attacks.alie()
    rows = jnp.asarray(ROWS)
    for f in (1, 2):
        sent = attack.apply(rows, num_byzantine=f)
        wanted = jax.jit(attack.apply, static_argnames="num_byzantine")
        np.testing.assert_array_equal(sent, wanted(rows, num_byzantine=f))
    assert len(set(calls)) == 2


def test_rules_that_differ_share_nothing(calls):
    rows = jnp.asarray(ROWS)
    radius = jnp.asarray(0.1)
    for rule in (
        byzjax.trimmed_mean(1),
        byzjax.trimmed_mean(2),
        byzjax.clipping(byzjax.mean(), 0.1),
        byzjax.clipping(byzjax.mean(), 0.2),
        byzjax.clipping(byzjax.mean(), radius),
        byzjax.clipping(byzjax.mean(), 2 * radius),
    ):
        got = rule.aggregate(rows)
        np.testing.assert_array_equal(got, jax.jit(rule.aggregate)(rows))
    assert len(set(calls)) == len(calls) == 6


def test_inside_of_a_trace_nothing_is_asked(calls, monkeypatch):
    rows = jnp.asarray(ROWS)

    keyed = byzjax.with_key(byzjax.mean(), jax.random.key(3))

    def programs():
        # Of rows that are traced, and of known ones in a trace.
        yield str(jax.make_jaxpr(lambda: keyed.aggregate(rows))())
        yield str(jax.make_jaxpr(RULE.aggregate)(rows))
        yield str(jax.make_jaxpr(lambda: RULE.aggregate(rows))())
        yield str(jax.make_jaxpr(jax.grad(lambda x: RULE.aggregate(x)[0]))(rows))

    found = list(programs())
    assert not calls
    monkeypatch.setattr(eager, "may_run", lambda *_: False)
    assert found == list(programs())


def test_rules_made_of_traced_numbers_are_run_as_they_are(calls):
    rows = jnp.asarray(ROWS)

    def clipped(radius):
        return byzjax.centered_clipping(radius).aggregate(rows)

    radii = jnp.asarray([0.5, 2.0])
    got = jax.vmap(clipped)(radii)
    assert not calls
    np.testing.assert_allclose(got[1], clipped(radii[1]), rtol=1e-5)


@pytest.mark.parametrize("switch", ["jax_disable_jit", "jax_debug_nans"])
def test_who_looks_at_operations_sees_them(switch, calls):
    with getattr(jax, switch.removeprefix("jax_"))(True):
        out = byzjax.median().aggregate(ROWS)
    assert not calls
    np.testing.assert_array_equal(out, np.median(ROWS, axis=0))


def test_ones_own_rules_are_run_as_they_are(calls):
    turns = []

    def update(updates, state, params=None, **extra):
        turns.append(float(updates[0, 0]))  # What no program could do.
        return updates[0], state

    own = byzjax.Aggregator(byzjax.median().init, update)
    for rule in (own, byzjax.with_key(own, KEY)):
        rule.aggregate(ROWS)
        rule.aggregate(jnp.asarray(ROWS) + 1)
    assert len(turns) == 4 and turns[1] == turns[0] + 1 and not calls


WEIGHTS = {
    "list": [1, 2, 3, 4, 5, 6, 7],
    "wide": np.array([1, 2, 3, 4, 5, 6, 2**40]),
    "float64": np.array([1, 2, 3, 4, 5, 6, 1e300]),
    "bools": np.array([True] * 6 + [False]),
    "list of bools": [True] * 6 + [False],
    "equal": [4] * 7,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_python_and_numpy(name, calls, caplog):
    weights = WEIGHTS[name]
    rule, rows = byzjax.mean(), jnp.asarray(ROWS)
    out = rule.aggregate(rows, weights=weights)
    with compilations(caplog) as compiled:
        np.testing.assert_array_equal(out, rule.aggregate(rows, weights=weights))
    assert calls and not compiled
    given = np.asarray(weights, np.float64)
    given = np.where(given < np.finfo(np.float32).max, given, 0)
    np.testing.assert_allclose(out, np.average(ROWS, axis=0, weights=given), rtol=1e-5)
    if name == "equal":
        np.testing.assert_array_equal(out, rule.aggregate(rows))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"weights": [1, 2]}, ValueError, r"^mean needs weights of shape"),
        ({"weights": ["a"] * 7}, TypeError, r"needs weights that are real"),
        ({"weights": 1.0}, ValueError, r"^mean needs weights of shape"),
        ({"weight": 1.0}, TypeError, r"^aggregate needs keywords"),
    ],
)
def test_errors_are_the_rules_own(arguments, error, match):
    for _ in range(2):
        with pytest.raises(error, match=match):
            byzjax.mean().aggregate(ROWS, **arguments)
    with pytest.raises(ValueError, match=r"^bucketing needs a key"):
        byzjax.bucketing(byzjax.median(), 2).aggregate(ROWS)


def test_extra_arguments_of_numpy(calls):
    rule, reference = byzjax.fltrust(), np.float64(ROWS[0])
    out = rule.aggregate(np.float64(ROWS), reference=reference)
    assert len(calls) == 1 and out.dtype == jnp.float32
    with pytest.raises(TypeError, match=r"^fltrust needs real floating-point leaves"):
        rule.aggregate(ROWS, reference=np.arange(6))


def test_what_a_chain_passes_on_hinders_nothing(calls):
    out, _ = RULE.update(ROWS, RULE.init(ROWS[0]), grad_fn=len, value=0.5)
    assert not calls
    np.testing.assert_allclose(out, RULE.aggregate(ROWS), rtol=1e-6)


def test_settings_make_programs_of_their_own():
    with jax.enable_x64(True):
        assert byzjax.median().aggregate(np.float64(ROWS)).dtype == jnp.float64
    assert byzjax.median().aggregate(np.float64(ROWS)).dtype == jnp.float32


def test_no_more_programs_than_so_many_are_kept():
    programs = eager.Programs(most=2)
    one, two, three = (lambda x, k=k: x + k for k in range(3))
    kept = programs.of("one", one)
    programs.of("two", two)
    assert programs.of("one", two) is kept
    programs.of("three", three)
    assert len(programs) == 2
    assert programs.of("one", two) is kept
    assert programs.of("two", three)(1) == 3


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_every_rule_of_the_table_may_be_compiled(rule):
    made = rule.make(11, 1)
    assert made.named("update") is not None
    assert made.named("update") == rule.make(11, 1).named("update")
    assert made.named("update") != made.named("aggregate")


def test_an_attack_made_by_a_factory_is_compiled_once(caplog):
    """`optimized(ipm, …)` is told by the factory's name, as no lambda could be."""
    attack = byzjax.attacks.optimized(byzjax.attacks.ipm, byzjax.median())
    again = byzjax.attacks.optimized(byzjax.attacks.ipm, byzjax.median())
    first = attack.apply(jnp.asarray(ROWS), num_byzantine=2)
    with compilations(caplog) as compiled:
        for other in (attack, again):
            out = other.apply(jnp.asarray(ROWS), num_byzantine=2)
            np.testing.assert_array_equal(out, first)
    assert not compiled


def test_what_is_written_into_an_argument_later_changes_no_rule():
    rows = 10 * jax.random.normal(jax.random.key(0), (10, 7))
    radius = np.array(2.0)
    first = byzjax.clipping(byzjax.mean(), radius)
    radius[...] = 1.0
    assert repr(first) == "clipping(mean(), 2.0)"
    second = byzjax.clipping(byzjax.mean(), np.array(1.0))
    for rule in (first, second):
        np.testing.assert_array_equal(
            rule.aggregate(rows), jax.jit(rule.aggregate)(rows)
        )

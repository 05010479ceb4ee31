"""Bad input: a ValueError or TypeError that names the requirement and the value."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import rules
from tests.rules import RULES

ROWS = jnp.ones((11, 4))
every = pytest.mark.parametrize("rule", [pytest.param(r, id=r.name) for r in RULES])


def refused(error, match, function, *args, **kwargs):
    """At trace time, so under jit as well."""
    with pytest.raises(error, match=match):
        jax.eval_shape(lambda: function(*args, **kwargs))


# --- the stack ------------------------------------------------------------------------

BAD_STACKS = {
    "integers": (TypeError, r"floating-point leaves, got int32", ROWS.astype(int)),
    "complex": (
        TypeError,
        r"floating-point leaves, got complex64",
        ROWS.astype(jnp.complex64),
    ),
    "booleans": (TypeError, r"floating-point leaves, got bool", ROWS > 0),
    "one integer leaf": (
        TypeError,
        r"got int32 at \['b'\]",
        {"a": ROWS, "b": ROWS.astype(jnp.int32)},
    ),
    "different numbers": (
        ValueError,
        r"same number of workers in every leaf, got 11 at \['a'\] and 10 at \['b'\]",
        {"a": ROWS, "b": ROWS[:10]},
    ),
    "no workers": (ValueError, r"at least one worker, got num_workers=0", ROWS[:0]),
    "an empty tree": (ValueError, r"at least one array, got the tree \{\}", {}),
    "None": (ValueError, r"at least one array, got the tree None", None),
    "a scalar": (ValueError, r"worker axis .* got a scalar at the array", ROWS[0, 0]),
    "a scalar leaf": (
        ValueError,
        r"worker axis .* got a scalar at \['b'\]",
        {"a": ROWS, "b": ROWS[0, 0]},
    ),
    "a number": (TypeError, r"arrays as leaves, got float", 1.5),
    "a list of numbers": (TypeError, r"arrays as leaves, got float at \[0\]", [1.5]),
}


@every
@pytest.mark.parametrize("bad", BAD_STACKS)
def test_bad_stacks_are_refused_by_every_rule(rule, bad):
    error, match, updates = BAD_STACKS[bad]
    aggregator = rule.make(11, max(0, min(1, rule.most(11))))
    key = {"key": jax.random.key(0)} if rule.random else {}
    extra = rule.extra(ROWS)
    refused(error, match, aggregator.aggregate, updates, **key, **extra)
    if not rule.stateful:  # A state's init is given sound parameters.
        state = aggregator.init(ROWS[0])
        refused(error, match, aggregator.update, updates, state, **key, **extra)


@every
def test_numpy_stacks_are_welcome(rule):
    rows = np.random.default_rng(0).normal(size=(11, 12)).astype(np.float32)
    aggregator = rule.make(11, max(0, min(1, rule.most(11))))
    arguments = rules.arguments(rule, rows)
    out = jax.eval_shape(lambda: aggregator.aggregate(rows, **arguments))
    assert (out.shape, out.dtype) == ((12,), jnp.float32)


# --- the number of Byzantine workers --------------------------------------------------

TAKE_F = {
    "trimmed_mean": byzjax.trimmed_mean,
    "krum": byzjax.krum,
    "multi_krum": byzjax.multi_krum,
    "ctma": lambda num_byzantine: byzjax.ctma(byzjax.median(), num_byzantine),
    "nnm": lambda num_byzantine: byzjax.nnm(byzjax.median(), num_byzantine),
}


@pytest.mark.parametrize("name", TAKE_F)
def test_num_byzantine_is_checked_by_the_factory(name):
    make = TAKE_F[name]
    with pytest.raises(ValueError, match=f"{name} needs num_byzantine >= 0, got .*=-1"):
        make(num_byzantine=-1)
    for bad in (1.0, "1", None, True, jnp.int32(1)):
        match = f"{name} needs num_byzantine to be a static int, got num_byzantine="
        with pytest.raises(TypeError, match=match):
            make(num_byzantine=bad)
    make(num_byzantine=np.int64(1))


@pytest.mark.parametrize("name", TAKE_F)
def test_too_large_an_f_is_named_with_the_number_of_workers(name):
    add = 3 if "krum" in name else 1
    match = re.escape(
        f"{name} needs num_workers >= 2 * num_byzantine + {add}, got num_workers=10 "
        "and num_byzantine=5"
    )
    refused(ValueError, f"^{match}\\b", TAKE_F[name](5).aggregate, ROWS[:10])


@pytest.mark.parametrize("m", [1, 2])
def test_few_workers(m):
    """One or two workers: served where the definition allows it, refused by name."""
    rows = ROWS[:m]
    for rule in (
        byzjax.mean(),
        byzjax.median(),
        byzjax.geometric_median(),
        byzjax.trimmed_mean(0),
        byzjax.ctma(byzjax.median(), 0),
        byzjax.nnm(byzjax.geometric_median(), 0),
        byzjax.centered_clipping(10.0),
        byzjax.bucketing(byzjax.median(), 1),
    ):
        got = rule.aggregate(rows, key=jax.random.key(0))
        np.testing.assert_allclose(got, np.ones(4), rtol=1e-6)
    refused(ValueError, f"got num_workers={m} and", byzjax.krum(0).aggregate, rows)
    refused(ValueError, f"got num_workers={m}", byzjax.trimmed_mean(1).aggregate, rows)


def test_inner_rules_check_the_rows_that_they_see():
    rule = byzjax.bucketing(byzjax.krum(2), bucket_size=2)
    key = jax.random.key(0)
    match = r"krum needs num_workers >= .* got num_workers=6 and num_byzantine=2"
    refused(ValueError, match, rule.aggregate, ROWS, key=key)
    rule = byzjax.ctma(byzjax.nnm(byzjax.trimmed_mean(6), 2), 2)
    match = r"trimmed_mean needs num_workers >= .* num_byzantine=6"
    refused(ValueError, match, rule.aggregate, ROWS)


# --- hyper-parameters -----------------------------------------------------------------


@pytest.mark.parametrize(
    "make, error, match",
    [
        (
            lambda: byzjax.median(even="upper"),
            ValueError,
            r"""median needs even to be "midpoint" or "lower", got even='upper'""",
        ),
        (
            lambda: byzjax.geometric_median(smoothing=-0.1),
            ValueError,
            r"geometric_median needs a finite smoothing >= 0, got smoothing=-0\.1",
        ),
        (
            lambda: byzjax.geometric_median(smoothing=np.nan),
            ValueError,
            r"finite smoothing >= 0, got smoothing=nan",
        ),
        (
            lambda: byzjax.geometric_median(num_iterations=0),
            ValueError,
            r"geometric_median needs num_iterations >= 1, got num_iterations=0",
        ),
        (
            lambda: byzjax.geometric_median(num_iterations=2.5),
            TypeError,
            r"geometric_median needs num_iterations to be a static int, got .*=2\.5",
        ),
        (
            lambda: byzjax.geometric_median(init="ones"),
            ValueError,
            r"""needs init to be "zeros", "mean" or "median", got init='ones'""",
        ),
        (
            lambda: byzjax.geometric_median(tolerance=-1.0),
            ValueError,
            r"finite tolerance >= 0, got tolerance=-1\.0",
        ),
        (
            lambda: byzjax.krum(1, num_neighbors=0),
            ValueError,
            r"krum needs num_neighbors >= 1, got num_neighbors=0",
        ),
        (
            lambda: byzjax.krum(1, squared="thrice"),
            ValueError,
            r"""krum needs squared to be .* got squared='thrice'""",
        ),
        (
            lambda: byzjax.multi_krum(1, num_selected=0),
            ValueError,
            r"multi_krum needs num_selected >= 1, got num_selected=0",
        ),
        (
            lambda: byzjax.centered_clipping(-1.0),
            ValueError,
            r"centered_clipping needs a finite radius > 0, got radius=-1\.0",
        ),
        (
            lambda: byzjax.centered_clipping(0.0),
            ValueError,
            r"finite radius > 0, got radius=0\.0",
        ),
        (
            lambda: byzjax.centered_clipping(np.inf),
            ValueError,
            r"finite radius > 0, got radius=inf",
        ),
        (
            lambda: byzjax.centered_clipping("far"),  # type: ignore[arg-type]
            TypeError,
            r"centered_clipping needs radius to be a number, got 'far'",
        ),
        (
            lambda: byzjax.centered_clipping(1.0, num_iterations=0),
            ValueError,
            r"centered_clipping needs num_iterations >= 1, got num_iterations=0",
        ),
        (
            lambda: byzjax.bucketing(byzjax.median(), bucket_size=0),
            ValueError,
            r"bucketing needs bucket_size >= 1, got bucket_size=0",
        ),
        (
            lambda: byzjax.bucketing(byzjax.median(), bucket_size=1.5),
            TypeError,
            r"bucketing needs bucket_size to be a static int, got bucket_size=1\.5",
        ),
    ],
)
def test_hyper_parameters_are_checked_by_the_factory(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "rule, match",
    [
        (
            byzjax.krum(1, num_neighbors=11),
            r"<= num_workers - num_byz.*=11, num_workers=11 a",
        ),
        (byzjax.multi_krum(1, num_selected=12), r"num_selected <= num_workers, .*=12"),
        (byzjax.bucketing(byzjax.median(), 12), r"bucket_size <= num_workers, .*=12"),
    ],
)
def test_hyper_parameters_are_checked_against_the_number_of_workers(rule, match):
    refused(ValueError, match, rule.aggregate, ROWS, key=jax.random.key(0))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda base: byzjax.ctma(base, 1),
        lambda base: byzjax.nnm(base, 1),
        lambda base: byzjax.bucketing(base, 2),
    ],
    ids=["ctma", "nnm", "bucketing"],
)
def test_meta_rules_want_an_aggregator(wrap):
    for bad in (byzjax.median, "median", None, object()):
        with pytest.raises(TypeError, match=r"needs an aggregator such as .*, got "):
            wrap(bad)


# --- keys -----------------------------------------------------------------------------

RANDOM = [pytest.param(r, id=r.name) for r in RULES if r.random]


@pytest.mark.parametrize("rule", RANDOM)
def test_a_missing_key_is_asked_for(rule):
    aggregator = rule.make(11, max(0, min(1, rule.most(11))))
    match = r"^\w+ needs a key, got key=None: pass key=jax.random.key.*with_key"
    refused(ValueError, match, aggregator.aggregate, ROWS)
    refused(ValueError, match, byzjax.ctma(aggregator, 1).aggregate, ROWS)
    refused(ValueError, match, byzjax.nnm(aggregator, 1).aggregate, ROWS)


@pytest.mark.parametrize("rule", RANDOM)
def test_a_key_that_is_none_is_refused(rule):
    aggregator = rule.make(11, max(0, min(1, rule.most(11))))
    for bad in (0, 1.0, "key", jnp.zeros(2)):
        match = r"^\w+ needs a key made by jax.random.key, got "
        refused(TypeError, match, aggregator.aggregate, ROWS, key=bad)
    with pytest.raises(TypeError, match=r"with_key needs a key made by"):
        byzjax.with_key(aggregator, 0)  # type: ignore[arg-type]


def test_old_style_keys_are_keys():
    rule = byzjax.bucketing(byzjax.median(), 2)
    jax.eval_shape(lambda: rule.aggregate(ROWS, key=jax.random.PRNGKey(0)))


# --- attacks and worker transforms outside their place --------------------------------


def test_an_attack_wants_to_know_how_many():
    attack = byzjax.attacks.sign_flip()
    with pytest.raises(ValueError, match=r"an attack needs num_byzantine: give it"):
        attack.apply(ROWS)
    with pytest.raises(ValueError, match=r"num_byzantine < num_workers, got .*=11 and"):
        attack.apply(ROWS, num_byzantine=11)
    with pytest.raises(ValueError, match=r"num_byzantine >= 0, got num_byzantine=-1"):
        attack.apply(ROWS, num_byzantine=-1)


def test_messages_of_another_shape_are_refused():
    """Of as many numbers, too, which could be stacked as flat rows."""

    def forge(honest, own, state, **extra):
        return own.mT, state

    attack = byzjax.Attack(forge, num_byzantine=1)
    match = re.escape("rows need one shape, got (4, 2, 3) and (1, 3, 2)")
    refused(ValueError, match, attack.apply, jnp.ones((5, 2, 3)))


def test_storm_outside_the_trainer_says_what_it_needs():
    storm = byzjax.storm()
    state = storm.init(ROWS[0])
    with pytest.raises((TypeError, ValueError), match="grad_fn"):
        storm.update(ROWS[0], state, ROWS[0])

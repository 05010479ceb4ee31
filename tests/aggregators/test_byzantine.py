"""What Byzantine rows and bad weights can do to every row of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax.testing import HUGE
from tests import rules
from tests.rules import Rule
from tests.stacks import (
    D,
    M,
    assert_near,
    clustered,
    compiled,
    gaussian,
    poisons,
    proof,
    run,
    size,
    some_f,
    where,
    with_rows,
)

PLACES = {
    "back": lambda f: np.arange(M - f, M),
    "front": lambda f: np.arange(f),
    "spread": lambda f: np.sort(np.random.default_rng(f).permutation(M)[:f]),
}


@proof
@pytest.mark.parametrize("place", PLACES)
def test_poisoned_rows_do_no_harm(rule, place):
    assert_unharmed(rule, some_f(rule), place)


@pytest.mark.slow
@pytest.mark.parametrize("rule", where(lambda r: r.poison_proof))
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


@pytest.mark.parametrize("rule", where(lambda r: r.poison_proof))
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
    assert not np.isfinite(run(rule, with_rows(gaussian(), -1, np.nan), 0)).all()


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


@pytest.mark.parametrize("rule", where(lambda r: r.kappa is not None))
@pytest.mark.parametrize("most", [False, True], ids=["two", "most"])
def test_error_is_within_the_proven_constant(rule, most):
    f = rule.most(M) if most else some_f(rule)
    kinds = [gaussian(M - f, seed=61), clustered(62)[f:]]
    kinds.append(np.tile(gaussian(1, seed=63), (M - f, 1)))  # No spread, no error.
    # One of them far out.
    kinds.append(with_rows(np.zeros((M - f, D), np.float32), 0, 1))
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


@pytest.mark.parametrize("rule", where(lambda r: r.weighted))
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
        got = run(rule, with_rows(rows, [0, 7], poison), weights=weights)
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

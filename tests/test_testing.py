"""`check_rule` passes what is right, and names what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import rules, testing

M, F = 7, 2
KEY = jax.random.key(0)


def check(rule, **claims):
    testing.check_rule(rule, num_workers=M, num_byzantine=F, **claims)


RIGHT = {
    "median": (byzjax.median(), {}),
    "ctma": (byzjax.ctma(byzjax.trimmed_mean(F), F), dict(absent=True)),
    "krum": (byzjax.krum(F), {}),
    "mean": (byzjax.mean(), dict(poison_proof=False)),
    "bucketing": (
        byzjax.bucketing(byzjax.krum(0), 2),
        dict(permutation=False, hull=False, poison_proof=False, key=KEY),
    ),
    "centered_clipping": (
        byzjax.centered_clipping(2.0),
        dict(translation=False, scaling=False, hull=False),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_rules_of_the_library_pass(name):
    rule, claims = RIGHT[name]
    check(rule, **claims)


def made(update, init=optax.init_empty_state):
    return byzjax.Aggregator(init, update)


def of_median(change):
    """The median, changed."""

    def update(updates, state, params=None, **extra):
        return change(byzjax.median().update(updates, state)[0], updates), state

    return made(update)


calls = []


def a_second_time(out, updates):
    calls.append(0)
    return out + len(calls) % 2


WRONG = {
    "jit is eager": (of_median(a_second_time), {}),
    "dtypes are kept": (
        of_median(lambda out, _: jax.tree.map(lambda x: x.astype(jnp.float32), out)),
        {},
    ),
    "structure and shapes": (of_median(lambda out, _: jax.tree.leaves(out)[0]), {}),
    "permutation": (of_median(lambda _, x: jax.tree.map(lambda x: x[0], x)), {}),
    "translation": (of_median(lambda out, _: jax.tree.map(jnp.zeros_like, out)), {}),
    "scaling": (of_median(lambda out, _: jax.tree.map(jnp.sign, out)), {}),
    "poison_proof": (byzjax.mean(), {}),
    "hull": (
        rules.coordinatewise("far", lambda x: rules.middle(x) + 9),
        dict(translation=False, scaling=False, permutation=False),
    ),
}


def of_all_workers(geometry):
    """A mean that counts workers who are not there."""
    return jnp.where(geometry.finite, 1 / geometry.num_workers, 0)


def with_the_first(geometry):
    """A mean whose first row counts, absent or not."""
    present = geometry.present
    counts = jnp.ones(geometry.num_workers) if present is None else present
    shares = counts.astype(geometry.norms.dtype).at[0].set(1)
    return shares / jnp.sum(shares)


def test_a_row_that_counts_though_absent():
    rule = rules.geometric("first", with_the_first, absent=True)
    claims = dict(permutation=False, translation=False, scaling=False)
    with pytest.raises(AssertionError, match=r"^absent: "):
        check(rule, hull=False, poison_proof=False, absent=True, **claims)


WRONG["absent"] = (
    rules.geometric("late", of_all_workers, absent=True),
    dict(hull=False, poison_proof=False, absent=True),
)
WRONG["translation"][1].update(permutation=False)
WRONG["scaling"][1].update(translation=False)


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_hold_is_named(name):
    rule, claims = WRONG[name]
    with pytest.raises(AssertionError, match=f"^{name}: "):
        check(rule, **claims)


def test_a_state_that_changes_its_type():
    def update(updates, state, params=None, **extra):
        return byzjax.median().update(updates, optax.EmptyState())[0], jnp.float32(1)

    with pytest.raises(AssertionError, match=r"^a state keeps its types: "):
        check(made(update, lambda params: jnp.int32(0)))


def test_what_is_no_rule():
    with pytest.raises(TypeError, match="check_rule needs an aggregator"):
        check(byzjax.median)
    with pytest.raises(ValueError, match=r"num_byzantine < num_workers, got .*=3 and"):
        testing.check_rule(byzjax.median(), num_workers=3, num_byzantine=3)


# --- rules made of `byzjax.rules` -----------------------------------------------------


def midrange(num_byzantine):
    """The middle of the range that is left when f are cut at each end."""

    def reduce(rows):
        low, high = rules.order_statistics(
            rows, [num_byzantine, rows.shape[0] - num_byzantine - 1]
        )
        return 0.5 * low + 0.5 * high

    return rules.coordinatewise("midrange", reduce)


def nearest(num_byzantine):
    """The row nearest to m - f of the others."""

    def weigh(geometry):
        m = geometry.num_workers
        ordered = jnp.sort(geometry.squared_distances, axis=1)[:, : m - num_byzantine]
        near = rules.mark_nearest(jnp.sum(ordered, axis=1), 1)
        return rules.normalized(near.astype(ordered.dtype))

    return rules.geometric("nearest", weigh)


def halved(rule):
    return rules.prescaled(
        "halved", rule, lambda g: jnp.where(g.finite, 0.5, 0).astype(g.norms.dtype)
    )


def neighbours(rule):
    """Each row and the next in a ring."""

    def matrix(geometry):
        m = geometry.num_workers
        return jnp.asarray((np.eye(m) + np.roll(np.eye(m), 1, axis=1)) / 2, jnp.float32)

    return rules.premixed("neighbours", rule, matrix)


def test_rules_of_ones_own():
    check(midrange(F))
    check(nearest(F))
    rows = jnp.asarray(testing.gaussian(M, 3))
    np.testing.assert_allclose(byzjax.influence(midrange(F), rows).sum(), 1, rtol=1e-5)


@pytest.mark.slow
def test_meta_rules_over_and_of_ones_own():
    check(byzjax.ctma(midrange(F), F))
    check(byzjax.nnm(nearest(F), F))
    check(halved(byzjax.median()), translation=False, hull=False)
    check(
        neighbours(byzjax.median()), permutation=False, hull=False, poison_proof=False
    )


def test_what_is_public():
    for name in rules.__all__:
        assert getattr(rules, name).__doc__


def test_absence_cannot_be_seen_where_nobody_can_be_spared():
    def minority(m):
        if m < 5:
            raise ValueError("few")

    deaf = rules.coordinatewise(
        "deaf", lambda rows, present=None: rules.middle(rows), check=minority
    )
    with pytest.raises(ValueError, match="num_workers of which the rule can spare one"):
        testing.check_rule(deaf, num_workers=5, num_byzantine=2, absent=True)
    with pytest.raises(AssertionError, match="absent"):
        testing.check_rule(deaf, num_workers=9, num_byzantine=2, absent=True)


def test_what_a_rule_is_given_goes_with_the_rows():
    weights = jnp.linspace(1, 1.2, 9)
    testing.check_rule(
        byzjax.median(), num_workers=9, num_byzantine=2, absent=True, weights=weights
    )
    testing.check_rule(
        byzjax.fltrust(),
        num_workers=9,
        num_byzantine=2,
        permutation=False,
        translation=False,
        hull=False,
        reference=lambda stack: jax.tree.map(lambda x: x[4], stack),
    )

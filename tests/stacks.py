"""The rules of the table compiled once, and the stacks that tests give them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import testing
from tests import reference as ref
from tests import rules
from tests.compiling import AS_USERS_DO
from tests.rules import RULES, Rule

M, D = 11, 12  # The shape that nearly all tests share, so each rule compiles it once.


def _marks(rule: Rule) -> list:
    """One process runs all that concerns a row; conventions of another row wait."""
    group = pytest.mark.xdist_group(rule.name)
    return [group, pytest.mark.slow] if rule.variant else [group]


def where(condition) -> list:
    """Rows of the table as parameters."""
    return [
        pytest.param(rule, id=rule.name, marks=_marks(rule))
        for rule in filter(condition, RULES)
    ]


def where_each(values, condition) -> list:
    """The same for pairs of a row of the table and one of some values."""
    return [
        pytest.param(rule, value, id=f"{value}-{rule.name}", marks=_marks(rule))
        for value in values
        for rule in RULES
        if condition(rule, value)
    ]


# Conventions that take a compilation of their own are those of a rule's every variant.
compiles = pytest.mark.parametrize("rule", where(lambda r: not r.variant))
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
    return testing.gaussian(m, d, seed)


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


# --- stacks ---------------------------------------------------------------------------


def clustered(seed):
    """Honest spread 1e-3 of the norm: where a plain Gram matrix cancels."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=D) + 1e-3 * rng.normal(size=(M, D))).astype(np.float32)


def with_rows(rows, at, value):
    rows = np.array(rows)
    rows[at] = value
    return rows


DATA = {
    "gaussian": gaussian(seed=1),
    "clustered": clustered(2),
    "large": gaussian(seed=3) * np.float32(1e6),
    "small": gaussian(seed=4) * np.float32(1e-6),
    "identical": np.tile(gaussian(1, seed=5), (M, 1)),
    "zero": np.zeros((M, D), np.float32),
    "most identical": with_rows(gaussian(seed=6), slice(3, 10), gaussian(1, seed=6)[0]),
    "one zero row": with_rows(gaussian(seed=7), 4, 0),
    "one row far out": with_rows(gaussian(seed=8), 0, 1e6),
    "two far out": with_rows(gaussian(seed=9), [3, 8], [[1e12], [-1e9]]),
    "sparse": gaussian(seed=10) * (np.random.default_rng(0).random((M, D)) < 0.3),
}


def poisons(f: int):
    """Fillings [f, D] that no honest worker sends, by name."""
    return testing.poisons(f, D)

"""Derivatives of every row of the table: finite everywhere, and right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import rules
from tests.rules import RULES, Rule
from tests.stacks import (
    DATA,
    M,
    compiled,
    compiles,
    every,
    gaussian,
    poisons,
    some_f,
    with_rows,
)


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
        yield name, with_rows(gaussian(seed=82), slice(M - f, M), poison)
        yield name + " in front", with_rows(gaussian(seed=82), slice(f), poison)


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


@pytest.mark.slow
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

"""The geometric median, which is found by iteration, where that is hard."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference as ref
from tests.stacks import D, gaussian


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

"""Attacks on columns of eight host devices, and what users write themselves."""

import numpy as np
import pytest

from tests.attacks_table import TABLE
from tests.sharding import processes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharded attacks")]
OTHERS = [
    "by mean",
    "by loop",
    "smallest",
    "mixed median()",
    "mixed krum(2)",
    "mixed dnc(2)",
    "mixed flame()",
    "two axes ctma(median(), 2)",
    "two axes dnc(2)",
    "two axes flame()",
    "three axes",
    "workers on two axes",
    "two axes gaussian",
    "two axes small_perturbation",
    "two axes mimic warmup",
    "two axes rop",
    "weights",
    "steps centered_clipping(1.0)",
    "steps foolsgold(num_workers=11)",
    "steps clipped_clustering()",
    "steps with_key(bucketing(median(), 2), jax.random.key(5))",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return processes.found_by("all_attacks", tmp_path_factory.mktemp("attacks"))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_an_attack_sends_what_it_sends_without_a_layout(found, row):
    entry = found[row.name]
    for alone, got in zip(entry["alone"], entry["got"], strict=True):
        alone, got = np.asarray(alone, np.float64), np.asarray(got, np.float64)
        assert alone.shape == got.shape
        size = np.max(np.abs(alone[np.isfinite(alone)]), initial=1)
        size = 1 if row.name == "random_garbage" else min(size, 100)
        np.testing.assert_allclose(got, alone, rtol=2e-5, atol=2e-5 * size)


@pytest.mark.parametrize("name", OTHERS)
def test_a_rule_gives_what_it_gives_without_a_layout(found, name):
    alone, got = found[name]["alone"], found[name]["got"]
    # Rounded once more in leaves of fewer bits.
    rtol = 1e-2 if name.startswith("mixed") else 2e-5
    np.testing.assert_allclose(got, alone, rtol=rtol, atol=2e-5)


def test_nothing_else_was_tried(found):
    assert set(found) == {row.name for row in TABLE} | set(OTHERS)

"""Strict numerics, deterministic draws, and no accelerator unless one is asked for."""

import os

from tests.compiling import QUICK_FLAGS

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import gc

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Tracing makes many objects that stay: looking through them less often saves a twelfth
# of the time of tests.
gc.set_threshold(20_000, 20, 50)

# The same examples on every run, so that a change is blamed for its own failures only;
# `pytest --hypothesis-profile explore` looks for new ones. No deadlines: the first
# example of a test compiles.
COMPILES = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
hypothesis.settings.register_profile(
    "default",
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=COMPILES,
    print_blob=True,
)
hypothesis.settings.register_profile(
    "explore",
    max_examples=500,
    derandomize=False,
    deadline=None,
    suppress_health_check=COMPILES,
    print_blob=True,
)
hypothesis.settings.load_profile("default")


@pytest.fixture
def standard_promotion():
    """JAX's own promotion of dtypes, for tests that run Adam or other people's code."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Makes an error of a file of tests that cannot be imported.

    What lets the package's modules need extras that are not there would skip it.
    """
    report = yield
    unable = report.skipped and "unable to import module" in str(report.longrepr)
    if unable and collector.path.name.startswith("test_"):
        report.outcome, report.longrepr = "failed", f"{collector.path}: not importable"
    return report


def group(item):
    """Tests that share compiled programs: an xdist group, else a file."""
    marker = item.get_closest_marker("xdist_group")
    return marker.args[0] if marker else item.nodeid.partition("::")[0]


def pytest_collection_modifyitems(items):
    """Runs each group in one go, with or without xdist."""
    first = {}
    for position, item in enumerate(items):
        first.setdefault(group(item), position)
    items.sort(key=lambda item: first[group(item)])


tests_since_clearing = 0


def pytest_runtest_teardown(item, nextitem):
    """Frees compiled programs now and then, between groups.

    Each holds dozens of memory maps, and a process that has as many as Linux allows
    (65 530) crashes at its next compilation.
    """
    global tests_since_clearing
    tests_since_clearing += 1
    if tests_since_clearing >= 250 and nextitem and group(nextitem) != group(item):
        jax.clear_caches()
        tests_since_clearing = 0

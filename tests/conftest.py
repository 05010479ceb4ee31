"""Strict numerics, deterministic draws, and no accelerator unless one is asked for."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

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

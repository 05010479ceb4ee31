"""Rows that agree but for a little, and their distances in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from byzjax.numerics import _columns, stacked

M, D = 11, 50
BLOCK = _columns._block_columns(M, _columns._CPU_BLOCK)

geometry = jax.jit(stacked.geometry)


def clustered(seed=0, m=M, d=D, spread=1e-3):
    """Honest rows late in training: spread 1e-3 of their norm."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=d) + spread * rng.normal(size=(m, d))).astype(np.float32)


def squared(rows, others=None):
    rows = np.asarray(rows, np.float64)
    others = rows if others is None else np.asarray(others, np.float64)
    return np.sum((rows[:, None] - others[None]) ** 2, axis=2)


def assert_distances(rows, honest, got=None, rtol=1e-4):
    """Distances among `honest` rows are right to `rtol`, whatever the others are."""
    got = geometry(jnp.asarray(rows)) if got is None else got
    at = np.ix_(honest, honest)
    exact = squared(rows[honest])
    # Of distances; their squares are what is stored.
    np.testing.assert_allclose(
        np.sqrt(np.float64(got.squared_distances[at])), np.sqrt(exact), rtol=rtol
    )
    norms = np.linalg.norm(np.float64(rows[honest]), axis=1)
    np.testing.assert_allclose(got.norms[honest], norms, rtol=1e-5)

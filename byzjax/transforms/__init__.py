"""Worker and server transformations: momentum, and the two halves of mu^2-SGD.

All of them are plain optax links and know nothing of aggregators: a trainer maps
`momentum` or `storm` over its workers with `jax.vmap` and gives the aggregate to
`anytime`. Alone on one machine, `mu2sgd` chains the two halves. In a chain,
`per_worker` maps any of them, or of optax's, over the rows in front of a rule.

Steps are counted t = 1, 2, ... as in the papers; a schedule receives optax's 0-based
count, t - 1. Arithmetic is done in float32 (float64 for float64 leaves) and every leaf
keeps its dtype.
"""

from byzjax.transforms.anytime import AnytimeState, anytime
from byzjax.transforms.momentum import MomentumState, momentum
from byzjax.transforms.mu2sgd import mu2sgd, mu2sgd_authors
from byzjax.transforms.per_worker import per_worker
from byzjax.transforms.schedules import authors_beta, authors_mixing
from byzjax.transforms.storm import StormState, storm

__all__ = [
    "AnytimeState",
    "MomentumState",
    "StormState",
    "anytime",
    "authors_beta",
    "authors_mixing",
    "momentum",
    "mu2sgd",
    "mu2sgd_authors",
    "per_worker",
    "storm",
]

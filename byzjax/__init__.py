"""Byzantine-robust training in JAX: aggregators, attacks, μ²-SGD."""

from byzjax.aggregators.clipping import CenteredClippingState, centered_clipping
from byzjax.aggregators.coordinatewise import mean, median, trimmed_mean
from byzjax.aggregators.geometric import geometric_median, krum, multi_krum
from byzjax.aggregators.meta import bucketing, ctma, nnm
from byzjax.base import Aggregator, Attack, with_key

__all__ = [
    "Aggregator",
    "Attack",
    "CenteredClippingState",
    "bucketing",
    "centered_clipping",
    "ctma",
    "geometric_median",
    "krum",
    "mean",
    "median",
    "multi_krum",
    "nnm",
    "trimmed_mean",
    "with_key",
]

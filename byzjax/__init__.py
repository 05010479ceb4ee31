"""Byzantine-robust training in JAX: aggregators, attacks, μ²-SGD."""

from byzjax import attacks, partition, poisoning
from byzjax.aggregators.bulyan import bulyan
from byzjax.aggregators.clipped import arc, clipping
from byzjax.aggregators.clipping import CenteredClippingState, centered_clipping
from byzjax.aggregators.clusters import (
    ClippedClusteringState,
    clipped_clustering,
    flame,
    signguard,
)
from byzjax.aggregators.coordinatewise import mean, median, trimmed_mean
from byzjax.aggregators.geometric import geometric_median, krum, multi_krum
from byzjax.aggregators.meta import bucketing, ctma, nnm
from byzjax.aggregators.nearest import aksel, cge, meamed, medoid, monna, phocas
from byzjax.aggregators.spectral import caf, dnc
from byzjax.aggregators.subsets import mda, smea
from byzjax.aggregators.trust import (
    FoolsGoldState,
    fltrust,
    foolsgold,
    sign_majority,
)
from byzjax.base import Aggregator, Attack, with_key
from byzjax.robustness import influence
from byzjax.training import Metrics, Trainer, TrainState, trainer
from byzjax.transforms import (
    anytime,
    authors_beta,
    authors_mixing,
    momentum,
    mu2sgd,
    mu2sgd_authors,
    storm,
)

__all__ = [
    "Aggregator",
    "Attack",
    "CenteredClippingState",
    "ClippedClusteringState",
    "FoolsGoldState",
    "Metrics",
    "TrainState",
    "Trainer",
    "aksel",
    "anytime",
    "arc",
    "attacks",
    "authors_beta",
    "authors_mixing",
    "bucketing",
    "bulyan",
    "caf",
    "centered_clipping",
    "cge",
    "clipped_clustering",
    "clipping",
    "ctma",
    "dnc",
    "flame",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "influence",
    "krum",
    "mda",
    "meamed",
    "mean",
    "median",
    "medoid",
    "momentum",
    "monna",
    "mu2sgd",
    "mu2sgd_authors",
    "multi_krum",
    "nnm",
    "partition",
    "phocas",
    "poisoning",
    "sign_majority",
    "signguard",
    "smea",
    "storm",
    "trainer",
    "trimmed_mean",
    "with_key",
]

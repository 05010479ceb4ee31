"""Byzantine-robust training in JAX: aggregators, attacks, μ²-SGD."""

import importlib.metadata
import sys

from byzjax import (
    attacks,
    layers,
    partition,
    poisoning,
    rules,
    sharding,
    written,
)
from byzjax.aggregators.aksel import aksel
from byzjax.aggregators.bulyan import bulyan
from byzjax.aggregators.caf import caf
from byzjax.aggregators.cap_weights import cap_weights
from byzjax.aggregators.centered_clipping import (
    CenteredClippingState,
    centered_clipping,
)
from byzjax.aggregators.cge import cge
from byzjax.aggregators.clipped_clustering import (
    ClippedClusteringState,
    clipped_clustering,
)
from byzjax.aggregators.dnc import dnc
from byzjax.aggregators.flame import flame
from byzjax.aggregators.fltrust import fltrust
from byzjax.aggregators.foolsgold import FoolsGoldState, foolsgold
from byzjax.aggregators.geometric_median import geometric_median
from byzjax.aggregators.krum import krum, multi_krum
from byzjax.aggregators.mda import mda
from byzjax.aggregators.meamed import meamed
from byzjax.aggregators.mean import mean
from byzjax.aggregators.median import median
from byzjax.aggregators.medoid import medoid
from byzjax.aggregators.meta.arc import arc
from byzjax.aggregators.meta.bucketing import bucketing
from byzjax.aggregators.meta.clipping import clipping
from byzjax.aggregators.meta.ctma import ctma
from byzjax.aggregators.meta.nnm import nnm
from byzjax.aggregators.meta.with_key import with_key
from byzjax.aggregators.monna import monna
from byzjax.aggregators.phocas import phocas
from byzjax.aggregators.sign_majority import sign_majority
from byzjax.aggregators.signguard import signguard
from byzjax.aggregators.smea import smea
from byzjax.aggregators.trimmed_mean import trimmed_mean
from byzjax.attack import Attack
from byzjax.base import Aggregator
from byzjax.guarding import (
    GuardReport,
    GuardState,
    WorkerReport,
    guard,
    guard_report,
)
from byzjax.robustness import influence
from byzjax.stacking import stack
from byzjax.training import Metrics, Trainer, TrainState, WorkerMetrics, trainer
from byzjax.transforms import (
    anytime,
    authors_beta,
    authors_mixing,
    momentum,
    mu2sgd,
    mu2sgd_authors,
    per_worker,
    storm,
)

__all__ = [
    "Aggregator",
    "Attack",
    "CenteredClippingState",
    "ClippedClusteringState",
    "FoolsGoldState",
    "GuardReport",
    "GuardState",
    "Metrics",
    "TrainState",
    "Trainer",
    "WorkerMetrics",
    "WorkerReport",
    "aksel",
    "anytime",
    "arc",
    "attacks",
    "authors_beta",
    "authors_mixing",
    "bucketing",
    "bulyan",
    "caf",
    "cap_weights",
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
    "guard",
    "guard_report",
    "influence",
    "krum",
    "layers",
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
    "per_worker",
    "phocas",
    "poisoning",
    "rules",
    "sharding",
    "sign_majority",
    "signguard",
    "smea",
    "stack",
    "storm",
    "trainer",
    "trimmed_mean",
    "with_key",
]

try:
    __version__ = importlib.metadata.version("byzjax")
except importlib.metadata.PackageNotFoundError:  # Sources that nobody installed.
    __version__ = "0+unknown"

# A rule's repr is how one writes it.
written.factories(sys.modules[__name__], __all__)
written.factories(attacks, attacks.__all__, prefix="attacks.")
written.factories(
    rules, ("coordinatewise", "geometric", "premixed", "prescaled"), prefix="rules."
)
written.factories(poisoning, ("label_flip", "backdoor"), prefix="poisoning.")

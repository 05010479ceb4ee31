"""Splitting a labelled data set over workers, on the host.

Every function returns a list of `num_workers` integer arrays: the indices of each
worker's samples, ascending. The parts are disjoint, cover the data set, remainders
included, and none is empty. All randomness comes from the NumPy generator given, so
the same seed gives the same parts. One scheme a file.
"""

from byzjax.partition.dirichlet import dirichlet
from byzjax.partition.extreme import extreme
from byzjax.partition.gamma_similarity import gamma_similarity
from byzjax.partition.histogram import label_histogram
from byzjax.partition.iid import iid
from byzjax.partition.shards import shards

__all__ = [
    "dirichlet",
    "extreme",
    "gamma_similarity",
    "iid",
    "label_histogram",
    "shards",
]

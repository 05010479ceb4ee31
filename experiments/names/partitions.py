"""Splits of the data by name: labels, number of workers → indices of each worker."""

import inspect
from collections.abc import Callable

import numpy as np

import byzjax

Split = Callable[[np.ndarray, int], list[np.ndarray]]


def _splitter(split: Callable[..., list[np.ndarray]]) -> Callable[..., Split]:
    """Options → a split, the same every time."""

    def factory(**options):
        if "rng" in inspect.signature(split).parameters:
            options["rng"] = np.random.default_rng(0)
        inspect.signature(split).bind([], 1, **options)  # Wrong options fail here.

        def parts(labels, num_workers):
            return split(labels, num_workers, **options)

        return parts

    return factory


def _strided(labels, num_workers):
    """Sorted by label and dealt out in turn: all workers have as many of each."""
    order = np.argsort(labels, kind="stable")
    return [order[worker::num_workers] for worker in range(num_workers)]


def _among_honest(inner: Split | None = None, *, num_byzantine: int) -> Split:
    """The inner split over the honest workers; attackers draw from all data."""

    def parts(labels, num_workers):
        everything = np.arange(len(labels))
        honest = num_workers - num_byzantine
        mine = [everything] * honest if inner is None else inner(labels, honest)
        return [*mine, *[everything] * num_byzantine]

    return parts


# None: every worker draws from all of the training set, as in the paper.
PARTITIONS = {
    "iid": lambda: None,
    "strided": _splitter(_strided),
    "among_honest": _among_honest,
} | {
    name: _splitter(getattr(byzjax.partition, name))
    for name in ("dirichlet", "gamma_similarity", "extreme", "shards")
}

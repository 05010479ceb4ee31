"""Splitting a labelled data set over workers, on the host.

Every function returns a list of `num_workers` integer arrays: the indices of each
worker's samples, ascending. The parts are disjoint, cover the data set, remainders
included, and none is empty. All randomness comes from the NumPy generator given, so
the same seed gives the same parts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from byzjax import checks

# A draw that leaves a worker empty is repeated this often before giving up.
_MAX_DRAWS = 1000
_NOT_RANDOM = object()


def iid(
    labels: npt.ArrayLike, num_workers: int, *, rng: np.random.Generator
) -> list[np.ndarray]:
    """Homogeneous data: a uniformly random split into equal parts.

    The n samples are shuffled and cut into parts whose sizes differ by at most one (the
    n mod num_workers left over go to the first workers).

    Args:
      labels: [n]; integer class labels (only their number matters here).
      num_workers: number of parts, at most n.
      rng: source of the randomness.

    Returns:
      num_workers arrays of indices.

    Raises:
      ValueError: if there are fewer samples than workers, or labels is not [n].
      TypeError: if labels are not integers or rng is not a Generator.

    Example:
      >>> import numpy as np
      >>> from byzjax.partition import iid
      >>> parts = iid(np.zeros(10, int), 3, rng=np.random.default_rng(0))
      >>> [len(part) for part in parts]
      [4, 3, 3]
    """
    labels, num_workers = _check("iid", labels, num_workers, rng)
    return _sorted(np.array_split(rng.permutation(labels.size), num_workers))


def dirichlet(
    labels: npt.ArrayLike, num_workers: int, *, alpha: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Heterogeneous data: each class is spread over the workers by a Dirichlet draw.

    For every class c, independently, p_c ~ Dirichlet(alpha, ..., alpha) over the
    *workers*; the samples of class c are shuffled and cut at the fractions
    cumsum(p_c), rounded down. Small alpha gives each class to few workers, large alpha
    approaches `iid` class by class. Sizes differ between workers. As in NIID-Bench, a
    draw that leaves a worker without samples is repeated as a whole.

    Two variants are in use. This one, per class over workers (Yurochkin et al.; Li et
    al.), is what NIID-Bench, FedML and Flower run, often under the name of Hsu et al.
    Those draw a distribution over *classes* per worker instead, with equally many
    samples each.

    Args:
      labels: [n]; integer class labels.
      num_workers: number of parts, at most n.
      alpha: concentration, positive and finite. 0.1 is strongly heterogeneous.
      rng: source of the randomness.

    Returns:
      num_workers arrays of indices.

    Raises:
      ValueError: if alpha is not positive and finite, there are fewer samples than
        workers, or no draw in 1000 gives every worker a sample.
      TypeError: if labels are not integers or rng is not a Generator.

    Example:
      >>> import numpy as np
      >>> from byzjax.partition import dirichlet, label_histogram
      >>> labels = np.repeat([0, 1], 50)
      >>> parts = dirichlet(labels, 4, alpha=1.0, rng=np.random.default_rng(0))
      >>> print(label_histogram(labels, parts).sum(axis=0))
      [50 50]

    Reference:
      Yurochkin et al., *Bayesian Nonparametric Federated Learning of Neural Networks*
      (arXiv 1905.12022); Li et al., *Federated Learning on Non-IID Data Silos: An
      Experimental Study* (arXiv 2102.02079). The other variant: Hsu, Qi, Brown,
      *Measuring the Effects of Non-Identical Data Distribution for Federated Visual
      Classification* (arXiv 1909.06335).
    """
    labels, num_workers = _check("dirichlet", labels, num_workers, rng)
    checks.number("dirichlet", alpha=alpha, open_interval=True)
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(_MAX_DRAWS):
        pieces: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
        for members in classes:
            share = np.cumsum(rng.dirichlet(np.full(num_workers, alpha)))[:-1]
            # Rounding may push a cumulative sum past one.
            cuts = np.minimum(share * members.size, members.size).astype(int)
            parts = np.split(rng.permutation(members), cuts)
            for worker, part in enumerate(parts):
                pieces[worker].append(part)
        joined = [np.concatenate(piece) for piece in pieces]
        if all(part.size for part in joined):
            return _sorted(joined)
    raise ValueError(
        f"dirichlet needs a draw that gives every worker a sample, found none in "
        f"{_MAX_DRAWS}: got alpha={alpha}, num_workers={num_workers}, "
        f"{len(classes)} classes and {labels.size} samples; use a larger alpha or "
        "fewer workers"
    )


def gamma_similarity(
    labels: npt.ArrayLike, num_workers: int, *, gamma: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Heterogeneous data: a fraction gamma split iid, the rest sorted by label.

    round(gamma * n) random samples are dealt out uniformly; the others are sorted by
    label (in random order within a label) and dealt out in that order. Sizes differ
    between workers by at most one in total. gamma = 1 is `iid`, gamma = 0 is `extreme`
    up to the order within a label.

    Args:
      labels: [n]; integer class labels.
      num_workers: number of parts, at most n.
      gamma: similarity, in [0, 1].
      rng: source of the randomness.

    Returns:
      num_workers arrays of indices.

    Raises:
      ValueError: if gamma is outside [0, 1] or there are fewer samples than workers.
      TypeError: if labels are not integers or rng is not a Generator.

    Example:
      >>> import numpy as np
      >>> from byzjax.partition import gamma_similarity, label_histogram
      >>> labels, rng = np.repeat([0, 1], 50), np.random.default_rng(0)
      >>> parts = gamma_similarity(labels, 2, gamma=0.0, rng=rng)
      >>> print(label_histogram(labels, parts))
      [[50  0]
       [ 0 50]]

    Reference:
      Karimireddy et al., *SCAFFOLD: Stochastic Controlled Averaging for Federated
      Learning* (arXiv 1910.06378).
    """
    labels, num_workers = _check("gamma_similarity", labels, num_workers, rng)
    checks.number("gamma_similarity", gamma=gamma)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma_similarity needs 0 <= gamma <= 1, got gamma={gamma}")
    order = rng.permutation(labels.size)
    num_shared = round(gamma * labels.size)
    shared, rest = order[:num_shared], order[num_shared:]
    rest = rest[np.argsort(labels[rest], kind="stable")]
    # The sorted samples fill every worker up to the size of an even split: two even
    # splits side by side could differ by two.
    shared_parts = np.array_split(shared, num_workers)
    sizes = [part.size for part in np.array_split(order, num_workers)]
    missing = [size - part.size for size, part in zip(sizes, shared_parts, strict=True)]
    rest_parts = np.split(rest, np.cumsum(missing)[:-1])
    pairs = zip(shared_parts, rest_parts, strict=True)
    return _sorted([np.concatenate(pair) for pair in pairs])


def extreme(labels: npt.ArrayLike, num_workers: int) -> list[np.ndarray]:
    """The most heterogeneous data: sorted by label, then cut into equal parts.

    Samples of one label keep their order, and sizes differ by at most one (the
    n mod num_workers left over go to the first workers). Nothing is random.

    Args:
      labels: [n]; integer class labels.
      num_workers: number of parts, at most n.

    Returns:
      num_workers arrays of indices.

    Raises:
      ValueError: if there are fewer samples than workers, or labels is not [n].
      TypeError: if labels are not integers.

    Example:
      >>> import numpy as np
      >>> from byzjax.partition import extreme
      >>> for part in extreme(np.array([1, 0, 1, 0]), 2):
      ...     print(part)
      [1 3]
      [0 2]
    """
    labels, num_workers = _check("extreme", labels, num_workers)
    return _sorted(np.array_split(np.argsort(labels, kind="stable"), num_workers))


def shards(
    labels: npt.ArrayLike,
    num_workers: int,
    *,
    shards_per_worker: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Heterogeneous data: each worker gets a few contiguous shards of sorted data.

    The samples, sorted by label, are cut into num_workers * shards_per_worker shards
    whose sizes differ by at most one, and the shards are dealt out at random. A worker
    sees at most about shards_per_worker labels (a shard may straddle two).

    Args:
      labels: [n]; integer class labels.
      num_workers: number of parts.
      shards_per_worker: shards that each worker receives; 2 in the reference.
      rng: source of the randomness.

    Returns:
      num_workers arrays of indices.

    Raises:
      ValueError: if there are fewer samples than shards, or a number is below one.
      TypeError: if labels are not integers or rng is not a Generator.

    Example:
      >>> import numpy as np
      >>> from byzjax.partition import label_histogram, shards
      >>> labels, rng = np.repeat(np.arange(10), 8), np.random.default_rng(0)
      >>> parts = shards(labels, 5, shards_per_worker=2, rng=rng)
      >>> print((label_histogram(labels, parts) > 0).sum(axis=1))
      [2 2 2 2 2]

    Reference:
      McMahan et al., *Communication-Efficient Learning of Deep Networks from
      Decentralized Data* (arXiv 1602.05629).
    """
    labels, num_workers = _check("shards", labels, num_workers, rng)
    shards_per_worker = checks.count(
        "shards", shards_per_worker=shards_per_worker, minimum=1
    )
    num_shards = num_workers * shards_per_worker
    if labels.size < num_shards:
        raise ValueError(
            "shards needs at least num_workers * shards_per_worker samples, got "
            f"{labels.size} samples, num_workers={num_workers} and "
            f"shards_per_worker={shards_per_worker}"
        )
    pieces = np.array_split(np.argsort(labels, kind="stable"), num_shards)
    dealt = rng.permutation(num_shards).reshape(num_workers, shards_per_worker)
    return _sorted([np.concatenate([pieces[i] for i in row]) for row in dealt])


def label_histogram(
    labels: npt.ArrayLike,
    parts: Sequence[npt.ArrayLike],
    num_classes: int | None = None,
) -> np.ndarray:
    """How many samples of each label each worker holds.

    Args:
      labels: [n]; integer class labels, not negative.
      parts: one array of indices per worker, as the functions here return them.
      num_classes: number of columns; None for the largest label plus one.

    Returns:
      [num_workers, num_classes]; counts.

    Raises:
      ValueError: if a label is negative or not below num_classes, or an index is out of
        range.
      TypeError: if labels or indices are not integers.

    Example:
      >>> from byzjax.partition import label_histogram
      >>> print(label_histogram([0, 2, 2], [[0, 1], [2]]))
      [[1 0 1]
       [0 0 1]]
    """
    labels = _labels("label_histogram", labels)
    if labels.size and labels.min() < 0:
        least = labels.min()
        raise ValueError(f"label_histogram needs labels >= 0, got the label {least}")
    largest = int(labels.max(initial=-1))
    count = largest + 1 if num_classes is None else num_classes
    num_classes = checks.count("label_histogram", num_classes=count, minimum=1)
    if largest >= num_classes:
        raise ValueError(
            f"label_histogram needs labels < num_classes, got the label {largest} and "
            f"num_classes={num_classes}"
        )
    if not isinstance(parts, Sequence | np.ndarray) or isinstance(parts, str):
        raise TypeError(
            f"label_histogram needs parts to be arrays of indices, got {parts!r}"
        )
    histogram = np.zeros((len(parts), num_classes), dtype=np.int64)
    for worker, part in enumerate(parts):
        indices = np.asarray(part)
        if indices.size == 0:
            continue
        if not np.issubdtype(indices.dtype, np.integer):
            raise TypeError(
                f"label_histogram needs integer indices, got {indices.dtype} in "
                f"parts[{worker}]"
            )
        if indices.min() < 0 or indices.max() >= labels.size:
            raise ValueError(
                f"label_histogram needs 0 <= index < {labels.size}, got "
                f"{indices.min()} to {indices.max()} in parts[{worker}]"
            )
        histogram[worker] = np.bincount(labels[indices], minlength=num_classes)
    return histogram


def _check(
    owner: str, labels: npt.ArrayLike, num_workers: int, rng: object = _NOT_RANDOM
) -> tuple[np.ndarray, int]:
    if rng is not _NOT_RANDOM and not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"{owner} needs a numpy.random.Generator, such as "
            f"numpy.random.default_rng(0), got rng={rng!r}"
        )
    labels = _labels(owner, labels)
    num_workers = checks.count(owner, num_workers=num_workers, minimum=1)
    if labels.size < num_workers:
        raise ValueError(
            f"{owner} needs at least one sample per worker, got {labels.size} samples "
            f"and num_workers={num_workers}"
        )
    return labels, num_workers


def _labels(owner: str, labels: npt.ArrayLike) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            f"{owner} needs labels of shape [n] (class indices, not one-hot), got "
            f"shape {labels.shape}"
        )
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{owner} needs integer class labels, got {labels.dtype}")
    return labels.astype(np.int64)


def _sorted(parts: list[np.ndarray]) -> list[np.ndarray]:
    return [np.sort(part) for part in parts]

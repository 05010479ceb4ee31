"""Label skew by Dirichlet draws, over workers or, with equal sizes, over classes."""

import numpy as np
import numpy.typing as npt

from byzjax import checks
from byzjax.partition import labels as labels_of

# A draw that leaves a worker too few samples is repeated this often before giving up.
_MAX_DRAWS = 1000


def dirichlet(
    labels: npt.ArrayLike,
    num_workers: int,
    *,
    alpha: float,
    rng: np.random.Generator,
    min_size: int = 1,
    balanced: bool = False,
) -> list[np.ndarray]:
    """Heterogeneous data: each class is spread over the workers by a Dirichlet draw.

    For every class c, independently, p_c ~ Dirichlet(alpha, ..., alpha) over the
    *workers*. Worker w receives the quota p_cw n_c of its n_c samples, rounded down or
    up: what rounding down leaves of a class goes to the workers who are owed most, the
    remainders of earlier classes included. So no worker is favoured for its number,
    every size is within a few samples of what was drawn, and large alpha approaches
    `iid`, however few samples a class has. Small alpha gives each class to few workers.

    With `balanced`, sizes differ by at most one. A distribution over *classes* is
    drawn for each worker, q_w ~ Dirichlet(alpha C n_c / n), and each draws its samples
    by it without replacement, all at the same time; what is asked for beyond what there
    is of a class is shared out at random, and the rest asked for again among the
    classes that are left. Every sample finds a worker, so the last of a rare class may
    go to one who did not ask.

    The first form, per class over workers (Yurochkin et al.; Li et al.), is what
    NIID-Bench, FedML and Flower run, often under the name of Hsu et al., whose
    distributions over classes and equal sizes are those of `balanced`.

    Args:
      labels: [n]; integer class labels.
      num_workers: number of parts, at most n.
      alpha: concentration, positive and finite. 0.1 is strongly heterogeneous.
      rng: source of the randomness.
      min_size: the samples that every worker has at least. As in NIID-Bench, a draw
        that leaves a worker fewer is repeated as a whole.
      balanced: whether all workers have equally many samples.

    Returns:
      num_workers arrays of indices.

    Raises:
      ValueError: if alpha is not positive and finite, there are fewer than min_size
        samples for each worker, or no draw in 1000 gives every worker so many.
      TypeError: if labels are not integers or rng is not a Generator.

    Example:
      >>> import numpy as np
      >>> from byzjax.partition import dirichlet, label_histogram
      >>> labels = np.repeat([0, 1], 50)
      >>> rng = np.random.default_rng(0)
      >>> parts = dirichlet(labels, 4, alpha=1.0, rng=rng, balanced=True)
      >>> print(label_histogram(labels, parts))
      [[12 13]
       [20  5]
       [10 15]
       [ 8 17]]

    Reference:
      Yurochkin et al., *Bayesian Nonparametric Federated Learning of Neural Networks*
      (arXiv 1905.12022); Li et al., *Federated Learning on Non-IID Data Silos: An
      Experimental Study* (arXiv 2102.02079). Balanced: Hsu, Qi, Brown, *Measuring the
      Effects of Non-Identical Data Distribution for Federated Visual Classification*
      (arXiv 1909.06335).
    """
    labels, num_workers = labels_of.checked("dirichlet", labels, num_workers, rng)
    checks.number("dirichlet", alpha=alpha, open_interval=True, static=True)
    min_size = checks.count("dirichlet", min_size=min_size, minimum=1)
    checks.flag("dirichlet", balanced=balanced)
    if num_workers * min_size > labels.size:
        raise ValueError(
            "dirichlet needs num_workers * min_size samples, got "
            f"num_workers={num_workers}, min_size={min_size} and {labels.size} samples"
        )
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    supply = np.array([members.size for members in classes])
    draw = _balanced if balanced else _over_workers
    for _ in range(_MAX_DRAWS):
        counts = draw(supply, num_workers, float(alpha), rng)
        if counts.sum(axis=0).min() >= min_size:
            return _dealt(classes, counts, rng)
    raise ValueError(
        f"dirichlet needs a draw that gives every worker min_size={min_size} samples, "
        f"found none in {_MAX_DRAWS}: got alpha={alpha}, num_workers={num_workers}, "
        f"{len(classes)} classes and {labels.size} samples; use a larger alpha, fewer "
        "workers or balanced=True"
    )


def _over_workers(supply, num_workers, alpha, rng):
    """Counts [classes, workers] within one of quotas drawn over workers."""
    shares = rng.dirichlet(np.full(num_workers, alpha), size=supply.size)
    quotas = shares * supply[:, None]
    counts = np.floor(quotas).astype(np.int64)
    owed = np.zeros(num_workers)
    for c in range(supply.size):
        owed += quotas[c] - counts[c]
        left = supply[c] - counts[c].sum()
        # Equal claims, as of a huge alpha, go to nobody for the number of a worker.
        first = np.lexsort((rng.random(num_workers), -owed))[:left]
        counts[c, first] += 1
        owed[first] -= 1
    return counts


def _balanced(supply, num_workers, alpha, rng):
    """Counts [classes, workers] of equal sizes, drawn over classes."""
    total = supply.sum()
    prior = alpha * supply.size * supply / total
    wishes = rng.dirichlet(prior, size=num_workers)
    room = np.full(num_workers, total // num_workers)
    room[: total % num_workers] += 1
    counts = np.zeros((supply.size, num_workers), np.int64)
    left = supply.astype(np.int64)
    while room.any():  # A class at least is used up every time.
        odds = np.where(left > 0, wishes, 0)
        lost = odds.sum(axis=1) < 1e-12  # Who wanted nothing of what is left.
        odds[lost] = left
        asked = rng.multinomial(room, odds / odds.sum(axis=1, keepdims=True)).T
        for c in np.flatnonzero(asked.sum(axis=1)):
            given = asked[c]
            if given.sum() > left[c]:
                given = rng.multivariate_hypergeometric(
                    given, left[c], method="marginals"
                )
            counts[c] += given
            left[c] -= given.sum()
            room -= given
    return counts


def _dealt(classes, counts, rng):
    """Random samples of each class, so many to each worker."""
    pieces = [
        np.split(rng.permutation(members), np.cumsum(row)[:-1])
        for members, row in zip(classes, counts, strict=True)
    ]
    return labels_of.ascending(
        [np.concatenate(own) for own in zip(*pieces, strict=True)]
    )

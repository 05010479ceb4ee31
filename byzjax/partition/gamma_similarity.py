"""A fraction of the data split at random, the rest sorted by label."""

import numpy as np
import numpy.typing as npt

from byzjax import checks
from byzjax.partition import labels as labels_of


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
    labels, num_workers = labels_of.checked(
        "gamma_similarity", labels, num_workers, rng
    )
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
    return labels_of.ascending([np.concatenate(pair) for pair in pairs])

"""A uniformly random split."""

import numpy as np
import numpy.typing as npt

from byzjax.partition import labels as labels_of


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
    labels, num_workers = labels_of.checked("iid", labels, num_workers, rng)
    return labels_of.ascending(
        np.array_split(rng.permutation(labels.size), num_workers)
    )

"""The data sorted by label, then cut."""

import numpy as np
import numpy.typing as npt

from byzjax.partition import labels as labels_of


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
    labels, num_workers = labels_of.checked("extreme", labels, num_workers)
    return labels_of.ascending(
        np.array_split(np.argsort(labels, kind="stable"), num_workers)
    )

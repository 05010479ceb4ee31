"""Who holds how many samples of each label."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from byzjax import checks
from byzjax.partition import labels as labels_of


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
    labels = labels_of.classes("label_histogram", labels)
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

"""What every scheme asks of labels, and gives back."""

import numpy as np
import numpy.typing as npt

from byzjax import checks

_NOT_RANDOM = object()


def checked(
    owner: str, labels: npt.ArrayLike, num_workers: int, rng: object = _NOT_RANDOM
) -> tuple[np.ndarray, int]:
    """Labels `[n]` and number of workers, of which none has to stay without samples."""
    if rng is not _NOT_RANDOM and not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"{owner} needs a numpy.random.Generator, such as "
            f"numpy.random.default_rng(0), got rng={rng!r}"
        )
    labels = classes(owner, labels)
    num_workers = checks.count(owner, num_workers=num_workers, minimum=1)
    if labels.size < num_workers:
        raise ValueError(
            f"{owner} needs at least one sample per worker, got {labels.size} samples "
            f"and num_workers={num_workers}"
        )
    return labels, num_workers


def classes(owner: str, labels: npt.ArrayLike) -> np.ndarray:
    """Integer labels `[n]`."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            f"{owner} needs labels of shape [n] (class indices, not one-hot), got "
            f"shape {labels.shape}"
        )
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{owner} needs integer class labels, got {labels.dtype}")
    return labels.astype(np.int64)


def ascending(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Each part's indices in ascending order."""
    return [np.sort(part) for part in parts]

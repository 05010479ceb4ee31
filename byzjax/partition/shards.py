"""A few contiguous pieces of the sorted data each."""

import numpy as np
import numpy.typing as npt

from byzjax import checks
from byzjax.partition import labels as labels_of


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
    labels, num_workers = labels_of.checked("shards", labels, num_workers, rng)
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
    return labels_of.ascending(
        [np.concatenate([pieces[i] for i in row]) for row in dealt]
    )

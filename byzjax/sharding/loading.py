"""Batches of several processes: each feeds the workers on its own devices."""

import dataclasses
from typing import Any

import jax
import numpy as np

from byzjax.sharding.layout import Layout


def place(layout: Layout, batches: Any) -> Any:
    """This process's batches as part of those of all workers, on their devices.

    In one process the same as `jax.device_put(batches, layout.batches)`. In several,
    each passes the batches of its own workers, `layout.workers_of_process(m)`, and
    nothing is sent between them.

    Args:
      layout: the devices.
      batches: leaves `[k, ...]`, of this process's k workers in their order, NumPy
        arrays or JAX's of this process.

    Returns:
      Global arrays `[m, ...]`, sharded over the workers' axis, of all workers that have
      a device.

    Raises:
      ValueError: leaves of different numbers of workers, or of a number that this
        process's devices do not divide: then give every process the batches of all
        workers, as plain arrays, and leave their way to the step.

    Example:
      >>> import byzjax, jax, numpy as np
      >>> layout = byzjax.sharding.Layout(jax.make_mesh((1,), ("workers",)))
      >>> own = layout.workers_of_process(6)
      >>> print(byzjax.sharding.place(layout, np.ones((len(own), 4, 3))).shape)
      (6, 4, 3)
    """
    counts = {np.shape(x)[0] for x in jax.tree.leaves(batches)}
    if len(counts) != 1:
        raise ValueError(
            "sharding.place needs batches of one number of workers, got leaves of "
            f"{sorted(counts)}"
        )
    (count,) = counts
    shards = layout.num_worker_shards
    one_each = dataclasses.replace(layout, absent=())  # One worker on each shard.
    own = len(one_each.workers_of_process(shards))
    if count % own:
        raise ValueError(
            "sharding.place needs as many batches on each of this process's "
            f"{own} shards of workers, got {count}: give every process the batches of "
            "all workers instead"
        )
    m = count // own * shards

    def of_leaf(x):
        shape = (m, *np.shape(x)[1:])
        return jax.make_array_from_process_local_data(layout.batches, x, shape)

    return jax.tree.map(of_leaf, batches)

"""Every worker's work, at once or in chunks: `map_workers`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_workers(
    function: Callable[[Any], Any],
    operands: Any,
    count: int,
    *,
    at_most: int | None,
    shards: int = 1,
) -> Any:
    """`jax.vmap(function)`, in chunks of at most so many workers, as equal as can be.

    Args:
      function: of one worker's operands.
      operands: leaves `[count, ...]`.
      count: the number of workers.
      at_most: workers in a chunk; None is all.
      shards: over how many devices the workers are spread, equally many on each: a
        chunk takes as many of every device.

    Returns:
      The results, leaves `[count, ...]`.
    """
    if at_most is not None and shards > 1:
        local, most = count // shards, max(1, at_most // shards)

        def on_one_device(rows):
            return map_workers(function, rows, local, at_most=most)

        parts = jax.tree.map(lambda x: x.reshape(shards, local, *x.shape[1:]), operands)
        found = jax.vmap(on_one_device)(parts)
        return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), found)
    chunks = 1 if at_most is None else -(-count // at_most)
    if chunks == 1:
        return jax.vmap(function)(operands)
    leaves, structure = jax.tree.flatten(operands)
    tree, places, shapes = None, [], []

    def of_flat(rows):
        nonlocal tree, places, shapes
        one = [_shaped(x, leaf.shape[1:]) for x, leaf in zip(rows, leaves, strict=True)]
        results, tree = jax.tree.flatten(function(structure.unflatten(one)))
        results = [jnp.asarray(x) for x in results]
        # A message often is the worker's new state itself: one copy of it is kept.
        seen = {}
        places = [seen.setdefault(id(x), len(seen)) for x in results]
        results = {id(x): x for x in results}.values()
        shapes = [x.shape for x in results]
        return [_flat(x) for x in results]

    # XLA:CPU copies the ten numbers of a layer's last axis one at a time.
    flat = [_flat(x, count) for x in leaves]
    kept = lax.map(of_flat, flat, batch_size=-(-count // chunks))
    kept = [_shaped(x, s, count) for x, s in zip(kept, shapes, strict=True)]
    return jax.tree.unflatten(tree, [kept[i] for i in places])


def _flat(x, *lead):
    """Rows of one number at least: `lax.map` cannot cut those of none into chunks."""
    rows = x.reshape(*lead, math.prod(x.shape[len(lead) :]))
    return rows if rows.shape[-1] else jnp.zeros((*lead, 1), x.dtype)


def _shaped(rows, shape, *lead):
    """What `_flat` made rows of."""
    rows = rows if math.prod(shape) else rows[..., :0]
    return rows.reshape(*lead, *shape)

"""Every worker's work, at once or in chunks: `map_workers`, and `map_sharded`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax import loops


def map_workers(
    function: Callable[[Any], Any],
    operands: Any,
    count: int,
    *,
    at_most: int | None,
) -> Any:
    """`jax.vmap(function)`, in chunks of at most so many workers, as equal as can be.

    Args:
      function: of one worker's operands.
      operands: leaves `[count, ...]`.
      count: the number of workers.
      at_most: workers in a chunk; None is all.

    Returns:
      The results, leaves `[count, ...]`.
    """
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


def map_sharded(
    function: Callable[[Any], Any],
    operands: Any,
    count: int,
    *,
    at_most: int | None,
    shards: int,
    sent: Callable[[Any], Any],
) -> Any:
    """`sent(jax.vmap(function))` of workers that are spread over devices.

    A chunk takes as many workers of every device, and is sent before the next one is
    computed: what is on the way is of one chunk.

    Args:
      function: of one worker's operands.
      operands: leaves `[count, ...]`.
      count: the number of workers, a multiple of the shards.
      at_most: workers in a chunk; None is all. No fewer than one a device.
      shards: over how many devices the workers are spread, equally many on each.
      sent: of the results of k workers, leaves `[k, ...]`, a tree of leaves `[k, ...]`.

    Returns:
      What was sent of all, leaves `[count, ...]`.
    """
    local = count // shards
    most = local if at_most is None else max(1, at_most // shards)
    chunks = -(-local // most)
    if chunks == 1:
        return sent(jax.vmap(function)(operands))
    size = -(-local // chunks)
    parts = jax.tree.map(lambda x: x.reshape(shards, local, *x.shape[1:]), operands)

    def chunk(k):
        # The last one begins where it is whole, with workers that are computed twice.
        start = jnp.minimum(k * size, local - size)
        own = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, start, size, axis=1), parts
        )
        found = jax.vmap(jax.vmap(function))(own)
        flat = jax.tree.map(lambda x: x.reshape(shards * size, *x.shape[2:]), found)
        out = jax.tree.map(lambda x: x.reshape(shards, size, *x.shape[1:]), sent(flat))
        return start, out

    def step(k, whole):
        start, out = chunk(k)
        return jax.tree.map(
            lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, axis=1),
            whole,
            out,
        )

    shapes = jax.eval_shape(chunk, jnp.int32(0))[1]
    whole = jax.tree.map(
        lambda x: jnp.zeros((shards, local, *x.shape[2:]), x.dtype), shapes
    )
    whole = loops.fori_loop(0, chunks, step, whole)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), whole)


def _flat(x, *lead):
    """Rows of one number at least: `lax.map` cannot cut those of none into chunks."""
    rows = x.reshape(*lead, math.prod(x.shape[len(lead) :]))
    return rows if rows.shape[-1] else jnp.zeros((*lead, 1), x.dtype)


def _shaped(rows, shape, *lead):
    """What `_flat` made rows of."""
    rows = rows if math.prod(shape) else rows[..., :0]
    return rows.reshape(*lead, *shape)

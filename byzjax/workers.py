"""Every worker's state, `copies`, and work, at once or in chunks, `map_workers`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def copies(state: Any, count: int) -> Any:
    """One state a worker, leaves `[count, ...]`; typed keys become keys of their own.

    Were they the same, all workers would add the same noise.
    """

    def of_leaf(x):
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jnp.repeat(x[None], count, axis=0)
        own = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
        return own(x.ravel(), jnp.arange(count)).reshape(count, *x.shape)

    return jax.tree.map(of_leaf, state)


def map_workers(
    function: Callable[[Any], Any], operands: Any, count: int, *, at_most: int | None
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
    tree, places = None, []

    def without_copies(one):
        nonlocal tree, places
        leaves, tree = jax.tree.flatten(function(one))
        # A message often is the worker's new state itself: one copy of it is kept.
        seen = {}
        places = [seen.setdefault(id(x), len(seen)) for x in leaves]
        return list({id(x): x for x in leaves}.values())

    kept = lax.map(without_copies, operands, batch_size=-(-count // chunks))
    return jax.tree.unflatten(tree, [kept[i] for i in places])

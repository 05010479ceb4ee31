"""Distances between rows that lie close together, far from the centre of products.

Products around one centre know a squared distance to the last place of the squares of
how far out its two rows are: half a stack at a thousandth of that from each other would
look like one place. Such rows are seen once more, each from a row of its own crowd.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import loops

# Rows are close when their squared distance is less than this share of the squares of
# how far out they are: products have lost more than 1e-3 of it.
_CLOSE = 2.0**-12


def told_apart(
    seen_from: Callable[[jax.Array], jax.Array],
    gram: jax.Array,
    distances: jax.Array,
    usable: jax.Array,
) -> jax.Array:
    """Squared distances [m, m], within crowds from one more pass if need be.

    Args:
      seen_from: the indices [m] of a row each → squared distances [m, m] that are right
        between rows of the same one.
      gram: inner products [m, m] around a centre.
      distances: squared ones [m, m] that follow from them.
      usable: which rows [m] are finite, and present.
    """
    m = usable.shape[0]
    squares = jnp.diagonal(gram)
    both = usable[:, None] & usable[None, :]
    close = both & (distances < _CLOSE * (squares[:, None] + squares[None, :]))
    close |= np.eye(m, dtype=bool)
    # Of the rows close to a row the one that has most: nearly all of a crowd agree.
    many = jnp.sum(close, axis=1)
    leader = jnp.argmax(jnp.where(close, many[None, :], 0), axis=1)
    # Equal rows, as many attacks send, have equal products, and a distance of zero.
    equal = jnp.all((gram == gram[leader]) | ~usable[None, :], axis=1)
    crowded = jnp.any(usable & ~equal)
    together = leader[:, None] == leader[None, :]

    def look(_):
        found = seen_from(leader.astype(jnp.int32))
        return jnp.asarray(False), jnp.where(together & both, found, distances)

    # A loop of one turn at most: of a condition, both sides would run under vmap.
    return loops.while_loop(lambda carry: carry[0], look, (crowded, distances))[1]

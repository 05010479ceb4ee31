"""Distances between rows that lie close together, far from the centre of products.

Products around one centre know a squared distance to the last place of the squares of
how far out its two rows are: half a stack at a thousandth of that from each other would
look like one place. Such rows are seen once more, each from a row of its own crowd.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Rows are close when their squared distance is less than this share of the squares of
# how far out they are: products have lost more than 1e-3 of it.
_CLOSE = 2.0**-12


def crowds(
    gram: jax.Array, distances: jax.Array, usable: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether some rows are crowded, and for each the index [m] of one in its crowd.

    Args:
      gram: inner products [m, m] around a centre.
      distances: squared ones [m, m] that follow from them.
      usable: which rows [m] are finite, and present.
    """
    squares = jnp.diagonal(gram)
    both = usable[:, None] & usable[None, :]
    close = both & (distances < _CLOSE * (squares[:, None] + squares[None, :]))
    close |= np.eye(len(usable), dtype=bool)
    # Of the rows close to a row the one that has most: nearly all of a crowd agree.
    many = jnp.sum(close, axis=1)
    leader = jnp.argmax(jnp.where(close, many[None, :], 0), axis=1).astype(jnp.int32)
    # Equal rows, as many attacks send, have equal products, and a distance of zero.
    equal = jnp.all((gram == gram[leader]) | ~usable[None, :], axis=1)
    return jnp.any(usable & ~equal), leader


def told_apart(
    distances: jax.Array, seen: jax.Array, leader: jax.Array, usable: jax.Array
) -> jax.Array:
    """Squared distances [m, m], within crowds those `seen` from there."""
    together = leader[:, None] == leader[None, :]
    both = usable[:, None] & usable[None, :]
    return jnp.where(together & both, seen, distances)

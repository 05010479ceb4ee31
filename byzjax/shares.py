"""Each worker's share in what a function of their rows returns, by one reverse pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from byzjax import loops
from byzjax.numerics import stacked
from byzjax.trees import Tree


def with_shares(
    aggregate: Callable[[Tree], tuple[Tree, Any]], rows: Tree
) -> tuple[Tree, Any, jax.Array]:
    """What `aggregate` returns for these rows, and the rows' shares in it.

    They are those of `byzjax.influence`, and cost no second aggregation.

    Args:
      aggregate: stacked tree, leaves `[m, ...]` → aggregate, anything else.
      rows: where it is called, JAX's arrays.

    Returns:
      The aggregate, what else there was, and the shares `[m]`, in float32 at least.
    """
    rows = loops.varying_as(rows, lambda rows: aggregate(rows)[0])
    out, pull_back, aux = jax.vjp(aggregate, rows, has_aux=True)
    leaves, structure = jax.tree.flatten(out)
    # The same signs every time, so that the same question has the same answer.
    keys = jax.random.split(jax.random.key(0), len(leaves))
    signs = [
        jax.random.rademacher(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    signs = loops.alike(signs, leaves)
    (pulled,) = pull_back(jax.tree.unflatten(structure, signs))
    size = sum(leaf.size for leaf in leaves)
    dtype = stacked.widest_accumulator(leaves)
    shares = [
        jnp.sum((x * v[None]).reshape(x.shape[0], -1), axis=1, dtype=dtype)
        for x, v in zip(jax.tree.leaves(pulled), signs, strict=True)
    ]
    return out, aux, jnp.sum(jnp.stack(shares), axis=0) / max(size, 1)

"""From a list of trees, one a worker, to a stacked tree."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import checks
from byzjax.trees import Tree, as_arrays


def stack(trees: Sequence[Tree]) -> Tree:
    """One tree a worker, as federated clients send them, as one stacked tree.

    Rules and attacks read `[m, ...]`; a list would be a tree of m times as many leaves.
    To stack m gradients of one function, `jax.vmap` it instead: they are never apart.

    Args:
      trees: m trees of equal structure, shapes and dtypes, leaves `[...]`.

    Returns:
      One tree of their structure, leaves `[m, ...]` as JAX arrays.

    Raises:
      TypeError: no list or tuple; leaves that are no arrays, or of different dtypes.
      ValueError: no trees, or trees of different structure or shapes.

    Example:
      >>> import byzjax, numpy as np
      >>> clients = [{"w": np.full(2, x, np.float32)} for x in (1.0, 2.0, 50.0)]
      >>> print(byzjax.median().aggregate(byzjax.stack(clients))["w"])
      [2. 2.]
    """
    if not isinstance(trees, list | tuple) or hasattr(trees, "_fields"):
        values = ".values()" if isinstance(trees, dict) else ""
        raise TypeError(
            "stack needs trees to be a list of one tree a worker, got "
            f"{type(trees).__name__}: give list(trees{values})"
        )
    if not trees:
        raise ValueError("stack needs trees of at least one worker, got an empty list")
    checks.arrays("stack", trees)
    first, *others = trees
    for worker, tree in enumerate(others, start=1):
        checks.alike("stack", f"trees[{worker}]", tree, first)
        for (path, leaf), like in zip(
            jax.tree_util.tree_leaves_with_path(tree),
            jax.tree.leaves(first),
            strict=True,
        ):
            if leaf.dtype != like.dtype:
                raise TypeError(
                    f"stack needs trees of one dtype, got {like.dtype} in trees[0] and "
                    f"{leaf.dtype} in trees[{worker}]"
                    f"{jax.tree_util.keystr(path)}: cast them with .astype"
                )

    def of_leaf(*rows):
        if all(isinstance(row, np.ndarray | np.generic) for row in rows):
            return as_arrays(np.stack(rows))  # One transfer rather than m.
        return jnp.stack(rows)

    return jax.tree.map(of_leaf, *trees)

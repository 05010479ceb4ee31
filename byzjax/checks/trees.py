"""Trees of arrays, and which of them are stacked: `checks.num_workers` and the like."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def num_workers(updates: Any) -> int:
    """Checks a stacked tree and returns its number of workers.

    Raises:
      ValueError: no leaves, a leaf without a worker axis, leaves with different
        numbers of workers, or no worker at all.
      TypeError: leaves that are no floating-point arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    if not leaves:
        raise ValueError(f"updates need at least one array, got the tree {updates!r}")
    counts = {}
    for path, leaf in leaves:
        where = jax.tree_util.keystr(path) or "the array"
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(
                f"updates need arrays as leaves, got {type(leaf).__name__} at {where}"
                f"{f': {_STACK_LIST}' if _is_list(updates) else ''}"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"updates need floating-point leaves, got {leaf.dtype} at {where}"
            )
        if len(leaf.shape) == 0:
            raise ValueError(
                "updates need a worker axis in front of every leaf, got a scalar at "
                f"{where}: {_how_to_stack(updates)}"
            )
        counts.setdefault(leaf.shape[0], where)
    if len(counts) > 1:
        (m0, at0), (m1, at1), *_ = counts.items()
        raise ValueError(
            "updates need the same number of workers in every leaf, got "
            f"{m0} at {at0} and {m1} at {at1}: {_how_to_stack(updates)}"
        )
    (m,) = counts
    if m == 0:
        raise ValueError("updates need at least one worker, got num_workers=0")
    return m


def stacked(updates: Any, params: Any = None) -> int:
    """`num_workers` of what has to be stacked over them, like `params` if given.

    Raises:
      ValueError: leaves that are not [num_workers, *shape of the parameter]; without
        params a list of equal trees, which hardly is a stacked tree.
    """
    m = num_workers(updates)
    if params is None:
        if _is_list_of_trees(updates):
            raise ValueError(
                f"updates need to be one stacked tree, got a {type(updates).__name__} "
                f"of {len(updates)} equal trees: {_how_to_stack(updates)}; a tree that "
                "is stacked already goes in as a dict, or to update with its params"
            )
        return m
    got, want = jax.tree.structure(updates), jax.tree.structure(params)
    if got != want and _are_clients(updates, params):
        raise ValueError(
            f"updates need to be one stacked tree, got a {type(updates).__name__} of "
            f"{len(updates)} trees like params: {_STACK_VALUES}"
        )
    if got != want:
        raise ValueError(
            f"updates need to be stacked, with the structure of params, {want}, got "
            f"{got}: {_how_to_stack(updates)}"
        )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(updates),
        jax.tree.leaves(params),
        strict=True,
    )
    for (path, leaf), param in pairs:
        if tuple(leaf.shape) != (m, *jnp.shape(param)):
            where = jax.tree_util.keystr(path) or "the array"
            raise ValueError(
                "updates need to be stacked, [num_workers, *shape of the parameter], "
                f"got shape {leaf.shape} at {where} for a parameter of shape "
                f"{jnp.shape(param)}: {_how_to_stack(updates)}"
            )
    return m


_STACKED = (
    "stacked leaves are [num_workers, ...], as jax.vmap(jax.grad(loss_fn), (None, 0)) "
    "makes them of params and [num_workers, ...] batches"
)
_STACK_LIST = (
    "a list of one tree a worker is stacked by byzjax.stack(trees), and numbers of "
    "samples beside them are weights="
)
_STACK_VALUES = (
    "a dict of one tree a worker is stacked by byzjax.stack(list(trees.values()))"
)


def _how_to_stack(updates: Any) -> str:
    """What to do with updates that are not stacked, for the end of an error."""
    if _is_list_of_trees(updates):
        return _STACK_LIST
    if is_dict_of_trees(updates):
        return f"{_STACKED}; {_STACK_VALUES}"
    return (
        f"{_STACKED}; params are those of one worker, a chain has one rule, and "
        "MultiSteps and the like go in front of it, in byzjax.per_worker, and not "
        f"around it{f'; {_STACK_LIST}' if _is_list(updates) else ''}"
    )


def of_first_axis(updates: Any) -> str:
    """Where a number of workers came from, for errors of rules that it does not suit.

    One tree a worker in a dict is no mistake that one can tell from a stacked tree of
    equal layers, so it is only mentioned.
    """
    clients = f"; {_STACK_VALUES}" if is_dict_of_trees(updates) else ""
    return f": num_workers is the first axis of updates; {_STACKED}{clients}"


def _is_list_of_trees(updates: Any) -> bool:
    """Whether it is a list or tuple of at least two trees of equal arrays."""
    return _is_list(updates) and _are_equal_trees(updates)


def _is_list(updates: Any) -> bool:
    return isinstance(updates, list | tuple) and not hasattr(updates, "_fields")


def is_dict_of_trees(updates: Any) -> bool:
    """Whether it is a mapping to at least two trees of equal arrays."""
    return isinstance(updates, Mapping) and _are_equal_trees([*updates.values()])


def _are_clients(updates: Any, params: Any) -> bool:
    """Whether it is a mapping to trees that are like params, and so none of rows."""
    if not isinstance(updates, Mapping) or not updates:
        return False
    return _are_equal_trees([*updates.values(), params])


def _are_equal_trees(trees: Sequence[Any]) -> bool:
    """Whether they are alike but for their dtypes, which are each client's choice."""
    kinds = {jax.tree.structure(tree) for tree in trees}
    shapes = {tuple(map(np.shape, jax.tree.leaves(tree))) for tree in trees}
    return len(trees) > 1 and len(kinds) == len(shapes) == 1


def one_worker(owner: str, updates: Any, like: Any) -> None:
    """`alike` for a transformation of one worker, that may stand before a rule."""
    same = jax.tree.structure(updates) == jax.tree.structure(like)
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(like), strict=False)
    if same and all(jnp.shape(x)[1:] == jnp.shape(y) != jnp.shape(x) for x, y in pairs):
        m = jnp.shape(jax.tree.leaves(updates)[0])[0]
        raise ValueError(
            f"{owner} needs the updates of one worker, got a row for each of {m}: "
            f"byzjax.per_worker({owner}(...), num_workers={m}) keeps a state for each"
        )
    alike(owner, "updates", updates, like)


def arrays(owner: str, tree: Any) -> None:
    """Raises if a leaf is no array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(
                f"{owner} needs arrays as leaves, got {type(leaf).__name__} at "
                f"trees{jax.tree_util.keystr(path)}: what stands beside a worker's "
                "arrays, such as its number of samples, stays out of the trees"
            )


def floating(owner: str, tree: Any) -> None:
    """Raises if a leaf is not floating-point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = jax.tree_util.keystr(path) or "the root"
            raise TypeError(
                f"{owner} needs real floating-point leaves, got {dtype} at {where}"
            )


def alike(owner: str, what: str, tree: Any, like: Any) -> None:
    """Raises unless two trees agree in structure and shapes: nothing may broadcast."""

    def shape(leaf):
        return tuple(getattr(leaf, "shape", ()))

    got, want = jax.tree.map(shape, tree), jax.tree.map(shape, like)
    same = jax.tree.structure(tree) == jax.tree.structure(like)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=False)
    if not same or any(shape(x) != shape(y) for x, y in pairs):
        raise ValueError(
            f"{owner} needs {what} to have the structure and shapes of {want}, "
            f"got {got}"
        )


def state(owner: str, state: Any, made: Any) -> None:
    """Raises unless a state has the structure and shapes that `init` makes.

    Dtypes may differ, as those of params and updates may, and so may states of nothing.
    """
    if not jax.tree.leaves((state, made)):
        return
    got, want = jax.tree.structure(state), jax.tree.structure(made)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(state)]
    wanted = [jnp.shape(leaf) for leaf in jax.tree.leaves(made)]
    if got != want:
        wanted, shapes = want, got
    if wanted != shapes:
        raise ValueError(
            f"{owner} needs the state that its init makes of params, which are not "
            f"stacked: {wanted}, got {shapes}"
        )


def same_rows(owner: str, what: str, rows: Any, like: Any) -> None:
    """Raises unless two stacks differ in how many rows they have at most.

    In structure, in the shape of a row, and in dtype: nothing may be cast.
    """
    if jax.tree.structure(rows) != jax.tree.structure(like):
        raise ValueError(
            f"{owner} needs {what} to have the structure {jax.tree.structure(like)}, "
            f"got {jax.tree.structure(rows)}"
        )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(rows), jax.tree.leaves(like), strict=True
    )
    for (path, leaf), wanted in pairs:
        where = jax.tree_util.keystr(path) or "the array"
        got, want = jnp.shape(leaf), jnp.shape(wanted)
        if not got or got[1:] != want[1:]:
            raise ValueError(
                f"{owner} needs {what} to be like the other rows: rows need one shape, "
                f"got {want} and {got} at {where}"
            )
        if leaf.dtype != wanted.dtype:
            raise TypeError(
                f"{owner} needs {what} to keep the dtype {wanted.dtype}, got "
                f"{leaf.dtype} at {where}: give {leaf.dtype} rows to all workers, or "
                f"cast them with .astype"
            )

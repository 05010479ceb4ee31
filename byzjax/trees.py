"""Trees of arrays, and what is done with every leaf of one."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.typing
import numpy as np
import optax

from byzjax import checks

Tree = Any  # A pytree of arrays.


def as_arrays(tree: Tree) -> Tree:
    """NumPy's leaves as JAX's: float64 becomes float32 unless jax_enable_x64 is set."""

    def of_leaf(leaf):
        if not isinstance(leaf, np.ndarray):
            return leaf
        with np.errstate(over="ignore"):  # Out of float32's range is infinite.
            return jnp.asarray(leaf)

    return jax.tree.map(of_leaf, tree)


def as_floats(extra):
    """Extra arguments of NumPy or Python as JAX's, in the dtypes that rules read.

    Weights as floats, as 2**40 samples fit no int32; other floats as `as_arrays`.
    """

    def of_leaf(leaf):
        floating = isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"
        return as_arrays(leaf) if floating else leaf

    others = {name: value for name, value in extra.items() if name != "weights"}
    others = jax.tree.map(of_leaf, others)
    if "weights" not in extra:
        return others
    weights = extra["weights"]
    if weights is None or isinstance(weights, jax.Array):
        return {"weights": weights, **others}
    given = np.asarray(weights)
    if given.dtype.kind in "iuf":
        with np.errstate(over="ignore"):
            given = jnp.asarray(given.astype(accumulator_dtype(given.dtype)))
    return {"weights": given, **others}


def stack_rows(first: Tree, second: Tree, owner: str, what: str) -> Tree:
    """Two stacked trees, `[h, ...]` and `[f, ...]`, as one, `[h + f, ...]`.

    Args:
      first: whose structure, shapes and dtypes the second has to have.
      second: what is put below.
      owner: whose error it is if they differ.
      what: what the second is, for that error.
    """
    first, second = as_arrays(first), as_arrays(second)
    checks.same_rows(owner, what, second, first)

    def stack(a, b):
        # Flat, as what reads them is: XLA:CPU would write them once in either shape.
        rows = [x.reshape(len(x), a.size // len(a)) for x in (a, b)]
        return jnp.concatenate(rows).reshape(len(a) + len(b), *a.shape[1:])

    return jax.tree.map(stack, first, second)


def all_finite(tree: Tree) -> jax.Array:
    """Whether every number of a tree is finite."""
    found = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(found)) if found else jnp.asarray(True)


def stays_finite(new: Tree, old: Tree) -> jax.Array:
    """Whether every number of `new` is finite that is in `old`."""

    def of_leaf(x, y):
        x, y = jnp.asarray(x), jnp.asarray(y)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.asarray(True)
        return jnp.all(jnp.isfinite(x) | ~jnp.isfinite(y))

    found = jax.tree.leaves(jax.tree.map(of_leaf, new, old))
    return jnp.all(jnp.stack(found)) if found else jnp.asarray(True)


def kept(good: jax.typing.ArrayLike, new: Tree, old: Tree) -> Tree:
    """`new` where a step was good, else `old`, of the same structure."""
    return jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old)


def after_step(good: jax.Array, new: Tree, old: Tree) -> Tree:
    """A worker's state after a step: `new`, or where the step was not `good`, `old`.

    Except that all workers accumulate in step: an `optax.MultiStepsState` counts steps
    that its worker missed. And a state that belongs to the point where its worker last
    was says, by a method `after_absence`, what is left of it: the others have moved on.
    """

    def is_special(node):
        return isinstance(node, optax.MultiStepsState) or hasattr(node, "after_absence")

    def of_node(new, old):
        if isinstance(new, optax.MultiStepsState):
            begun = new.mini_step == 0  # So that what is accumulated starts anew.
            zeros = jax.tree.map(jnp.zeros_like, old.acc_grads)
            left = kept(begun, zeros, old.acc_grads)
            return new._replace(
                inner_opt_state=after_step(
                    good, new.inner_opt_state, old.inner_opt_state
                ),
                acc_grads=kept(good, new.acc_grads, left),
                skip_state=kept(good, new.skip_state, old.skip_state),
            )
        left = old.after_absence() if hasattr(old, "after_absence") else old
        return kept(good, new, left)

    return jax.tree.map(of_node, new, old, is_leaf=is_special)


def zeros_of_one(leaf: jax.Array) -> jax.Array:
    """Zeros like one row of a leaf `[m, ...]`, which is not read for it."""
    return jnp.zeros(leaf.shape[1:], jax.dtypes.canonicalize_dtype(leaf.dtype))


def accumulator_dtype(dtype) -> Any:
    """What is computed in: float32, or wider where the leaf is wider."""
    # NumPy's: that of jax.numpy refuses under jax_numpy_dtype_promotion="strict".
    return jax.dtypes.canonicalize_dtype(np.promote_types(dtype, np.float32))


def of_present(rows: Tree, present: jax.Array | None) -> Tree:
    """Rows `[h, ...]`, those of absent workers replaced by the others' in turn.

    Args:
      rows: of the first h workers.
      present: `[m]`, or None for all.
    """
    if present is None:
        return rows
    there = present[: jax.tree.leaves(rows)[0].shape[0]]
    places = jnp.arange(there.size)
    others = jnp.argsort(~there, stable=True)[places % jnp.maximum(jnp.sum(there), 1)]
    index = jnp.where(there, places, others)
    return jax.tree.map(lambda x: x[index], rows)

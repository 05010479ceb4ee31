"""What the transformations share: counts, coefficients and the checks of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax


def zero_count() -> jax.Array:
    """The count before the first step."""
    return jnp.zeros([], jnp.int32)


def next_count(count: jax.Array) -> jax.Array:
    """The count after a step; it stops at the largest integer."""
    return jnp.asarray(optax.safe_increment(count))


def step_number(count: jax.Array) -> jax.Array:
    """The paper's t = 1, 2, ... as a float."""
    return count.astype(jnp.result_type(float)) + 1


def value_at(value: optax.ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """A number or schedule as a float scalar."""
    value = jnp.asarray(
        value(count) if callable(value) else value, jnp.result_type(float)
    )
    if value.ndim:
        raise ValueError(f"a coefficient must be a scalar, got shape {value.shape}")
    return value


def accumulator(leaf: Any) -> Any:
    """The dtype to compute in."""
    return jnp.float64 if jnp.result_type(leaf) == jnp.float64 else jnp.float32


def cast_like(tree: Any, like: Any) -> Any:
    """The tree with the dtypes of another."""
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(y.dtype), tree, like)


def check_value(
    owner: str, name: str, value: Any, requirement: str, holds: Callable[[Any], bool]
) -> None:
    """Raises if a number is out of range; schedules and tracers cannot be checked."""
    if value is None or callable(value) or isinstance(value, jax.core.Tracer):
        return
    numbers = (int, float, np.number, np.ndarray, jax.Array)
    if isinstance(value, bool) or not isinstance(value, numbers) or np.ndim(value):
        raise TypeError(f"{owner} needs {requirement}, got {name}={value!r}")
    if not holds(float(value)):
        raise ValueError(f"{owner} needs {requirement}, got {name}={value}")


def check_floating(owner: str, tree: Any) -> None:
    """Raises if a leaf is not floating-point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = jax.tree_util.keystr(path) or "the root"
            raise TypeError(
                f"{owner} needs real floating-point leaves, got {dtype} at {where}"
            )


def check_alike(owner: str, what: str, tree: Any, like: Any) -> None:
    """Raises unless two trees agree in structure and shapes: nothing may broadcast."""
    got, want = jax.tree.map(jnp.shape, tree), jax.tree.map(jnp.shape, like)
    same = jax.tree.structure(tree) == jax.tree.structure(like)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=False)
    if not same or any(jnp.shape(x) != jnp.shape(y) for x, y in pairs):
        raise ValueError(
            f"{owner} needs {what} to have the structure and shapes {want}, got {got}"
        )

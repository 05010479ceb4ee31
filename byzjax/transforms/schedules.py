"""Coefficients over time: counts, schedules, those of the CTMA authors' code.

Steps are counted t = 1, 2, ... as in the papers; a schedule receives optax's 0-based
count, t - 1.
"""

import jax
import jax.numpy as jnp
import jax.typing
import numpy as np
import optax

# Python's round on Python's floats: NumPy's and float32 rounding decide some entries
# differently (1/80 among them).
# Both have long reached their floor where the tables end.
_AUTHORS_BETA = np.array([max(round(1 / t, 3), 0.01) for t in range(1, 129)])
_AUTHORS_MIXING = np.array(
    [max(round(t / sum(range(1, t + 1)), 3), 0.01) for t in range(1, 257)]
)


def authors_beta(count: jax.typing.ArrayLike) -> jax.Array:
    """Schedule max(round(1/t, 3), 0.01) of the 0-based count, t = count + 1.

    Example:
      >>> from byzjax.transforms import authors_beta
      >>> print(authors_beta(0), authors_beta(2), authors_beta(10**6))
      1.0 0.333 0.01
    """
    return _lookup("authors_beta", _AUTHORS_BETA, count)


def authors_mixing(count: jax.typing.ArrayLike) -> jax.Array:
    """Schedule max(round(t / (1 + ... + t), 3), 0.01) of the 0-based count t - 1.

    Example:
      >>> from byzjax.transforms import authors_mixing
      >>> print(authors_mixing(0), authors_mixing(1), authors_mixing(10**6))
      1.0 0.667 0.01
    """
    return _lookup("authors_mixing", _AUTHORS_MIXING, count)


def _lookup(name: str, table: np.ndarray, count: jax.typing.ArrayLike) -> jax.Array:
    """Entry of a constant table, the last one past its end."""
    if not isinstance(count, jax.Array):
        count = np.asarray(count)
        if count.dtype.kind in "iu" and not np.all(count >= 0):
            raise ValueError(f"{name} needs count >= 0, got count={count}")
    if not jnp.issubdtype(count.dtype, jnp.integer):
        raise TypeError(f"{name} needs count to be an int, got count={count!r}")
    return jnp.take(jnp.asarray(table, jnp.result_type(float)), count, mode="clip")


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

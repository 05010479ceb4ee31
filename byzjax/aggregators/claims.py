"""Weights that workers claim, and masks of those who are absent: who takes them.

Weights are as untrusted as gradients are, so a bad one counts as none.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.core
import jax.numpy as jnp
import jax.typing
import numpy as np

from byzjax import checks, loops
from byzjax.numerics.stacked import inverse, power_of_two
from byzjax.trees import accumulator_dtype


def refuse_weights(name: str, weights: jax.Array | None) -> None:
    """Says by name that a rule has no published weighted form."""
    if weights is not None:
        raise ValueError(
            f"{name} has no weighted form, got weights of shape "
            f"{jnp.shape(weights)}: rules that take weights are mean, median, "
            "trimmed_mean, geometric_median and ctma over these"
        )


def refuse_absent(name: str, lifted: str) -> NoReturn:
    """Says by name that a rule has no form for absent workers.

    Args:
      name: the rule's.
      lifted: how a rule that one lifts oneself gets one.
    """
    raise ValueError(
        f"{name} has no form for absent workers, got present: give it the rows of "
        "those present alone, or another rule; one of your own has a form for them if "
        f"{lifted}"
    )


def num_present(m: int, present: jax.Array | None) -> int | jax.Array:
    """How many of m workers there are: m, or an integer array under a mask."""
    return m if present is None else jnp.sum(present)


def check_weights(
    name: str, weights: jax.Array | None, m: int, present: jax.Array | None = None
) -> jax.Array | None:
    """Checks weights `[m]`; a worker whose weight is negative or not finite gets zero.

    Weights are claims of the workers as much as gradients are, so a bad one must not
    poison the rest. They are scaled by a power of two, which no rule can tell, so that
    the largest is from 1 to 2 and their sum finite: counts stay what they are to each
    other. Where no worker has a weight, all count the same. Of workers that are not
    `present` the weight is zero.

    Floats, integers, as sample counts are, and bools, which count as 0 and 1.
    """
    return None if weights is None else checked_weights(name, weights, m, present)


def checked_weights(
    name: str,
    weights: jax.typing.ArrayLike,
    m: int,
    present: jax.Array | None = None,
) -> jax.Array:
    """`check_weights` of weights that are given."""
    weights = real_weights(name, weights, m)
    if present is not None:
        weights = jnp.where(present, weights, 0)
    # First out of the range where the reciprocal of the largest would underflow.
    weights = weights * jnp.where(jnp.max(weights) > 1, 2.0**-64, 2.0**64)
    largest = jnp.max(weights)
    equal = 1 if present is None else present.astype(weights.dtype)
    # No quotient: rounded, half of the total would be a little more or less.
    scaled = weights * inverse(power_of_two(largest))
    return jnp.where(largest > 0, scaled, equal)


def real_weights(name: str, weights: jax.typing.ArrayLike, m: int) -> jax.Array:
    """Weights [m] as floats, those that are negative or not finite zero."""
    # NumPy's keep their width until they are floats: 2**40 samples fit no int32.
    given = weights if isinstance(weights, jax.Array) else np.asarray(weights)
    if given.shape != (m,):
        raise ValueError(
            f"{name} needs weights of shape (num_workers,) = ({m},), got {given.shape}"
        )
    kinds = jnp.floating, jnp.integer, jnp.bool_
    if not any(jnp.issubdtype(given.dtype, kind) for kind in kinds):
        raise TypeError(
            f"{name} needs weights that are real numbers, got dtype {given.dtype}"
        )
    with np.errstate(over="ignore"):
        weights = jnp.asarray(given.astype(accumulator_dtype(given.dtype)))
    return jnp.where(jnp.isfinite(weights) & (weights > 0), weights, 0)


def equal_weights_are_none(update: Callable[..., Any]) -> Callable[..., Any]:
    """An `update` that does exactly without weights what it does with equal ones.

    Else sums in another order, and cuts between rows, would round otherwise.
    """

    @functools.wraps(update)
    def either(updates, state, params=None, *, weights=None, present=None, **extra):
        def without():
            return update(
                updates, state, params, weights=None, present=present, **extra
            )

        def weighted():
            return update(
                updates, state, params, weights=weights, present=present, **extra
            )

        if weights is None:
            return without()
        m = checks.num_workers(updates)
        if np.shape(weights) != (m,):
            return weighted()  # Which refuses them by its name.
        checked = checked_weights("an aggregator", weights, m, present)
        equal = checked == jnp.max(checked)
        equal = jnp.all(equal if present is None else equal | ~present)
        if not isinstance(equal, jax.core.Tracer):  # Run operation by operation.
            jax.eval_shape(weighted)  # Which refuses weights whatever they are.
            return without() if equal else weighted()
        return loops.cond(equal, without, weighted)

    return either

"""Loops on CPUs and elsewhere: what makes XLA:CPU run one on all cores."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def on_all_cores(i: jax.Array) -> jax.Array:
    """The counter of a loop, by a sort on a CPU, to be used in place of it.

    XLA makes one kernel of a small loop, for one core, and since jax 0.12 of any loop,
    unless there is something in it that such a kernel cannot do, as a sort
    (`xla_cpu_small_call` in the compiled program).
    """

    def by_sort(i):
        return lax.sort(jnp.stack([i, i + 1]))[0]

    return lax.platform_dependent(i, cpu=by_sort, default=lambda i: i)


def by_platform(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args, on_cpu=)`, which is chosen when a program is lowered."""
    return lax.platform_dependent(
        *args,
        cpu=functools.partial(function, on_cpu=True),
        default=functools.partial(function, on_cpu=False),
    )

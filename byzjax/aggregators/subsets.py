"""Every subset of m−f workers: exact, for as long as it is feasible.

Subsets are numbered in lexicographic order and made from their numbers inside a loop,
a chunk at a time, so neither the memory nor the program grows with how many there are.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax import checks, loops

_CHUNK = 4096


def check(name, f, most):
    """A check that there is an honest majority and that the subsets can be tried."""

    def check(m):
        checks.minority(name, f)(m)
        subsets = math.comb(m, f)
        if not subsets <= most:
            raise ValueError(
                f"{name} needs at most {most} subsets to try, got {subsets}: "
                f"num_workers={m} choose num_byzantine={f}"
            )

    return check


def best(m, count, cost, dtype):
    """Marks [m] the first subset of `count` workers of least cost with 1.0.

    Args:
      m: number of workers.
      count: how many make a subset.
      cost: subsets `[m, c]`, bool → costs `[c]`, not NaN; not differentiated.
      dtype: of the costs.
    """
    total = math.comb(m, count)
    chunk = min(total, _CHUNK)

    def step(i, carry):
        best, number = carry
        numbers = i * chunk + jnp.arange(chunk, dtype=jnp.int32)
        costs = lax.stop_gradient(cost(_subsets(m, count, numbers)))
        costs = jnp.where(numbers < total, costs, jnp.inf)
        at = jnp.argmin(costs)
        better = costs[at] < best
        return (
            jnp.where(better, costs[at], best),
            jnp.where(better, numbers[at], number),
        )

    start = jnp.asarray(jnp.inf, dtype), jnp.int32(0)
    _, number = loops.fori_loop(0, -(-total // chunk), step, start)
    return _subsets(m, count, number[None])[:, 0].astype(dtype)


def _subsets(m, count, numbers):
    """The subsets of these numbers in lexicographic order, bool `[m, c]`."""
    # How many subsets begin with worker i when k more are wanted; none when k = 0.
    begin = np.array(
        [
            [math.comb(m - 1 - i, k - 1) if k else 0 for k in range(count + 1)]
            for i in range(m)
        ]
    )
    begin = jnp.asarray(np.minimum(begin, np.iinfo(np.int32).max), jnp.int32)

    def step(carry, begin):
        number, wanted = carry
        skipped = begin[wanted]
        taken = number < skipped
        number = jnp.where(taken, number, number - skipped)
        return (number, wanted - taken.astype(jnp.int32)), taken

    start = numbers, jnp.full(numbers.shape, count, jnp.int32)
    return loops.scan(step, start, begin)[1]


def indices(members, count):
    """Subsets `[m, c]`, bool, as their workers in order, `[c, count]`."""
    place = jnp.cumsum(members, axis=0) - 1  # [m, c]
    wanted = np.arange(count)[None, :, None]
    hit = members[:, None, :] & (place[:, None, :] == wanted)  # [m, count, c]
    workers = np.arange(members.shape[0])[:, None, None]
    return jnp.sum(jnp.where(hit, workers, 0), axis=0).T

"""Order statistics of few rows: a sorting network of elementwise minima and maxima.

Pruned to the ranks that are wanted, it fuses into one pass over the stack. It grows as
m·log²m, and so does its program.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from byzjax.numerics._reductions import larger, smaller


@functools.cache
def _batcher(m: int, ranks: tuple[int, ...]) -> tuple[tuple[int, int, bool, bool], ...]:
    """Batcher's odd-even merge sort for m rows, pruned to the wanted ranks.

    Returns:
      Comparators (i, j, low, high) in order: row i takes the minimum if `low`, row j
      the maximum if `high`; a half that nobody reads is left out.
    """
    comparators = []
    p = 1
    while p < m:
        k = p
        while k >= 1:
            for j in range(k % p, m - k, 2 * k):
                for i in range(min(k, m - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        comparators.append((i + j, i + j + k))
            k //= 2
        p *= 2
    needed = set(ranks)
    kept = []
    for i, j in reversed(comparators):
        low, high = i in needed, j in needed
        if low or high:
            kept.append((i, j, low, high))
            needed |= {i, j}
    return tuple(reversed(kept))


def by_network(values: list[jax.Array], ranks: tuple[int, ...]) -> list[jax.Array]:
    """The values of the given ranks, by a network; nothing may be NaN.

    On a GPU a minimum is one operation as well, and twice as many operations would take
    ten times as long to compile.
    """

    def on_cpu(values):
        return _compared(values, ranks, smaller, larger)

    def elsewhere(values):
        return _compared(values, ranks, jnp.minimum, jnp.maximum)

    return lax.platform_dependent(values, cpu=on_cpu, default=elsewhere)


def _compared(values, ranks, smaller, larger):
    values = list(values)
    for i, j, low, high in _batcher(len(values), ranks):
        a, b = values[i], values[j]
        if low:
            values[i] = smaller(a, b)
        if high:
            values[j] = larger(a, b)
    return [values[rank] for rank in ranks]

"""Order statistics where every row has a weight."""

import jax
import jax.numpy as jnp

from byzjax import loops
from byzjax.numerics._reductions import as_number, column, nan_last, row_sum


def weighted_median(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """The first value in sorted order whose cumulative weight exceeds one half."""
    half = jnp.sum(weights) / 2
    reached = _weight_up_to(rows, weights)
    # The smallest value that reaches half; compared as values, so ties are no matter.
    values = nan_last(rows)
    far = jnp.asarray(jnp.inf, rows.dtype)
    return jnp.min(jnp.where(reached > half, values, far), axis=0)


def weighted_trimmed_mean(
    rows: jax.Array,
    weights: jax.Array,
    trim: int,
    present: jax.Array | None = None,
) -> jax.Array:
    """The mean of the weight left when `trim` of m parts of it are cut at each end.

    Of n parts where n rows are present; the weights of others are zero.
    """
    m = rows.shape[0]
    parts = m if present is None else as_number(jnp.sum(present), rows.dtype)
    total = jnp.sum(weights)
    low = total * trim / parts
    high = total - low
    end = _weight_up_to(rows, weights, break_ties=True)
    start = end - column(weights, rows)
    kept = jnp.minimum(end, high) - jnp.maximum(start, low)
    kept = without_slivers(kept, jnp.minimum(start - low, high - end), total)
    values = jnp.where(kept > 0, nan_last(rows), 0)
    terms = [kept[i] * values[i] for i in range(m)]
    return row_sum(terms) / row_sum([kept[i] for i in range(m)])


def without_slivers(kept: jax.Array, inside: jax.Array, total: jax.Array) -> jax.Array:
    """Parts `[m, ...]` of a total weight, 0 where they may be left by rounding only.

    A row that is cut has no weight at all: it may be infinite. A light one is no sliver
    if it lies well inside of what is kept, by `inside` `[m, ...]`.
    """
    rounding = kept.shape[0] * jnp.finfo(kept.dtype).eps * total
    return jnp.where((kept > rounding) | (inside > rounding), kept, 0)


def _weight_up_to(
    rows: jax.Array, weights: jax.Array, *, break_ties: bool = False
) -> jax.Array:
    """For every value the total weight of the values not above it, `[m, ...]`.

    With `break_ties`, equal values are ordered by row, so every value has a place of
    its own in the order.
    """
    values = nan_last(rows)
    index = column(jnp.arange(rows.shape[0]), rows)

    def add(total, item):
        value, weight, at = item
        below = value[None] < values
        tie = value[None] == values
        if break_ties:
            tie &= at <= index
        return total + jnp.where(below | tie, weight, 0), None

    items = (values, weights, jnp.arange(rows.shape[0]))
    return loops.scan(add, jnp.zeros_like(values), items)[0]

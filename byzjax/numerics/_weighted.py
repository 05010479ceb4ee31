"""Order statistics where every row has a weight."""

import jax
import jax.numpy as jnp

from byzjax import loops
from byzjax.numerics._reductions import (
    as_number,
    column,
    nan_last,
    row_sum,
    sum_of_rows,
)

# Sums of so many weights are plain: they are off by less than any that matters. Those
# of more keep what rounding takes, at up to twice the time, and are right to a place.
_FEW = 128
_ROUNDINGS = 8  # What is off of a cut between such sums, in last places of the total.


def weighted_median(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """The first value in sorted order whose cumulative weight exceeds one half."""
    half = cumulative(weights)[-1] / 2
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
    total = cumulative(weights)[-1]
    low = total * trim / parts
    high = total - low
    end = _weight_up_to(rows, weights, break_ties=True)
    start = end - column(weights, rows)
    kept = jnp.minimum(end, high) - jnp.maximum(start, low)
    kept = without_slivers(kept, jnp.minimum(start - low, high - end), total)
    values = jnp.where(kept > 0, nan_last(rows), 0)
    if m > _FEW:
        return sum_of_rows(kept * values) / sum_of_rows(kept)
    terms = [kept[i] * values[i] for i in range(m)]
    return row_sum(terms) / row_sum([kept[i] for i in range(m)])


def without_slivers(kept: jax.Array, inside: jax.Array, total: jax.Array) -> jax.Array:
    """Parts `[m, ...]` of a `cumulative` weight, 0 where rounding may have left them.

    A row that is cut has no weight at all: it may be infinite. A light one is no sliver
    if it lies well inside of what is kept, by `inside` `[m, ...]`.
    """
    m = kept.shape[0]
    places = m if m <= _FEW else _ROUNDINGS
    rounding = places * jnp.finfo(kept.dtype).eps * total
    return jnp.where((kept > rounding) | (inside > rounding), kept, 0)


def cumulative(weights: jax.Array) -> jax.Array:
    """The sums of the first 1, 2, …, m weights, of many each to its last place."""
    if len(weights) <= _FEW:
        return jnp.cumsum(weights)

    def add(carry, weight):
        total, lost = _added(carry[0], carry[1], weight)
        return (total, lost), total + lost

    zero = jnp.zeros((), weights.dtype)
    return loops.scan(add, (zero, zero), weights)[1]


def _added(total, lost, term):
    """A sum and what rounding took from it so far, after one more term (Knuth)."""
    new = total + term
    of_term = new - total
    return new, lost + ((total - (new - of_term)) + (term - of_term))


def _weight_up_to(
    rows: jax.Array, weights: jax.Array, *, break_ties: bool = False
) -> jax.Array:
    """For every value the total weight of the values not above it, `[m, ...]`.

    With `break_ties`, equal values are ordered by row, so every value has a place of
    its own in the order.
    """
    values = nan_last(rows)
    index = column(jnp.arange(rows.shape[0]), rows)

    m = rows.shape[0]
    few = m <= _FEW

    def add(carry, item):
        total, lost = carry
        value, weight, at = item
        below = value[None] < values
        tie = value[None] == values
        if break_ties:
            tie &= at <= index
        term = jnp.where(below | tie, weight, 0)
        return ((total + term, None) if few else _added(total, lost, term)), None

    items = (values, weights, jnp.arange(m))
    nothing = jnp.zeros_like(values)
    total, lost = loops.scan(add, (nothing, None if few else nothing), items)[0]
    return total if few else total + lost

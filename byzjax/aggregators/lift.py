"""From a few lines of mathematics to an aggregator: the two families and the mixings.

* `coordinatewise(name, reduce)`: a function of one leaf, along axis 0.
* `geometric(name, weigh)`: weights of the workers from their m×m geometry.
* `premixed(name, base, matrix)`: any rule after a linear mixing of the workers, and
  `prescaled(name, base, factors)` after a scaling of each.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.typing
import numpy as np
import optax

from byzjax import base, checks, loops
from byzjax.base import Aggregator, accumulator_dtype
from byzjax.numerics import stacked


def refuse_weights(name: str, weights: jax.Array | None) -> None:
    """Says by name that a rule has no published weighted form."""
    if weights is not None:
        raise ValueError(
            f"{name} has no weighted form, got weights of shape "
            f"{jnp.shape(weights)}: rules that take weights are mean, median, "
            "trimmed_mean, geometric_median and ctma over these"
        )


def check_weights(name: str, weights: jax.Array | None, m: int) -> jax.Array | None:
    """Checks weights `[m]`; a worker whose weight is negative or not finite gets zero.

    Weights are claims of the workers as much as gradients are, so a bad one must not
    poison the rest. The largest is scaled to one, which no rule can tell, so that their
    sum is finite. Where no worker has a weight, all count the same.

    Floats, integers, as sample counts are, and bools, which count as 0 and 1.
    """
    return None if weights is None else checked_weights(name, weights, m)


def checked_weights(name: str, weights: jax.typing.ArrayLike, m: int) -> jax.Array:
    """`check_weights` of weights that are given."""
    # NumPy's keep their width until they are floats: 2**40 samples fit no int32.
    given = weights if isinstance(weights, jax.Array) else np.asarray(weights)
    if given.shape != (m,):
        raise ValueError(
            f"{name} needs weights of shape (num_workers,) = ({m},), got {given.shape}"
        )
    kinds = jnp.floating, jnp.integer, jnp.bool_
    if not any(jnp.issubdtype(given.dtype, kind) for kind in kinds):
        raise TypeError(f"{name} needs weights that are real, got {given.dtype}")
    with np.errstate(over="ignore"):
        weights = jnp.asarray(given.astype(accumulator_dtype(given.dtype)))
    weights = jnp.where(jnp.isfinite(weights) & (weights > 0), weights, 0)
    # First out of the range where the reciprocal of the largest would underflow.
    weights = weights * jnp.where(jnp.max(weights) > 1, 2.0**-64, 2.0**64)
    largest = jnp.max(weights)
    return jnp.where(largest > 0, weights / jnp.where(largest > 0, largest, 1), 1)


def equal_weights_are_none(update: Callable[..., Any]) -> Callable[..., Any]:
    """An `update` that does exactly without weights what it does with equal ones.

    Else sums in another order, and cuts between rows, would round otherwise.
    """

    @functools.wraps(update)
    def either(updates, state, params=None, *, weights=None, **extra):
        def without():
            return update(updates, state, params, weights=None, **extra)

        def weighted():
            return update(updates, state, params, weights=weights, **extra)

        if weights is None:
            return without()
        m = checks.num_workers(updates)
        if np.shape(weights) != (m,):
            return weighted()  # Which refuses them by its name.
        equal = jnp.all(checked_weights("weights", weights, m) == 1)
        if not isinstance(equal, jax.core.Tracer):  # Run operation by operation.
            jax.eval_shape(weighted)  # Which refuses weights whatever they are.
            return without() if equal else weighted()
        return loops.cond(equal, without, weighted)

    return either


def coordinatewise(
    name: str,
    reduce: Callable[..., jax.Array],
    *,
    check: base.Check | None = None,
    weighted: bool = False,
    by_rank: bool = False,
) -> Aggregator:
    """Lifts a function of one leaf to an aggregator.

    Args:
      name: for error messages.
      reduce: `[m, ...]` → `[...]`, in at least float32; called with `weights` `[m]` as
        a second argument when the rule is weighted and weights are given.
      check: raises if the rule cannot serve m workers.
      weighted: whether `reduce` takes weights.
      by_rank: whether `reduce`, without weights, is a mean of the sorted values with
        weights of their ranks alone.
    """

    def update(updates, state, params=None, *, weights=None, **extra):
        m = checks.num_workers(updates)
        if check is not None:
            check(m)
        if not weighted:
            refuse_weights(name, weights)
        checked = check_weights(name, weights, m)

        return stacked.along_workers(reduce, updates, checked), state

    def checked_reduce(rows):
        if check is not None:
            check(rows.shape[0])
        return reduce(rows)

    if weighted:
        update = equal_weights_are_none(update)
    return Aggregator(
        optax.init_empty_state, update, reduce=checked_reduce, by_rank=by_rank
    )


def geometric(
    name: str,
    weigh: Callable[..., jax.Array],
    *,
    check: base.Check | None = None,
    weighted: bool = False,
    distances: bool = True,
    keeps: Callable[[int], int] | None = None,
) -> Aggregator:
    """Lifts a weighting of the workers to an aggregator: out = Σ weigh(geometry)_i x_i.

    Args:
      name: for error messages.
      weigh: `Geometry` → weights `[m]`, or (`Geometry`, weights `[m]` or None) → `[m]`
        for a weighted rule.
      check: raises if the rule cannot serve m workers.
      weighted: whether `weigh` takes weights.
      distances: whether `weigh` reads distances between workers; if not, it is given a
        geometry of norms alone where that saves the pass for them.
      keeps: m → how many workers have a weight at most, if fewer than m.
    """

    def full(geometry, /, *, key=None, weights=None):
        m = geometry.num_workers
        if check is not None:
            check(m)
        if not weighted:
            refuse_weights(name, weights)
            return weigh(geometry)
        return weigh(geometry, check_weights(name, weights, m))

    return from_weigh(full, distances=distances, keeps=keeps)


def from_weigh(
    weigh: base.Weigh,
    *,
    distances: bool = True,
    keeps: Callable[[int], int] | None = None,
) -> Aggregator:
    """An aggregator from a full `weigh(geometry, key=, weights=)`; see `geometric`."""

    def update(updates, state, params=None, *, key=None, weights=None, **extra):
        geometry = (stacked.geometry if distances else stacked.norms)(updates)
        shares = weigh(geometry, key=key, weights=weights)
        # Whatever a rule says of it, a row that is not finite never enters the sum.
        shares = jnp.where(geometry.finite, shares, 0)
        at_most = keeps(geometry.num_workers) if keeps and weights is None else None
        return stacked.weighted_sum(updates, shares, at_most=at_most), state

    return Aggregator(
        optax.init_empty_state,
        equal_weights_are_none(update),
        weigh=weigh,
        distances=distances,
    )


def premixed(
    name: str,
    rule: Aggregator,
    matrix: Callable[..., jax.Array],
    *,
    check: base.Check | None = None,
    sizes: Callable[[int], list[int]] | None = None,
    random: bool = False,
    distances: bool = True,
) -> Aggregator:
    """A rule applied to y = W x, with W decided by the geometry of x.

    Over a geometric rule the mixing happens in the geometry, and the whole is geometric
    again. A rule by coordinates is fused with the mixing, or given blocks of it; the
    mixed stack is formed for other rules only.

    Args:
      name: for error messages.
      rule: the base.
      matrix: `Geometry` → W `[n, m]`; called with a key as second argument if `random`.
      check: raises if the wrapper cannot serve m workers.
      sizes: m → of how many rows each row of W is the mean, if all are means.
      random: whether `matrix` takes a key.
      distances: whether `matrix` reads distances between workers; if not, it is given
        a geometry of norms alone where that saves the pass for them.
    """
    base.check_aggregator(name, rule)

    def mixing(geometry, key):
        if check is not None:
            check(geometry.num_workers)
        if not random:
            return matrix(geometry), key
        own, inner = jax.random.split(checks.key(name, key))
        return matrix(geometry, own), inner

    if rule.weigh is not None:
        base_weigh = rule.weigh

        def weigh(geometry, /, *, key=None, weights=None):
            refuse_weights(name, weights)
            w, key = mixing(geometry, key)
            mixed = geometry.mixed(w)
            shares = base_weigh(mixed, key=key, weights=None)
            return jnp.matmul(
                jnp.where(mixed.finite, shares, 0),
                w,
                precision=jax.lax.Precision.HIGHEST,
            )

        return from_weigh(weigh)

    def update(updates, state, params=None, *, key=None, weights=None, **extra):
        refuse_weights(name, weights)
        measure = stacked.geometry if distances else stacked.norms
        geometry = measure(updates)
        w, key = mixing(geometry, key)
        finite = geometry.mixed_finite(w)
        means = None if sizes is None else sizes(geometry.num_workers)
        mixed = stacked.mix(updates, w, finite, sizes=means, reduce=rule.reduce)
        if rule.reduce is not None:
            return mixed, state
        return rule.update(mixed, state, params, key=key, **extra)

    return Aggregator(rule.init, update, takes=rule.takes)


def prescaled(
    name: str,
    rule: Aggregator,
    factors: Callable[[stacked.Geometry], jax.Array],
    *,
    check: base.Check | None = None,
) -> Aggregator:
    """A rule applied to y_i = s_i x_i, with s decided by the norms of x.

    Args:
      name: for error messages.
      rule: the base.
      factors: `Geometry`, perhaps of norms alone → s `[m]`, 0 for rows that are not
        finite, at most 1.
      check: raises if the wrapper cannot serve m workers.
    """
    base.check_aggregator(name, rule)

    def scaling(geometry, weights):
        refuse_weights(name, weights)
        if check is not None:
            check(geometry.num_workers)
        return factors(geometry)

    if rule.weigh is not None:
        base_weigh = rule.weigh

        def weigh(geometry, /, *, key=None, weights=None):
            s = scaling(geometry, weights)
            scaled = geometry.scaled(s)
            shares = base_weigh(scaled, key=key, weights=None)
            return jnp.where(scaled.finite, shares, 0) * s

        return from_weigh(weigh, distances=rule.distances)

    def update(updates, state, params=None, *, key=None, weights=None, **extra):
        s = scaling(stacked.norms(updates), weights)
        scaled = stacked.scale(updates, s)
        return rule.update(scaled, state, params, key=key, **extra)

    return Aggregator(rule.init, update, takes=rule.takes)


def clipped_mean(
    member: jax.Array, geometry: stacked.Geometry, max_norm: jax.Array
) -> jax.Array:
    """Weights [m] of the mean of the members, each clipped to a norm of `max_norm`."""
    member = member.astype(geometry.norms.dtype)
    return stacked.normalized(member) * geometry.clip_factors(max_norm)

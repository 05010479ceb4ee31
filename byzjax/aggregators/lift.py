"""From a few lines of mathematics to an aggregator: the two families and the mixings.

* `coordinatewise(name, reduce)`: a function of one leaf, along axis 0.
* `geometric(name, weigh)`: weights of the workers from their m×m geometry.
* `premixed(name, base, matrix)`: any rule after a linear mixing of the workers, and
  `prescaled(name, base, factors)` after a scaling of each.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.typing
import optax

from byzjax import base, checks
from byzjax.aggregators import bearing, claims
from byzjax.base import Aggregator
from byzjax.numerics import stacked


def coordinatewise(
    name: str,
    reduce: Callable[..., jax.Array],
    *,
    check: base.Check | None = None,
    bears: Callable[[int], int] | None = None,
    weighted: bool = False,
) -> Aggregator:
    """Lifts a function of one leaf to an aggregator.

    Args:
      name: for error messages.
      reduce: `[m, ...]` → `[...]`, in at least float32; called with `weights` `[m]` as
        a second argument when the rule is weighted and weights are given, and with
        `present=` `[m]` of bools when some rows may be absent, if it takes that.
      check: raises if the rule cannot serve m workers.
      bears: m → how many Byzantine workers it bears at most, such as `lambda m: f`, so
        that a meta-rule that is told more refuses it; None if nothing is known.
      weighted: whether `reduce` takes weights.
    """
    _check_lifted(name, reduce)

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        m = checks.num_workers(updates)
        if not weighted:
            claims.refuse_weights(name, weights)
        checked = claims.check_weights(name, weights, m, present)
        of_rows = functools.partial(reduced, present=present)
        return stacked.along_workers(of_rows, updates, checked), state

    def reduced(rows, *weights, present=None):
        if present is None:
            found = reduce(rows, *weights)
        elif "present" not in inspect.signature(reduce).parameters:
            claims.refuse_absent(name, "its reduce takes present, bools [m]")
        else:
            found = reduce(rows, *weights, present=present)
        _check_shape(name, "its reduce to return rows", found, rows.shape[1:])
        return found

    if weighted:
        update = claims.equal_weights_are_none(update)
    return Aggregator(
        optax.init_empty_state, update, check=check, bears=bears, reduce=reduced
    )


def geometric(
    name: str,
    weigh: Callable[..., jax.Array],
    *,
    check: base.Check | None = None,
    bears: Callable[[int], int] | None = None,
    weighted: bool = False,
    absent: bool = False,
    distances: bool = True,
    keeps: Callable[[int], int] | None = None,
) -> Aggregator:
    """Lifts a weighting of the workers to an aggregator: out = Σ weigh(geometry)_i x_i.

    Args:
      name: for error messages.
      weigh: `Geometry` → weights `[m]`, or (`Geometry`, weights `[m]` or None) → `[m]`
        for a weighted rule.
      check: raises if the rule cannot serve m workers.
      bears: m → how many Byzantine workers it bears at most; see `coordinatewise`.
      weighted: whether `weigh` takes weights.
      absent: whether `weigh` counts `geometry.num_present` workers, not `num_workers`,
        and so serves rows that are absent.
      distances: whether `weigh` reads distances between workers; if not, it is given a
        geometry of norms alone where that saves the pass for them.
      keeps: m → how many workers have a weight at most, if fewer than m.
    """
    _check_lifted(name, weigh)

    def full(geometry, /, *, key=None, weights=None):
        if geometry.present is not None and not absent:
            claims.refuse_absent(
                name,
                "its weigh counts geometry.num_present workers, and is lifted with "
                "absent=True",
            )
        m, present = geometry.num_workers, geometry.present
        if weighted:
            own = claims.check_weights(name, weights, m, present)
            found = weigh(geometry, own)
        else:
            claims.refuse_weights(name, weights)
            found = weigh(geometry)
        _check_shape(name, "its weigh to return weights", found, (m,))
        return found

    return from_weigh(full, check=check, bears=bears, distances=distances, keeps=keeps)


def from_weigh(
    weigh: base.Weigh,
    *,
    check: base.Check | None = None,
    trusted: tuple[int, ...] = (),
    bears: Callable[[int], int] | None = None,
    distances: bool = True,
    keeps: Callable[[int], int] | None = None,
) -> Aggregator:
    """An aggregator from a full `weigh(geometry, key=, weights=)`; see `geometric`."""

    def update(
        updates, state, params=None, *, key=None, weights=None, present=None, **extra
    ):
        measure = stacked.geometry if distances else stacked.norms
        geometry = measure(updates, present=present)
        shares = weigh(geometry, key=key, weights=weights)
        # Whatever a rule says of it, a row that is not finite never enters the sum.
        shares = jnp.where(geometry.finite, shares, 0)
        at_most = keeps(geometry.num_workers) if keeps and weights is None else None
        return stacked.weighted_sum(updates, shares, at_most=at_most), state

    return Aggregator(
        optax.init_empty_state,
        claims.equal_weights_are_none(update),
        check=check,
        trusted=trusted,
        bears=bears,
        weigh=weigh,
        distances=distances,
    )


def _check_lifted(name, function):
    if not isinstance(name, str) or not callable(function):
        raise TypeError(
            "a lift needs the name of a rule and a function, in this order, got "
            f"{name!r} and {function!r}"
        )


def _check_shape(name, what, found, shape):
    """Else it would broadcast, or fail where nobody knows of the rule."""
    if jnp.shape(found) != shape:
        raise ValueError(
            f"{name} needs {what} of shape {shape}, got shape {jnp.shape(found)}"
        )


def premixed(
    name: str,
    rule: Aggregator,
    matrix: Callable[..., jax.Array],
    *,
    check: base.Check | None = None,
    count: Callable[[Any], Any] | None = None,
    sizes: Callable[[int], list[int]] | None = None,
    bears: Callable[[int], int] | None = None,
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
      count: how many workers → how many rows of W, the first ones; None where row i of
        W is that of worker i.
      sizes: m → of how many rows each row of W is the mean, if all are means; at most
        that many when not all are present.
      bears: m → how many Byzantine workers it bears at most, if that is not the base's.
      random: whether `matrix` takes a key.
      distances: whether `matrix` reads distances between workers; if not, it is given
        a geometry of norms alone where that saves the pass for them.
    """
    bearing.check_base(name, rule)
    if count is not None and rule.trusted:
        raise ValueError(
            f"{name} needs a rule that trusts no row, got {rule!r}: its rows are means "
            "of several workers' here, and anyone's may be in the one it trusts"
        )

    def check_both(m):
        if check is not None:
            check(m)
        if count is None:
            return rule.check(m)
        try:
            rule.check(count(m))
        except ValueError as error:
            seen = f"{name} of num_workers={m} leaves its rule {count(m)} rows"
            raise ValueError(f"{seen}, and {error}") from error

    trusted, bears = rule.trusted, bears or rule.bears

    def mixing(geometry, key):
        m = geometry.num_workers
        if random:
            own, key = jax.random.split(checks.key(name, key))
            w = matrix(geometry, own)
        else:
            w = matrix(geometry)
        rows = m if count is None else count(m)
        _check_shape(name, "its matrix to return weights", w, (rows, m))
        return w, key

    def mixed_present(geometry, w):
        if geometry.present is None or count is None:
            return geometry.present
        return jnp.arange(w.shape[0]) < count(geometry.num_present)

    if rule.weigh is not None:
        base_weigh = rule.weigh

        def weigh(geometry, /, *, key=None, weights=None):
            claims.refuse_weights(name, weights)
            w, key = mixing(geometry, key)
            mixed = geometry.mixed(w, mixed_present(geometry, w))
            shares = base_weigh(mixed, key=key, weights=None)
            return jnp.matmul(
                jnp.where(mixed.finite, shares, 0),
                w,
                precision=jax.lax.Precision.HIGHEST,
            )

        return from_weigh(weigh, check=check_both, trusted=trusted, bears=bears)

    def update(
        updates, state, params=None, *, key=None, weights=None, present=None, **extra
    ):
        claims.refuse_weights(name, weights)
        measure = stacked.geometry if distances else stacked.norms
        geometry = measure(updates, present=present)
        w, key = mixing(geometry, key)
        finite = geometry.mixed_finite(w)
        means = None if sizes is None else sizes(geometry.num_workers)
        there = mixed_present(geometry, w)
        reduce = rule.reduce
        if there is not None:
            extra["present"] = there
            reduce = reduce and functools.partial(reduce, present=there)
        mixed = stacked.mix(
            updates, w, finite, sizes=means, fewer=present is not None, reduce=reduce
        )
        if reduce is not None:
            return mixed, state
        return rule.inside(mixed, state, params, key=key, **extra)

    own = {"check": check_both, "trusted": trusted, "bears": bears}
    return base.around(rule, rule.init, update, **own)


def prescaled(
    name: str,
    rule: Aggregator,
    factors: Callable[[stacked.Geometry], jax.Array],
    *,
    check: base.Check | None = None,
    bears: Callable[[int], int] | None = None,
) -> Aggregator:
    """A rule applied to y_i = s_i x_i, with s decided by the norms of x.

    Args:
      name: for error messages.
      rule: the base.
      factors: `Geometry`, perhaps of norms alone → s `[m]`, 0 for rows that are not
        finite, at most 1.
      check: raises if the wrapper cannot serve m workers.
      bears: m → how many Byzantine workers it bears at most, if that is not the base's.
    """
    bearing.check_base(name, rule)

    def check_both(m):
        if check is not None:
            check(m)
        rule.check(m)

    bears = bears or rule.bears

    def scaling(geometry, weights):
        claims.refuse_weights(name, weights)
        s = factors(geometry)
        _check_shape(name, "its factors to return numbers", s, (geometry.num_workers,))
        return s

    if rule.weigh is not None:
        base_weigh = rule.weigh

        def weigh(geometry, /, *, key=None, weights=None):
            s = scaling(geometry, weights)
            scaled = geometry.scaled(s)
            shares = base_weigh(scaled, key=key, weights=None)
            return jnp.where(scaled.finite, shares, 0) * s

        return from_weigh(
            weigh,
            check=check_both,
            trusted=rule.trusted,
            bears=bears,
            distances=rule.distances,
        )

    def update(
        updates, state, params=None, *, key=None, weights=None, present=None, **extra
    ):
        s = scaling(stacked.norms(updates, present), weights)
        scaled = stacked.scale(updates, s)
        return rule.inside(scaled, state, params, key=key, present=present, **extra)

    return base.around(rule, rule.init, update, check=check_both, bears=bears)


def clipped_mean(
    member: jax.Array, geometry: stacked.Geometry, max_norm: jax.Array
) -> jax.Array:
    """Weights [m] of the mean of the members, each clipped to a norm of `max_norm`."""
    member = member.astype(geometry.norms.dtype)
    return stacked.normalized(member) * geometry.clip_factors(max_norm)

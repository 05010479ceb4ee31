"""Anytime averaging: a step of w, and the average x where gradients are taken."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax import checks, trees
from byzjax.transforms import schedules


class AnytimeState(NamedTuple):
    """State of `anytime`; the query point x_t is the params themselves.

    Attributes:
      count: steps taken, [], int32.
      weight_sum: alpha_{1:t} if the weight is a schedule, otherwise unused, [].
      iterate: w_t, which the wrapped optimizer moves, like params.
      inner: state of the wrapped optimizer, whose params are w_t.
    """

    count: jax.Array  # []
    weight_sum: jax.Array  # []
    iterate: optax.Params
    inner: optax.OptState


def anytime(
    optimizer: optax.GradientTransformation,
    *,
    weight: optax.ScalarOrSchedule | None = None,
    mixing: optax.ScalarOrSchedule | None = None,
    projection: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Anytime averaging of query points: the server's half of mu^2-SGD.

        w_{t+1} = projection(w_t + optimizer(alpha_t d_t))
        x_{t+1} = x_t + gamma_t (w_{t+1} - x_t),  gamma_t = alpha_{t+1} / alpha_{1:t+1}

    Params are the query point x_t, where gradients are taken and which is also the
    output; w_t lives in the state, copied in `init` so that params and state can both
    be donated. With alpha_t = t, gamma_t = 2 / (t + 2).

    The wrapped optimizer sees w_t as its params (weight decay acts on w) and alpha_t
    times the direction as its gradient. SGD thereby takes steps of growing length, as
    the theory wants; an optimizer that normalises its gradient, such as Adam, mostly
    undoes alpha_t (its epsilon and its averages still feel it): give `weight=1.0`, or
    the weights by `mixing`, to keep alpha_t out of it.

    **Guarantee**: with a projection onto a convex set K that contains the initial
    params, all w_t are in K by the projection, and all x_t by convexity if
    gamma_t <= 1: x itself is never projected. alpha_t d_t has the dtype of the leaf,
    and leaves the range of a float16 at 65 504: give such params `weight=1.0`. A
    direction that is not finite spoils the iterate for good, as in every optimizer:
    only the aggregate of a rule that bears its attackers is finite (`mu2sgd` keeps out
    what is not).

    Args:
      optimizer: any optax transformation, such as `optax.sgd(0.1)`. Extra arguments of
        `update` are passed on to it.
      weight: alpha_t > 0. None for the paper's alpha_t = t; a float; or a schedule of
        the 0-based count, whose sum is accumulated in the state.
      mixing: gamma_t in (0, 1] given directly, a float or a schedule of the 0-based
        count, in place of the ratio of weights.
      projection: maps a tree like params to its projection, for example
        `functools.partial(optax.projections.projection_l2_ball, scale=10.0)`.

    Returns:
      An optax transformation whose updates are x_{t+1} - x_t.

    Raises:
      ValueError: if weight or mixing is a number out of range; in `update`, if params
        are missing or the projection returns another tree.
      TypeError: if optimizer is no optax transformation, projection no callable, or a
        leaf not real floating point.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from byzjax.transforms import anytime
      >>> server = anytime(optax.sgd(0.3))
      >>> params = jnp.array([1.0])
      >>> state = server.init(params)
      >>> updates, state = server.update(jnp.array([1.0]), state, params)
      >>> print(state.iterate, optax.apply_updates(params, updates).round(3))
      [0.7] [0.8]

    Reference:
      Cutkosky, *Anytime Online-to-Batch Conversions, Optimism, and Acceleration*
      (arXiv 1903.00974); Dahan, Levy, *Fault Tolerant ML: Efficient Meta-Aggregation
      and Synchronous Training* (arXiv 2405.14759).
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"anytime needs an optax.GradientTransformation, got optimizer={optimizer}"
        )
    check_averaging("anytime", weight, mixing, projection)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> AnytimeState:
        checks.floating("anytime", params)
        # dtype is given so that Python floats do not become weakly typed arrays, which
        # a scan would refuse to carry.
        iterate = jax.tree.map(
            lambda p: jnp.array(p, dtype=jnp.result_type(p), copy=True), params
        )
        total = jnp.zeros([], jnp.result_type(float))
        return AnytimeState(schedules.zero_count(), total, iterate, inner.init(params))

    def mix(state: AnytimeState) -> tuple[jax.Array, jax.Array]:
        if mixing is not None:
            return schedules.value_at(mixing, state.count), state.weight_sum
        # Closed forms where there is one: nothing drifts over millions of steps.
        if weight is None:
            return 2 / (schedules.step_number(state.count) + 2), state.weight_sum
        if not callable(weight):
            return 1 / (schedules.step_number(state.count) + 1), state.weight_sum
        dtype = state.weight_sum.dtype
        total = state.weight_sum + schedules.value_at(weight, state.count).astype(dtype)
        ahead = schedules.value_at(weight, state.count + 1).astype(dtype)
        # While a warm-up's weights are all zero, x follows w.
        empty = total + ahead == 0
        gamma = ahead / jnp.where(empty, 1.0, total + ahead)
        return jnp.where(empty, 1.0, gamma), total

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "anytime needs params, the query point: update(updates, state, params)"
            )
        checks.floating("anytime", updates)
        checks.alike("anytime", "updates", updates, state.iterate)
        checks.alike("anytime", "params", params, state.iterate)
        alpha = (
            schedules.step_number(state.count)
            if weight is None
            else schedules.value_at(weight, state.count)
        )

        def scale(d):
            d, wide = jnp.asarray(d), trees.accumulator_dtype(d.dtype)
            return (alpha.astype(wide) * d.astype(wide)).astype(d.dtype)

        def move(w, u):
            wide = trees.accumulator_dtype(w.dtype)
            return (w.astype(wide) + jnp.asarray(u).astype(wide)).astype(w.dtype)

        steps, inner_state = inner.update(
            jax.tree.map(scale, updates), state.inner, state.iterate, **extra_args
        )
        iterate = jax.tree.map(move, state.iterate, steps)
        if projection is not None:
            projected = projection(iterate)
            checks.alike("anytime", "the result of projection", projected, iterate)
            iterate = optax.tree.cast_like(
                jax.tree.map(jnp.asarray, projected), iterate
            )
        gamma, total = mix(state)

        def approach(x, w):
            x, wide = jnp.asarray(x), trees.accumulator_dtype(x.dtype)
            step = gamma.astype(wide) * (w.astype(wide) - x.astype(wide))
            return step.astype(x.dtype)

        count = schedules.next_count(state.count)
        new_state = AnytimeState(count, total, iterate, inner_state)
        return jax.tree.map(approach, params, iterate), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def check_averaging(owner: str, weight: Any, mixing: Any, projection: Any) -> None:
    """Checks what `anytime` takes beside the optimizer, all of which may be None."""
    if projection is not None and not callable(projection):
        raise TypeError(f"{owner} needs a callable, got projection={projection!r}")
    if weight is not None:
        checks.coefficient(
            owner, "0 < weight < inf", lambda v: 0 < v < math.inf, weight=weight
        )
    if mixing is not None:
        checks.coefficient(
            owner, "0 < mixing <= 1", lambda v: 0 < v <= 1, mixing=mixing
        )

"""Worker and server transformations: momentum, and the two halves of mu^2-SGD.

All of them are plain optax links and know nothing of workers or aggregators: a trainer
maps `momentum` or `storm` over its workers with `jax.vmap` and gives the aggregate to
`anytime`. Alone on one machine, `mu2sgd` chains the two halves.

Steps are counted t = 1, 2, ... as in the papers; a schedule receives optax's 0-based
count, t - 1. Arithmetic is done in float32 (float64 for float64 leaves) and every leaf
keeps its dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax


class MomentumState(NamedTuple):
    """State of `momentum`."""

    count: jax.Array  # []; steps taken
    momentum: optax.Updates  # m_t, like params


class StormState(NamedTuple):
    """State of `storm`."""

    count: jax.Array  # []; steps taken
    momentum: optax.Updates  # d_t, like params


class AnytimeState(NamedTuple):
    """State of `anytime`; the query point x_t is the params themselves."""

    count: jax.Array  # []; steps taken
    weight_sum: jax.Array  # []; alpha_{1:t} if weight is a schedule, otherwise unused
    iterate: optax.Params  # w_t, like params
    inner: optax.OptState  # state of the wrapped optimizer


def momentum(decay: float = 0.9) -> optax.GradientTransformationExtraArgs:
    """Exponential average of gradients that starts from the first gradient.

        m_1 = g_1,    m_t = decay * m_{t-1} + (1 - decay) * g_t

    This is the worker momentum of the CTMA authors' code. It differs from
    `optax.ema(decay, debias=False)`, which starts from zero and so sends
    (1 - decay) * g_1 first, and from the heavy ball of `optax.trace`.

    Args:
      decay: weight of the past, in [0, 1); 0 sends the gradients themselves.

    Returns:
      An optax transformation; its state is one copy of the gradients.

    Raises:
      ValueError: if decay is outside [0, 1).
      TypeError: if a leaf of the params is not real floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from byzjax.transforms import momentum
      >>> worker = momentum(0.9)
      >>> state = worker.init(jnp.zeros(2))
      >>> first, state = worker.update(jnp.array([1.0, 2.0]), state)
      >>> second, state = worker.update(jnp.array([0.0, 2.0]), state)
      >>> print(first, second)
      [1. 2.] [0.9 2. ]

    Reference:
      Karimireddy, He, Jaggi, *Learning from History for Byzantine Robust Optimization*
      (arXiv 2012.10333).
    """
    _check_value("momentum", "decay", decay, "0 <= decay < 1", lambda v: 0 <= v < 1)

    def init(params: optax.Params) -> MomentumState:
        _check_floating("momentum", params)
        return MomentumState(_zero_count(), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        _check_floating("momentum", updates)
        _check_alike("momentum", "updates", updates, state.momentum)
        keep = _at(decay, state.count)

        def average(g, m):
            g, m, wide = jnp.asarray(g), jnp.asarray(m), _accumulator(g)
            k = keep.astype(wide)
            mixed = k * m.astype(wide) + (1 - k) * g.astype(wide)
            return jnp.where(state.count == 0, g, mixed.astype(g.dtype))

        averaged = jax.tree.map(average, updates, state.momentum)
        count = _next(state.count)
        return averaged, MomentumState(count, _cast_like(averaged, state.momentum))

    return optax.GradientTransformationExtraArgs(init, update)


def storm(
    beta: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Corrected momentum (STORM): the worker's half of mu^2-SGD.

        d_1 = g_1,    d_t = g_t + (1 - beta_t) (d_{t-1} - g~_{t-1})

    where g_t and g~_{t-1} are the gradients at x_t and at x_{t-1} on the *same* sample.
    The correction carries the old average over to the new point, so that with
    beta_t = 1/t the error of d_t shrinks as 1/t instead of staying at the noise level.

    Call as `update(grads, state, params, grad_fn=..., prev_params=...)`, with `grads`
    taken at `params`. The transformation calls `grad_fn(prev_params)` itself, as
    `optax.contrib.sam` does; `prev_params` is x_{t-1}, one tree for all workers. At
    t = 1 there is none: pass `params`, the result is not used.

    **Guarantee**: d_1 = g_1 exactly, and d_t = g_t exactly wherever beta_t = 1,
    whatever `grad_fn` returned there. Costs one gradient more per step.

    Args:
      beta: weight of the new gradient, in (0, 1]. None for the paper's beta_t = 1/t; a
        float; or a schedule of the 0-based count. 1.0 is plain SGD.

    Returns:
      An optax transformation; its state is one copy of the gradients.

    Raises:
      ValueError: if beta is a number outside (0, 1]; in `update`, if `params`,
        `grad_fn` or `prev_params` is missing or `grad_fn` returns another tree.
      TypeError: if a leaf is not real floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from byzjax.transforms import storm
      >>> worker = storm()
      >>> grad_fn = jax.grad(lambda x: jnp.sum((x - 1.0) ** 2))
      >>> old, new = jnp.array([3.0]), jnp.array([2.0])
      >>> state = worker.init(old)
      >>> d, state = worker.update(
      ...     grad_fn(old), state, old, grad_fn=grad_fn, prev_params=old)
      >>> d, state = worker.update(
      ...     grad_fn(new), state, new, grad_fn=grad_fn, prev_params=old)
      >>> print(d)
      [2.]

    Reference:
      Cutkosky, Orabona, *Momentum-Based Variance Reduction in Non-Convex SGD* (arXiv
      1905.10018); beta_t = 1/t: Levy, *mu^2-SGD: Stable Stochastic Optimization via a
      Double Momentum Mechanism* (arXiv 2304.04172).
    """
    _check_value("storm", "beta", beta, "0 < beta <= 1", lambda v: 0 < v <= 1)

    def init(params: optax.Params) -> StormState:
        _check_floating("storm", params)
        return StormState(_zero_count(), jax.tree.map(jnp.zeros_like, params))

    def update(
        updates, state, params=None, *, grad_fn=None, prev_params=None, **extra_args
    ):
        del extra_args
        if params is None or grad_fn is None or prev_params is None:
            names = ("params", "grad_fn", "prev_params")
            given = (params, grad_fn, prev_params)
            missing = ", ".join(
                n for n, v in zip(names, given, strict=True) if v is None
            )
            raise ValueError(
                "storm needs grad_fn and prev_params (the gradient on the current "
                f"sample, the point before params) as well as params, got no {missing};"
                " used outside byzjax.trainer, pass update(grads, state, params, "
                "grad_fn=..., prev_params=...)"
            )
        _check_floating("storm", updates)
        _check_alike("storm", "updates", updates, state.momentum)
        previous = grad_fn(prev_params)
        _check_alike("storm", "the result of grad_fn", previous, updates)
        _check_floating("storm", previous)
        step_beta = 1 / _step(state.count) if beta is None else _at(beta, state.count)
        keep = jnp.where(state.count == 0, 0.0, 1 - step_beta)

        def correct(g, d, g_prev):
            g, wide = jnp.asarray(g), _accumulator(g)
            error = jnp.asarray(d).astype(wide) - jnp.asarray(g_prev).astype(wide)
            moved = g.astype(wide) + keep.astype(wide) * error
            # Selected, not multiplied away: 0 * inf would be NaN.
            return jnp.where(keep == 0, g, moved.astype(g.dtype))

        corrected = jax.tree.map(correct, updates, state.momentum, previous)
        count = _next(state.count)
        return corrected, StormState(count, _cast_like(corrected, state.momentum))

    return optax.GradientTransformationExtraArgs(init, update)


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
    gamma_t <= 1: x itself is never projected.

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
    if projection is not None and not callable(projection):
        raise TypeError(f"anytime needs a callable, got projection={projection}")
    finite_weight = "0 < weight < inf"
    _check_value("anytime", "weight", weight, finite_weight, lambda v: 0 < v < np.inf)
    _check_value("anytime", "mixing", mixing, "0 < mixing <= 1", lambda v: 0 < v <= 1)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> AnytimeState:
        _check_floating("anytime", params)
        # dtype is given so that Python floats do not become weakly typed arrays, which
        # a scan would refuse to carry.
        iterate = jax.tree.map(
            lambda p: jnp.array(p, dtype=jnp.result_type(p), copy=True), params
        )
        total = jnp.zeros([], jnp.result_type(float))
        return AnytimeState(_zero_count(), total, iterate, inner.init(params))

    def mix(state: AnytimeState) -> tuple[jax.Array, jax.Array]:
        if mixing is not None:
            return _at(mixing, state.count), state.weight_sum
        # Closed forms where there is one: nothing drifts over millions of steps.
        if weight is None:
            return 2 / (_step(state.count) + 2), state.weight_sum
        if not callable(weight):
            return 1 / (_step(state.count) + 1), state.weight_sum
        dtype = state.weight_sum.dtype
        total = state.weight_sum + _at(weight, state.count).astype(dtype)
        ahead = _at(weight, state.count + 1).astype(dtype)
        # While a warm-up's weights are all zero, x follows w.
        empty = total + ahead == 0
        gamma = ahead / jnp.where(empty, 1.0, total + ahead)
        return jnp.where(empty, 1.0, gamma), total

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "anytime needs params, the query point: update(updates, state, params)"
            )
        _check_floating("anytime", updates)
        _check_alike("anytime", "updates", updates, state.iterate)
        _check_alike("anytime", "params", params, state.iterate)
        alpha = _step(state.count) if weight is None else _at(weight, state.count)

        def scale(d):
            d, wide = jnp.asarray(d), _accumulator(d)
            return (alpha.astype(wide) * d.astype(wide)).astype(d.dtype)

        def move(w, u):
            wide = _accumulator(w)
            return (w.astype(wide) + jnp.asarray(u).astype(wide)).astype(w.dtype)

        steps, inner_state = inner.update(
            jax.tree.map(scale, updates), state.inner, state.iterate, **extra_args
        )
        iterate = jax.tree.map(move, state.iterate, steps)
        if projection is not None:
            projected = projection(iterate)
            _check_alike("anytime", "the result of projection", projected, iterate)
            iterate = _cast_like(projected, iterate)
        gamma, total = mix(state)

        def approach(x, w):
            x, wide = jnp.asarray(x), _accumulator(x)
            step = gamma.astype(wide) * (w.astype(wide) - x.astype(wide))
            return step.astype(x.dtype)

        count = _next(state.count)
        new_state = AnytimeState(count, total, iterate, inner_state)
        return jax.tree.map(approach, params, iterate), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def mu2sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: optax.ScalarOrSchedule | None = None,
    weight: optax.ScalarOrSchedule | None = None,
    mixing: optax.ScalarOrSchedule | None = None,
    projection: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """mu^2-SGD on one machine: `storm`, then `anytime` around SGD.

        d_t     = g_t + (1 - beta_t) (d_{t-1} - g~_{t-1})
        w_{t+1} = projection(w_t - learning_rate alpha_t d_t)
        x_{t+1} = (alpha_{1:t} x_t + alpha_{t+1} w_{t+1}) / alpha_{1:t+1}

    with the paper's alpha_t = t and beta_t = 1/t by default. Call `update(grads, state,
    params, grad_fn=..., prev_params=...)`; see `storm`. On many machines give
    `storm()` to the workers and `anytime(optax.sgd(learning_rate))` to the server.

    **Guarantee** (Theorem 4.2 of the paper): for convex smooth losses one learning rate
    serves every noise level, horizon and fraction of Byzantine workers.

    Args:
      learning_rate: eta >= 0, a float or a schedule of the 0-based count.
      beta: see `storm`.
      weight: see `anytime`.
      mixing: see `anytime`.
      projection: see `anytime`.

    Returns:
      An optax transformation whose updates are x_{t+1} - x_t.

    Raises:
      ValueError: if a number is out of range, or an argument of `update` is missing.
      TypeError: if a leaf is not real floating point.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from byzjax.transforms import mu2sgd
      >>> optimizer = mu2sgd(0.1)
      >>> grad_fn = jax.grad(lambda x: 0.5 * jnp.sum(x**2))
      >>> params = prev_params = jnp.array([1.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(20):
      ...     updates, state = optimizer.update(
      ...         grad_fn(params), state, params,
      ...         grad_fn=grad_fn, prev_params=prev_params)
      ...     prev_params, params = params, optax.apply_updates(params, updates)
      >>> bool(jnp.abs(params[0]) < 0.05)
      True

    Reference:
      Dahan, Levy, *Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous
      Training* (arXiv 2405.14759); Levy (arXiv 2304.04172).
    """
    finite_rate = "0 <= learning_rate < inf"
    _check_value(
        "mu2sgd", "learning_rate", learning_rate, finite_rate, lambda v: 0 <= v < np.inf
    )
    server = anytime(
        optax.sgd(learning_rate), weight=weight, mixing=mixing, projection=projection
    )
    chained = optax.chain(storm(beta), server)
    return optax.GradientTransformationExtraArgs(chained.init, chained.update)


def mu2sgd_authors(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """mu^2-SGD as the CTMA authors' published code runs it.

        beta_t  = max(round(1/t, 3), 0.01)
        gamma_t = max(round(t / (1 + ... + t), 3), 0.01)
        w_{t+1} = w_t - learning_rate d_t

    Differs from the paper in the rounding, in the floors, in gamma_t, which is one step
    ahead (2/(t+1), so that x_2 = w_2), and in w, which moves without alpha_t. Their
    first direction is the gradient on a sample of its own; every later step takes both
    gradients on one fresh sample: the same as calling this with the samples in that
    order. Spelled out, to put the server on its own: `storm(authors_beta)` for the
    workers, `anytime(optax.sgd(learning_rate), weight=1.0, mixing=authors_mixing)`.
    Their fixed variant is `mu2sgd(learning_rate, beta=0.9, weight=1.0, mixing=0.1)`.

    Args:
      learning_rate: eta >= 0, a float (0.1 in their experiments) or a schedule.

    Returns:
      An optax transformation, called as `mu2sgd` is.

    Raises:
      ValueError, TypeError: as `mu2sgd`.

    Example:
      >>> import jax.numpy as jnp
      >>> from byzjax.transforms import mu2sgd_authors
      >>> optimizer = mu2sgd_authors(0.1)
      >>> params = jnp.array([1.0])
      >>> updates, _ = optimizer.update(
      ...     params, optimizer.init(params), params,
      ...     grad_fn=lambda x: x, prev_params=params)
      >>> print(updates.round(3))
      [-0.1]

    Reference:
      Dahan, Levy (arXiv 2405.14759), the code published with the paper.
    """
    return mu2sgd(learning_rate, beta=authors_beta, weight=1.0, mixing=authors_mixing)


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
    return _lookup(_AUTHORS_BETA, count)


def authors_mixing(count: jax.typing.ArrayLike) -> jax.Array:
    """Schedule max(round(t / (1 + ... + t), 3), 0.01) of the 0-based count t - 1.

    Example:
      >>> from byzjax.transforms import authors_mixing
      >>> print(authors_mixing(0), authors_mixing(1), authors_mixing(10**6))
      1.0 0.667 0.01
    """
    return _lookup(_AUTHORS_MIXING, count)


def _lookup(table: np.ndarray, count: jax.typing.ArrayLike) -> jax.Array:
    """Entry of a constant table, the last one past its end."""
    return jnp.take(jnp.asarray(table, jnp.result_type(float)), count, mode="clip")


def _zero_count() -> jax.Array:
    return jnp.zeros([], jnp.int32)


def _next(count: jax.Array) -> jax.Array:
    return jnp.asarray(optax.safe_increment(count))


def _step(count: jax.Array) -> jax.Array:
    """The paper's t = 1, 2, ... as a float."""
    return count.astype(jnp.result_type(float)) + 1


def _at(value: optax.ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """A number or schedule as a float scalar."""
    value = jnp.asarray(
        value(count) if callable(value) else value, jnp.result_type(float)
    )
    if value.ndim:
        raise ValueError(f"a coefficient must be a scalar, got shape {value.shape}")
    return value


def _accumulator(leaf: Any) -> Any:
    """The dtype to compute in."""
    return jnp.float64 if jnp.result_type(leaf) == jnp.float64 else jnp.float32


def _cast_like(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(y.dtype), tree, like)


def _check_value(
    owner: str, name: str, value: Any, requirement: str, holds: Callable[[Any], bool]
) -> None:
    """Raises if a number is out of range; schedules and tracers cannot be checked."""
    if value is None or callable(value) or isinstance(value, jax.core.Tracer):
        return
    numbers = (int, float, np.number, np.ndarray, jax.Array)
    if isinstance(value, bool) or not isinstance(value, numbers) or np.ndim(value):
        raise TypeError(f"{owner} needs {requirement}, got {name}={value!r}")
    if not holds(float(value)):
        raise ValueError(f"{owner} needs {requirement}, got {name}={value}")


def _check_floating(owner: str, tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = jax.tree_util.keystr(path) or "the root"
            raise TypeError(
                f"{owner} needs real floating-point leaves, got {dtype} at {where}"
            )


def _check_alike(owner: str, what: str, tree: Any, like: Any) -> None:
    """Raises unless two trees agree in structure and shapes: nothing may broadcast."""
    got, want = jax.tree.map(jnp.shape, tree), jax.tree.map(jnp.shape, like)
    same = jax.tree.structure(tree) == jax.tree.structure(like)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=False)
    if not same or any(jnp.shape(x) != jnp.shape(y) for x, y in pairs):
        raise ValueError(
            f"{owner} needs {what} to have the structure and shapes {want}, got {got}"
        )

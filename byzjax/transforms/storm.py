"""Corrected momentum (STORM): the worker's half of μ²-SGD."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax import checks, trees
from byzjax.transforms import schedules


class StormState(NamedTuple):
    """State of `storm`.

    Attributes:
      count: steps taken, [], int32; after a bad batch or an absence it is zero.
      momentum: d_t, as last sent, like params; zeros before the first step.
    """

    count: jax.Array  # []
    momentum: optax.Updates

    def after_absence(self) -> "StormState":
        """What is left after a step that its worker missed: nothing.

        By absence or a bad batch: d is of the point where the worker was, and others
        have moved on since. The next correction would be of one step, not of all that
        were missed, and the error would stay for as many steps as came before.
        """
        return self._replace(count=jnp.zeros_like(self.count))


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
    whatever `grad_fn` returned there. What is not finite is passed on, and begins the
    average anew, as an absence does: others move on to a point that d is not of. Costs
    one gradient more per step.

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
    check_beta("storm", beta)

    def init(params: optax.Params) -> StormState:
        checks.floating("storm", params)
        return StormState(schedules.zero_count(), jax.tree.map(jnp.zeros_like, params))

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
        checks.floating("storm", updates)
        checks.one_worker("storm", updates, state.momentum)
        previous = grad_fn(prev_params)
        checks.alike("storm", "the result of grad_fn", previous, updates)
        checks.floating("storm", previous)
        step_beta = (
            1 / schedules.step_number(state.count)
            if beta is None
            else schedules.value_at(beta, state.count)
        )
        keep = jnp.where(state.count == 0, 0.0, 1 - step_beta)

        def correct(g, d, g_prev):
            g, wide = jnp.asarray(g), trees.accumulator_dtype(g.dtype)
            error = jnp.asarray(d).astype(wide) - jnp.asarray(g_prev).astype(wide)
            moved = g.astype(wide) + keep.astype(wide) * error
            # Selected, not multiplied away: 0 * inf would be NaN.
            return jnp.where(keep == 0, g, moved.astype(g.dtype))

        corrected = jax.tree.map(correct, updates, state.momentum, previous)
        new = StormState(
            schedules.next_count(state.count),
            optax.tree.cast_like(corrected, state.momentum),
        )
        good = trees.stays_finite(new.momentum, state.momentum)
        return corrected, trees.kept(good, new, state.after_absence())

    return optax.GradientTransformationExtraArgs(init, update)


def check_beta(owner: str, beta: optax.ScalarOrSchedule | None) -> None:
    """Checks what `storm` takes; None is 1/t."""
    if beta is not None:
        checks.coefficient(owner, "0 < beta <= 1", lambda v: 0 < v <= 1, beta=beta)

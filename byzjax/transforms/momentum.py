"""Worker momentum: an average of gradients that starts from the first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax import checks, trees
from byzjax.transforms import schedules


class MomentumState(NamedTuple):
    """State of `momentum`.

    Attributes:
      count: steps taken, [], int32; in steps with a bad batch it stays.
      momentum: m_t, as last sent, like params; zeros before the first step.
    """

    count: jax.Array  # []
    momentum: optax.Updates


def momentum(decay: float = 0.9) -> optax.GradientTransformationExtraArgs:
    """Exponential average of gradients that starts from the first gradient.

        m_1 = g_1,    m_t = decay * m_{t-1} + (1 - decay) * g_t

    This is the worker momentum of the CTMA authors' code. It differs from
    `optax.ema(decay, debias=False)`, which starts from zero and so sends
    (1 - decay) * g_1 first, and from the heavy ball of `optax.trace`.

    **Guarantee**: gradients that are not finite are passed on and leave the state as it
    was, so that one bad batch costs a worker one step.

    Args:
      decay: weight of the past, in [0, 1); 0 sends the gradients themselves.

    Returns:
      An optax transformation; its state is one copy of the gradients.

    Raises:
      ValueError: if decay is outside [0, 1); in `update`, gradients not like the
        params, such as stacked ones: `byzjax.per_worker` serves these.
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
    checks.coefficient("momentum", "0 <= decay < 1", lambda v: 0 <= v < 1, decay=decay)

    def init(params: optax.Params) -> MomentumState:
        checks.floating("momentum", params)
        return MomentumState(
            schedules.zero_count(), jax.tree.map(jnp.zeros_like, params)
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        checks.floating("momentum", updates)
        checks.one_worker("momentum", updates, state.momentum)
        keep = schedules.value_at(decay, state.count)

        def average(g, m):
            g, m, wide = (
                jnp.asarray(g),
                jnp.asarray(m),
                trees.accumulator_dtype(g.dtype),
            )
            k = keep.astype(wide)
            mixed = k * m.astype(wide) + (1 - k) * g.astype(wide)
            return jnp.where(state.count == 0, g, mixed.astype(g.dtype))

        averaged = jax.tree.map(average, updates, state.momentum)
        new = MomentumState(
            schedules.next_count(state.count),
            optax.tree.cast_like(averaged, state.momentum),
        )
        good = trees.stays_finite(new.momentum, state.momentum)
        return averaged, trees.kept(good, new, state)

    return optax.GradientTransformationExtraArgs(init, update)

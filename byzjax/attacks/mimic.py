"""Mimicry: over-represent one honest worker and so hide the variety of the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax import checks, loops
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.numerics import stacked
from byzjax.trees import Tree


class MimicState(NamedTuple):
    """State of `mimic` with a warm-up.

    Attributes:
      step: steps done, `[]`, int32.
      mean: running mean of the honest messages, leaves `[...]`, float32 or wider.
      direction: z, of unit norm once the first step is done, leaves `[...]`.
      worker: the worker mimicked in the last step, `[]`, int32.
    """

    step: jax.Array  # [], int32, steps done.
    mean: Tree  # Running mean of the honest messages, leaves [...], float32 or wider.
    direction: Tree  # z, of unit norm once the first step is done, leaves [...].
    worker: jax.Array  # [], int32, the worker mimicked in the last step.


def mimic(
    worker: int = 0, *, warmup: int | None = None, num_byzantine: int | None = None
) -> Attack:
    r"""Mimic: all Byzantine workers send what one honest worker sends.

    .. math:: b_i = x_{j}

    No message is out of the ordinary, yet with heterogeneous data a rule that keeps to
    the majority starves the other workers' data.

    With a warm-up of T steps the worker is learnt: in the steps t = 0 … T − 1, by
    Oja's rule on the honest messages,

    .. math::
      \mu \leftarrow \frac{t \mu + \bar x}{t + 1}, \quad
      u = \sum_j (x_j - \mu) \langle x_j - \mu, z \rangle, \quad
      z \leftarrow \frac{t z + u / \|u\|}{\|t z + u / \|u\|\|}, \quad
      j = \arg\max_j \langle x_j, z \rangle

    and from step T on the last j stays. z starts from a fixed random direction. This is
    the authors' code; the paper writes u unnormalised and chooses j by the sum of the
    products over the warm-up.

    Args:
      worker: j, an honest worker's row; read when there is no warm-up only.
      warmup: T, at least 1; None for a fixed worker.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`, with a `MimicState` if there is a warm-up.

    Raises:
      ValueError: a negative worker, no warm-up step; at trace time a worker who is not
        among the honest.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [5.0]])
      >>> print(byzjax.attacks.mimic(1).apply(rows, num_byzantine=1).ravel())
      [1. 3. 3.]

    Reference:
      Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via
      Bucketing, 2022, https://arxiv.org/abs/2006.09365
    """
    worker = checks.count("mimic", worker=worker)
    if warmup is not None:
        warmup = checks.count("mimic", warmup=warmup, minimum=1)
        return _learnt(warmup, num_byzantine)

    def message(honest, f):
        h = checks.num_workers(honest)
        if not worker < h:
            raise ValueError(
                "mimic needs an honest worker to copy, got "
                f"worker={worker} and {h} honest workers"
            )
        return jax.tree.map(lambda x: x[worker], honest)

    return lift.one_message(message, num_byzantine=num_byzantine)


def _learnt(warmup: int, num_byzantine: int | None) -> Attack:
    """The variant that learns whom to mimic."""

    def init(params):
        zeros = jax.tree.map(lambda p: lift.wide(jnp.zeros_like(p)), params)
        # A fixed key: the draw only has to be no special direction.
        start = stacked.drawn(zeros, jax.random.key(0), jax.random.normal)
        return MimicState(jnp.int32(0), zeros, start, jnp.int32(0))

    def learn(honest, state):
        share = 1 / (state.step + 1).astype(jnp.float32)

        def blend(old, new):
            part = lift.number(share, old)
            return (1 - part) * old + part * new

        mean = jax.tree.map(blend, state.mean, lift.mean(honest))
        gaps = jax.tree.map(lambda x, c: lift.wide(x) - c[None], honest, mean)
        along = lift.dots(gaps, state.direction)
        along = stacked.over(along, jnp.max(jnp.abs(along)))
        pull = lift.unit(jax.tree.map(lambda g: _combine(along, g), gaps))
        direction = lift.unit(jax.tree.map(blend, state.direction, pull))
        worker = jnp.argmax(lift.dots(honest, direction)).astype(jnp.int32)
        return MimicState(state.step + 1, mean, direction, worker)

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        state = loops.cond(
            state.step < warmup, learn, lambda _, state: state, honest, state
        )
        message = jax.tree.map(lambda x: x[state.worker], honest)
        return lift.to_rows(message, honest, num_byzantine), state

    return Attack(forge, init=init, num_byzantine=num_byzantine)


def _combine(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Σ weights_j rows_j, in the dtype of the rows."""
    return jnp.tensordot(
        weights.astype(rows.dtype), rows, axes=1, precision=jax.lax.Precision.HIGHEST
    )

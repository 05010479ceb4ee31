"""The server's optimizer: from an aggregate of updates to a step of the model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import written

_MOST_COMPILED = 256  # Leaves.


class Server:
    """The optimizer over the model's trained arrays by name; None adds the aggregate.

    A model of many arrays is optimized operation by operation, array by array, instead
    of in one program, which took XLA 80 s to compile for 2 000 arrays of 3 floats.
    """

    def __init__(self, optimizer: optax.GradientTransformation | None) -> None:
        self._optimizer = optimizer and optax.with_extra_args_support(optimizer)
        self._compiled = jax.jit(self._update)

    def start(self, params: dict[str, np.ndarray]) -> Any:
        """The optimizer's first state.

        Raises:
          ValueError: an optimizer that this model is nothing for, or that wants more
            than gradients and parameters.
        """
        if self._optimizer is None:
            return ()
        try:
            state = self._optimizer.init(jax.tree.map(jnp.asarray, params))
            zeros = {k: np.zeros(x.shape, x.dtype) for k, x in params.items()}
            jax.eval_shape(self._update, zeros, state, params)
        except Exception as error:
            raise ValueError(
                "RobustStrategy needs a server that steps this model by its updates "
                f"and parameters alone, got {written.shown(self._optimizer)}: {error}"
            ) from error
        return state

    def step(
        self, direction: np.ndarray, state: Any, params: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, Any]:
        """What to add to the model, [columns], and the new state."""
        if self._optimizer is None:
            return direction, state
        update = self._update if len(params) > _MOST_COMPILED else self._compiled
        steps: Any
        steps, state = update(_cut(direction, params), state, params)
        # By the order of the columns: a dict comes sorted out of a jit.
        flat = [np.asarray(steps[name], np.float32).reshape(-1) for name in params]
        return np.concatenate(flat), state

    def _update(self, tree, state, params):
        assert self._optimizer is not None
        # An optimizer descends; the aggregate of updates is where to go.
        tree = jax.tree.map(jnp.negative, tree)
        params = jax.tree.map(jnp.asarray, params)
        return self._optimizer.update(tree, state, params)


def _cut(direction: np.ndarray, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The leaves whose columns, in the order of `params`, these are."""
    tree, first = {}, 0
    for name, value in params.items():
        part = direction[first : first + value.size].reshape(value.shape)
        tree[name] = part.astype(jax.dtypes.canonicalize_dtype(value.dtype))
        first += value.size
    return tree

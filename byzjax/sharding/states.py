"""States of rules and attacks that hold columns: how they are kept between steps.

While a rule runs, what it remembers of each coordinate is `[..., n]`, as its updates
are. Between steps it lies on all devices, filled up to a length that does not depend on
how many there are, so that a checkpoint moves from one mesh to another.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from byzjax.trees import Tree

# Lengths are multiples of 5040 = 2⁴·3²·5·7, and of more powers of two where that is
# little beside them: 4096 devices divide a length of 10⁸.
_LEAST_UNIT = 5040
_MOST_DOUBLINGS = 8
_FINE = 16


class Kept:
    """Which leaves of a state hold columns, and their lengths.

    Args:
      init: the rule's own, columns `[n]` → its state.
      columns: of shapes and dtypes of what it is called with.
      axes: of the mesh, that split columns.
      num_devices: how many these are.
    """

    def __init__(
        self,
        init: Callable[[Any], Tree],
        columns: tuple[jax.ShapeDtypeStruct, ...],
        axes: tuple[str, ...],
        num_devices: int,
    ):
        self.axes, self.num_devices = axes, num_devices
        shapes = jax.eval_shape(init, columns)
        leaves, self.structure = jax.tree.flatten(shapes)
        wider = [
            jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
            for x in columns
        ]
        moved = jax.tree.leaves(jax.eval_shape(init, tuple(wider)))
        # None where the last dimension is not the coordinates.
        self.widths = [
            x.shape[-1] if x.ndim and x.shape[-1] != y.shape[-1] else None
            for x, y in zip(leaves, moved, strict=True)
        ]

    def stored(self, state: Tree) -> Tree:
        """A state as it is kept, of one as the rule has it."""

        def of_leaf(x, width):
            if width is None:
                return x
            lacking = padded(width) - width
            return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, lacking)])

        return self._of_leaves(of_leaf, state)

    def unstored(self, state: Tree) -> Tree:
        """A state as the rule has it, of one as it is kept."""

        def of_leaf(x, width):
            if width is None:
                return x
            if x.shape[-1] != padded(width):
                raise ValueError(
                    "a rule in a layout needs the state that its own init made, got a "
                    f"leaf of shape {x.shape} in place of [..., {padded(width)}]"
                )
            return x[..., :width]

        return self._of_leaves(of_leaf, state)

    def specs(self, state: Tree) -> Tree:
        """Where the leaves of a state that is kept lie."""

        def of_leaf(x, width):
            if width is None or padded(width) % self.num_devices:
                return PartitionSpec()
            return PartitionSpec(*[None] * (x.ndim - 1), self.axes)

        return self._of_leaves(of_leaf, state)

    def _of_leaves(self, function, state):
        leaves, structure = jax.tree.flatten(state)
        if structure != self.structure:
            raise ValueError(
                "a rule in a layout needs a state of the structure that its init "
                f"makes, {self.structure}, got {structure}"
            )
        return structure.unflatten(
            [function(x, n) for x, n in zip(leaves, self.widths, strict=True)]
        )


def is_kept(shape: tuple[int, ...]) -> bool:
    """Whether columns that are kept may have this shape."""
    return bool(shape) and shape[-1] > 0 and shape[-1] % _LEAST_UNIT == 0


def padded(width: int) -> int:
    """The length that columns are kept at, at least `width`."""
    doublings = (width // (_FINE * _LEAST_UNIT)).bit_length() - 1
    unit = _LEAST_UNIT << max(0, min(doublings, _MOST_DOUBLINGS))
    return -(-width // unit) * unit

"""The hidden vulnerability: the honest mean, but for one coordinate."""

import math

import jax
import jax.numpy as jnp
import jax.typing
import numpy as np

from byzjax.attack import Attack
from byzjax.attacks import disguise, lift
from byzjax.numerics import stacked
from byzjax.trees import Tree


def small_perturbation(
    scale: jax.typing.ArrayLike | None = None,
    *,
    coordinate: int | None = -1,
    num_byzantine: int | None = None,
) -> Attack:
    r"""The hidden vulnerability: the honest mean, but for one coordinate.

    .. math:: b_i = \mu + \gamma e_j \qquad\text{or}\qquad b_i = \mu + \gamma \mathbf 1

    In d dimensions honest messages lie about √d apart, so one coordinate can be off by
    that much before a distance shows it. The paper searches the γ that the rule still
    selects: `optimized(small_perturbation, rule)`. Without γ and rule, the largest one
    at which b is no farther from any honest message than these are from each other.

    Args:
      scale: γ, of either sign; may be traced. None: as far as hidden, see above.
      coordinate: j, counted through all leaves in tree order, negative from the end
        (the last is the default of EPFL's code); None: all coordinates.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a γ that is not finite; at trace time a coordinate out of range.
      TypeError: a coordinate that is no int.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> attack = byzjax.attacks.small_perturbation(9.0, coordinate=1)
      >>> print(attack.apply(jnp.ones((3, 2)), num_byzantine=1)[-1])
      [ 1. 10.]

    Reference:
      El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in
      Byzantium, 2018, https://arxiv.org/abs/1802.07927
    """
    if scale is not None:
        lift.any_number("small_perturbation", scale=scale)
    if coordinate is not None and (
        isinstance(coordinate, bool) or not isinstance(coordinate, int | np.integer)
    ):
        raise TypeError(
            "small_perturbation needs coordinate to be a static int or None, got "
            f"coordinate={coordinate!r}"
        )

    def message(honest, f):
        center = lift.mean(honest)
        towards = _axis(center, coordinate)
        gamma = disguise.hidden(honest, center, towards) if scale is None else scale
        return lift.shifted(center, gamma, towards)

    return lift.one_message(message, num_byzantine=num_byzantine)


def _axis(center: Tree, coordinate: int | None) -> Tree:
    """The unit vector of a coordinate, or all ones."""
    if coordinate is None:
        return jax.tree.map(jnp.ones_like, center)
    leaves = jax.tree.leaves(center)
    sizes = [math.prod(x.shape) for x in leaves]
    if not -sum(sizes) <= coordinate < sum(sizes):
        raise ValueError(
            "small_perturbation needs a coordinate of the updates, got "
            f"coordinate={coordinate} for {sum(sizes)} coordinates"
        )
    at = jnp.uint32(coordinate % sum(sizes))
    numbers = stacked.coordinates(center)
    return jax.tree.map(lambda x, n: (n == at).astype(x.dtype), center, numbers)

"""Inner-product manipulation, "empire": a negative multiple of the honest mean."""

import jax
import jax.typing

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import lift


def ipm(
    scale: jax.typing.ArrayLike = 0.5, *, num_byzantine: int | None = None
) -> Attack:
    r"""Inner-product manipulation (IPM, "empire"): a negative multiple of the mean.

    .. math:: b_i = -\varepsilon \frac{1}{h} \sum_{j \text{ honest}} x_j

    A small ε hides among honest messages of large variance; ε > h/f turns the plain
    mean around. Libraries differ in the default only: 0.5 on the command line of the
    CTMA authors' code (the default here), 0.1 in its class, 2 in ByzFL.

    Args:
      scale: ε >= 0; may be traced, so that a sweep is one `vmap`.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a negative or non-finite ε.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [5.0]])
      >>> print(byzjax.attacks.ipm(0.5).apply(rows, num_byzantine=1).ravel())
      [ 1.  3. -1.]

    Reference:
      Xie, Koyejo, Gupta: Fall of Empires: Breaking Byzantine-tolerant SGD by Inner
      Product Manipulation, 2020, https://arxiv.org/abs/1903.03936
    """
    checks.number("ipm", scale=scale)

    def message(honest, f):
        return jax.tree.map(
            lambda mu: -(lift.number(scale, mu) * mu), lift.mean(honest)
        )

    return lift.one_message(message, num_byzantine=num_byzantine)

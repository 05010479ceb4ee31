"""Gaussian noise instead of a message."""

from typing import Literal

import jax
import jax.typing

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import lift


def gaussian(
    std: jax.typing.ArrayLike,
    *,
    around: Literal["zero", "mean"] = "zero",
    num_byzantine: int | None = None,
) -> Attack:
    r"""Gaussian noise instead of a message, drawn anew by each Byzantine worker.

    .. math:: b_i \sim \mathcal N(0, \sigma^2 I) \qquad\text{or}\qquad
      b_i \sim \mathcal N(\mu, \sigma^2 I)

    "zero" is Blanchard et al. (σ = 200) and ByzFL (σ = 1); "mean" adds the noise to the
    honest mean μ.

    Args:
      std: σ >= 0; may be traced.
      around: the centre.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack` that needs a `key`.

    Raises:
      ValueError: a negative or non-finite σ, another word, a missing key.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> attack = byzjax.attacks.gaussian(200.0)
      >>> rows = attack.apply(
      ...     jnp.ones((3, 1000)), num_byzantine=1, key=jax.random.key(0)
      ... )
      >>> print(rows.std(axis=1).round(-1))
      [  0.   0. 200.]

    Reference:
      Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries:
      Byzantine Tolerant Gradient Descent, 2017, https://arxiv.org/abs/1703.02757
    """
    checks.number("gaussian", std=std)
    checks.word("gaussian", ("zero", "mean"), around=around)

    def drawn(honest, f, key):
        noise = lift.draw("gaussian", honest, f, key, jax.random.normal)
        noise = jax.tree.map(lambda x: lift.number(std, x) * x, noise)
        if around == "zero":
            return noise
        return jax.tree.map(lambda x, c: x + c[None], noise, lift.mean(honest))

    return lift.rows(drawn, num_byzantine=num_byzantine)

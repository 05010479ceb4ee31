"""Attacks that read nothing of the honest messages but their shapes."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import jax.typing

from byzjax import base, stacked
from byzjax.attacks import lift
from byzjax.base import Attack, Tree


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
    base.check_number("gaussian", std=std)
    lift.choice("gaussian", ("zero", "mean"), around=around)

    def rows(honest, f, key):
        noise = _draw("gaussian", honest, f, key, jax.random.normal)
        noise = jax.tree.map(lambda x: lift.number(std, x) * x, noise)
        if around == "zero":
            return noise
        return jax.tree.map(lambda x, c: x + c[None], noise, lift.mean(honest))

    return _from_rows(rows, num_byzantine)


def infinity(*, num_byzantine: int | None = None) -> Attack:
    """Sends +inf in every coordinate: the crudest test of a rule.

    Args:
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = byzjax.attacks.infinity().apply(jnp.ones((3, 1)), num_byzantine=1)
      >>> print(rows.ravel())
      [ 1.  1. inf]
    """
    return _filled(jnp.inf, num_byzantine)


def nan(*, num_byzantine: int | None = None) -> Attack:
    """Sends NaN in every coordinate, as a broken worker may without any malice.

    Args:
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = byzjax.attacks.nan().apply(jnp.ones((3, 1)), num_byzantine=1)
      >>> print(rows.ravel())
      [ 1.  1. nan]
    """
    return _filled(jnp.nan, num_byzantine)


def _from_rows(
    rows: Callable[[Tree, int, jax.Array | None], Tree], num_byzantine: int | None
) -> Attack:
    """Lifts `rows(honest, f, key)` → `[f, ...]` to an attack."""

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        forged = rows(honest, num_byzantine, key)
        return jax.tree.map(lambda b, x: b.astype(x.dtype), forged, honest), state

    return Attack(forge, num_byzantine=num_byzantine)


def _filled(value: jax.typing.ArrayLike, num_byzantine: int | None) -> Attack:
    def rows(honest, f, key):
        return jax.tree.map(
            lambda x: jnp.full((f, *x.shape[1:]), value, x.dtype), honest
        )

    return _from_rows(rows, num_byzantine)


def _draw(name, honest, f, key, sample):
    """Independent draws `[f, ...]`, one key a leaf, at least float32."""
    leaves, structure = jax.tree.flatten(honest)
    keys = jax.random.split(base.check_key(name, key), len(leaves))
    drawn = [
        sample(keys[i], (f, *x.shape[1:]), stacked.accumulator_dtype(x.dtype))
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)

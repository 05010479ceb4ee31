"""The same value in every coordinate: a number, infinity or NaN."""

import jax.numpy as jnp
import jax.typing

from byzjax.attack import Attack
from byzjax.attacks import lift


def constant(
    value: jax.typing.ArrayLike, *, num_byzantine: int | None = None
) -> Attack:
    r"""The same value in every coordinate.

    .. math:: b_i = c \mathbf 1

    Args:
      value: c, finite, of either sign; may be traced.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a value that is not finite.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = byzjax.attacks.constant(-7.0).apply(jnp.ones((3, 1)), num_byzantine=1)
      >>> print(rows.ravel())
      [ 1.  1. -7.]

    Reference:
      Li, Xu, Chen, Giannakis, Ling: RSA: Byzantine-Robust Stochastic Aggregation
      Methods for Distributed Learning from Heterogeneous Datasets, 2019,
      https://arxiv.org/abs/1811.03761 ("same-value attack")
    """
    number = lift.any_number("constant", value=value)
    return lift.filled(number, num_byzantine)


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
    return lift.filled(jnp.inf, num_byzantine)


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
    return lift.filled(jnp.nan, num_byzantine)

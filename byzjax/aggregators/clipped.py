"""Meta-rules that shorten long rows before the rule sees them."""

import jax
import jax.numpy as jnp

from byzjax import base, lifts, stacked
from byzjax.base import Aggregator


def clipping(rule: Aggregator, max_norm: float) -> Aggregator:
    r"""Clipping: every row scaled down to a norm of at most `max_norm`.

    .. math:: y_i = \min(1, c / \|x_i\|) \, x_i, \qquad A(y_1, \dots, y_m)

    Norms are over the whole tree.

    **Guarantee.** No row is longer than c, so even over the mean the result is not. A
    row that is not finite is clipped to zero. Over a geometric base the clipping itself
    does not touch the coordinates.

    Args:
      rule: the base aggregator.
      max_norm: c > 0, in units of the updates.

    Returns:
      An `Aggregator`.

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: a `max_norm` that is not positive.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[3.0, 4.0], [0.3, 0.4], [jnp.nan, 0.0]])
      >>> print(byzjax.clipping(byzjax.mean(), max_norm=1.0).aggregate(rows))
      [0.3 0.4]

    Reference:
      Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan: Adaptive Gradient Clipping for
      Robust Federated Learning, 2024, https://arxiv.org/abs/2405.14432 (as the static
      clipping that ARC is compared with)
    """
    base.check_number("clipping", max_norm=max_norm, open_interval=True)

    def factors(geometry):
        return _shares(geometry.squared_norms, max_norm)

    return lifts.prescaled("clipping", rule, factors)


def arc(rule: Aggregator, num_byzantine: int) -> Aggregator:
    r"""Adaptive robust clipping (ARC): the longest rows clipped to the next shorter.

    .. math:: y_i = \min(1, c / \|x_i\|) \, x_i, \quad
      c = \text{the } (k+1)\text{-th largest norm}, \quad
      k = \lfloor 2 \tfrac{f}{m} (m - f) \rfloor

    **Guarantee.** (f, κ + 2f/(m−2f))-robust over an (f, κ)-robust base (Allouah et al.
    2024). As k ≥ f, no row is left longer than the longest honest one, so the result is
    bounded by the honest norms even where the base fails. A row that is not finite is
    clipped to zero. Over a geometric base the clipping itself does not touch the
    coordinates.

    Args:
      rule: the base aggregator.
      num_byzantine: f.

    Returns:
      An `Aggregator`.

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [50.0]])
      >>> print(byzjax.arc(byzjax.median(), num_byzantine=1).aggregate(rows))
      [2.]

    Reference:
      Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan: Adaptive Gradient Clipping for
      Robust Federated Learning, 2024, https://arxiv.org/abs/2405.14432
    """
    f = base.check_count("arc", num_byzantine=num_byzantine)

    def factors(geometry):
        m = geometry.num_workers
        # In integers: the floor of the floating-point product may be one too low.
        k = 2 * f * (m - f) // m
        longest = jnp.sort(geometry.squared_norms)[m - k - 1]
        return _shares(geometry.squared_norms, stacked.root(longest))

    return lifts.prescaled("arc", rule, factors, check=base.check_minority("arc", f))


def _shares(squared_norms: jax.Array, max_norm: jax.Array | float) -> jax.Array:
    """What is kept of rows [m] of these squared norms; 0 of those that are infinite."""
    norms = stacked.root(squared_norms)
    long = norms > max_norm
    # Selected before the quotient, so that derivatives are finite.
    kept = jnp.where(long, max_norm / jnp.where(long, norms, 1), 1)
    return jnp.where(jnp.isfinite(squared_norms), kept, 0)

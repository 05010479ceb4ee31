"""Adaptive robust clipping: the longest rows are clipped to the next shorter."""

import jax.numpy as jnp

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator


def arc(rule: Aggregator, num_byzantine: int) -> Aggregator:
    r"""Adaptive robust clipping (ARC): the longest rows clipped to the next shorter.

    .. math:: y_i = \min(1, c / \|x_i\|) \, x_i, \quad
      c = \text{the } (k+1)\text{-th largest norm}, \quad
      k = \lfloor 2 \tfrac{f}{m} (m - f) \rfloor

    **Guarantee.** (f, κ + 2f/(m−2f))-robust over an (f, κ)-robust base (Allouah et al.
    2024). As k ≥ f, no row is left longer than the longest honest one, so over means of
    rows the result is bounded by the honest norms even where they fail. A row that is
    not finite is clipped to zero. Over a geometric base the clipping itself does not
    touch the coordinates, as in `clipping`.

    Args:
      rule: the base aggregator.
      num_byzantine: f, no greater than the one that the base is told, if it is.

    Returns:
      An `Aggregator`.

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: a rule that is told a smaller f; m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [50.0]])
      >>> print(byzjax.arc(byzjax.median(), num_byzantine=1).aggregate(rows))
      [2.]

    Reference:
      Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan: Adaptive Gradient Clipping for
      Robust Federated Learning, 2024, https://arxiv.org/abs/2405.14432
    """
    bearing.check_base("arc", rule)
    f = checks.count("arc", num_byzantine=num_byzantine)
    bearing.check_told("arc", rule, f)

    def check(m):
        checks.minority("arc", f)(m)
        bearing.check_bears("arc", rule, f, m)

    def factors(geometry):
        n = geometry.num_present
        # In integers: the floor of the floating-point product may be one too low.
        k = 2 * f * (n - f) // n
        return geometry.clip_factors(jnp.sort(geometry.norms)[n - k - 1])

    bears = bearing.told(f, rule)
    return lift.prescaled("arc", rule, factors, check=check, bears=bears)

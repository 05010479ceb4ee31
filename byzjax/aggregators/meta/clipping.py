"""Clipping: long rows are shortened before the rule sees them."""

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator


def clipping(rule: Aggregator, max_norm: float) -> Aggregator:
    r"""Clipping: every row scaled down to a norm of at most `max_norm`.

    .. math:: y_i = \min(1, c / \|x_i\|) \, x_i, \qquad A(y_1, \dots, y_m)

    Norms are over the whole tree.

    **Guarantee.** No row that the base sees is longer than c, so over a weighted mean
    of rows (mean, krum, geometric_median …) the result is not. Over a rule by
    coordinates it may be up to √m times as long, and nothing is said over one that is
    no mean of rows (sign_majority, foolsgold that does not normalise). A row that is
    not finite is clipped to zero. Over a geometric base the clipping itself does not
    touch the coordinates, and distances are known to some 1e-3 of the norms of rows
    that are cut from far out.

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
    bearing.check_base("clipping", rule)
    limit = checks.number("clipping", max_norm=max_norm, open_interval=True)

    def factors(geometry):
        cut = checks.in_dtype(limit, geometry.norms.dtype)
        return geometry.clip_factors(geometry.in_norm_unit(cut))

    return lift.prescaled("clipping", rule, factors)

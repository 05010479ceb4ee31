"""The majority vote of signs."""

import jax.numpy as jnp

from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


def sign_majority() -> Aggregator:
    r"""The majority vote of signs (signSGD with majority vote).

    .. math:: A(x)_k = \operatorname{sign} \sum_i \operatorname{sign}(x_{ik})

    Zeros abstain, and a tie is zero. The result is a direction, with entries −1, 0 and
    1, and no mean: choose the learning rate for it.

    **Guarantee.** Fewer than half of the workers cannot turn a coordinate on whose sign
    all honest ones agree. NaN abstains, ±Inf votes, and below 1.2e-38 XLA takes what
    float32 can hold for zero. O(dm) in one pass over the stack. Its derivative is zero
    everywhere.

    Returns:
      An `Aggregator`.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.1, -5.0], [0.2, 1.0], [-jnp.inf, jnp.nan]])
      >>> print(byzjax.sign_majority().aggregate(rows))
      [1. 0.]

    Reference:
      Bernstein, Zhao, Azizzadenesheli, Anandkumar: signSGD with Majority Vote is
      Communication Efficient and Fault Tolerant, 2019,
      https://arxiv.org/abs/1810.05291
    """

    def reduce(rows, present=None):
        votes = [jnp.sign(jnp.where(jnp.isnan(row), 0, row)) for row in rows]
        if present is not None:
            votes = [
                jnp.where(there, vote, 0)
                for there, vote in zip(present, votes, strict=True)
            ]
        return jnp.sign(order.row_sum(votes))

    return lift.coordinatewise("sign_majority", reduce, bears=bearing.minority)

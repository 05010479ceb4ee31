"""Nearest-neighbour mixing."""

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order


def nnm(rule: Aggregator, num_byzantine: int) -> Aggregator:
    r"""Nearest-neighbour mixing (NNM): each row becomes the mean of its neighbourhood.

    .. math:: y_i = \frac{1}{m - f} \sum_{j \in N_i} x_j, \qquad A(y_1, \dots, y_m)

    with N_i the m−f rows nearest x_i, itself included; ties to the lowest index.

    **Guarantee.** Turns an (f, κ)-robust rule into an (f, 8f/(m−f)·(κ+1))-robust one
    (Allouah et al. 2023, Lemma 1), m ≥ 2f + 1. An honest row moves by at most f/(m−f)
    of the largest distance between honest rows, and a mean of far rows that cancel
    counts as far. A row that is not finite enters no neighbourhood but its own. O(dm²)
    for the distances; over a geometric base the mixing itself does not touch the
    coordinates.

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
      >>> rows = jnp.array([[0.0], [2.0], [4.0], [jnp.nan]])
      >>> print(byzjax.nnm(byzjax.median(), num_byzantine=1).aggregate(rows))
      [2.]

    Reference:
      Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing: A Recipe
      for Optimal Byzantine ML under Heterogeneity, 2023,
      https://arxiv.org/abs/2302.01772
    """
    bearing.check_base("nnm", rule)
    f = checks.count("nnm", num_byzantine=num_byzantine)
    bearing.check_told("nnm", rule, f)

    def check(m):
        checks.minority("nnm", f)(m)
        bearing.check_bears("nnm", rule, f, m)

    def matrix(geometry):
        m, n = geometry.num_workers, geometry.num_present
        # Itself always included: a row that is not finite stays so when mixed.
        itself = np.eye(m, dtype=bool)
        distances = jnp.where(itself, -1, geometry.squared_distances)
        return jax.vmap(lambda row: order.nearest_shares(row, n - f))(distances)

    return lift.premixed(
        "nnm",
        rule,
        matrix,
        check=check,
        bears=bearing.told(f, rule),
        sizes=lambda m: [m - f] * m,
    )

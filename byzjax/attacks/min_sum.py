"""Min-sum: distances to the honest messages that sum to no more than theirs."""

from typing import Literal

import jax.numpy as jnp

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import disguise
from byzjax.attacks.disguise import Perturbation
from byzjax.numerics import stacked


def min_sum(
    perturbation: Perturbation = "unit",
    *,
    bound: Literal["max", "min"] = "max",
    num_byzantine: int | None = None,
) -> Attack:
    r"""Min-sum: as far as possible with distances summing to no more than honest ones.

    .. math:: b_i = \mu - \gamma p, \qquad
      \gamma = \max\Big\{\gamma : \sum_j \|x_j - b\|^2
      \le \max_k \sum_j \|x_j - x_k\|^2\Big\}

    over honest j, k, with p as in `min_max`. The paper bounds by the honest message of
    the largest sum ("max"), the authors' code by that of the smallest ("min").

    Args:
      perturbation: p.
      bound: "max" or "min".
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: another word; at trace time "std" with one honest worker.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [0.0]])
      >>> print(byzjax.attacks.min_sum().apply(rows, num_byzantine=1).ravel())
      [1. 3. 1.]

    Reference:
      Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021,
      https://doi.org/10.14722/ndss.2021.24498
    """
    checks.word("min_sum", ("max", "min"), bound=bound)

    def reach(honest, center, towards):
        h = checks.num_workers(honest)
        geometry = stacked.geometry(honest)
        sums = jnp.sum(geometry.squared_distances, axis=1)
        limit = jnp.max(sums) if bound == "max" else jnp.min(sums)
        # Σ‖x_j − μ + γp‖² = Σ‖x_j − μ‖² + hγ²‖p‖², as the x_j − μ sum to zero.
        distances = stacked.distances_to_tree(honest, center).plain()
        spent = jnp.sum(jnp.square(geometry.in_unit(distances)))
        room = jnp.sqrt(jnp.maximum(limit - spent, 0) / h) * geometry.unit
        length = stacked.norm(towards)
        return room / jnp.where(length > 0, length, 1)

    return disguise.perturbed(
        "min_sum", perturbation, reach, num_byzantine=num_byzantine
    )

"""Min-max: no farther from any honest message than these are from each other."""

from byzjax.attack import Attack
from byzjax.attacks import disguise
from byzjax.attacks.disguise import Perturbation


def min_max(
    perturbation: Perturbation = "unit", *, num_byzantine: int | None = None
) -> Attack:
    r"""Min-max: as far as possible without being farther out than an honest message.

    .. math:: b_i = \mu - \gamma p, \qquad
      \gamma = \max\Big\{\gamma : \max_j \|x_j - b\| \le \max_{j,k} \|x_j - x_k\|\Big\}

    over honest j, k, with p one of μ/‖μ‖ ("unit"), sign(μ) ("sign") and the standard
    deviation per coordinate, ddof 1 ("std").

    Each constraint is a quadratic in γ, so γ is found exactly. The authors' code
    bisects from 10 in halving steps, to 1e-5, and so never finds more than 20.

    Args:
      perturbation: p, "unit", "sign" or "std".
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: another word; at trace time "std" with one honest worker.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [0.0]])
      >>> print(byzjax.attacks.min_max().apply(rows, num_byzantine=1).ravel())
      [1. 3. 1.]

    Reference:
      Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021,
      https://doi.org/10.14722/ndss.2021.24498
    """
    return disguise.perturbed(
        "min_max", perturbation, disguise.hidden, num_byzantine=num_byzantine
    )

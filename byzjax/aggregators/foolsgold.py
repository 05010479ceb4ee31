"""FoolsGold: workers whose updates are too alike are taken for one and the same."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import checks, trees
from byzjax.aggregators import claims
from byzjax.base import Aggregator
from byzjax.numerics import stacked
from byzjax.trees import accumulator_dtype


class FoolsGoldState(NamedTuple):
    """State of `foolsgold`.

    Attributes:
      history: sums of each worker's updates so far, leaves `[m, ...]`, in float32 at
        least; None without `num_workers`.
    """

    history: trees.Tree  # Sums of the updates so far, leaves [m, ...]; or None.


def foolsgold(
    *, num_workers: int | None = None, normalize: bool = True, epsilon: float = 1e-5
) -> Aggregator:
    r"""FoolsGold: workers whose updates are too alike are taken for one and the same.

    .. math::
      v_i = \max_{j \ne i} \cos_{ij}, \quad
      \cos_{ij} \leftarrow \cos_{ij} \min(1, v_i / v_j), \quad
      \alpha_i = 1 - \max_{j \ne i} \cos_{ij}, \quad
      \alpha_i \leftarrow \ln \frac{\alpha_i}{1 - \alpha_i} + \frac12

    with α scaled to a largest value of 0.99 before the last step and clipped to [0, 1]
    around it, and A(x) the mean of the rows weighted by α. If no worker has a weight,
    as when all rows are equal, all have the same. The cosines are between the sums of
    all updates so far, which needs `num_workers`, or of the present ones.

    **Guarantee.** Against *sybils*, any number of workers that pursue one goal with
    much the same updates. A single Byzantine worker unlike all others is trusted: this
    is no (f, κ)-robust rule, and it fits honest workers with unlike data. A row that is
    not finite has weight exactly 0 and is left out of the history; a worker whose sum
    leaves the floats' range is left out from then on. Two passes over the stack, one
    more for the history.

    Args:
      num_workers: m, to keep a history of a row for each; None for none.
      normalize: whether to divide by Σ α. The paper does not: its steps are up to m
        times as long.
      epsilon: keeps quotients and logarithms finite, as in the authors' code.

    Returns:
      An `Aggregator` with a `FoolsGoldState`.

    Raises:
      ValueError: updates of another number of workers than `num_workers`.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]])
      >>> print(byzjax.foolsgold().aggregate(rows))
      [0.5 0.5]

    Reference:
      Fung, Yoon, Beschastnikh: The Limitations of Federated Learning in Sybil Settings,
      RAID 2020, https://arxiv.org/abs/1808.04866
    """
    checks.flag("foolsgold", normalize=normalize)
    if num_workers is not None:
        num_workers = checks.count("foolsgold", num_workers=num_workers, minimum=1)
    small = checks.number("foolsgold", epsilon=epsilon, open_interval=True)

    def init(params):
        if num_workers is None:
            return FoolsGoldState(None)
        return FoolsGoldState(
            jax.tree.map(
                lambda p: jnp.zeros(
                    (num_workers, *jnp.shape(p)),
                    accumulator_dtype(jnp.asarray(p).dtype),
                ),
                params,
            )
        )

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        claims.refuse_weights("foolsgold", weights)
        m = checks.num_workers(updates)
        if num_workers is None:
            geometry = stacked.geometry(updates, present=present)
            finite = geometry.finite
        else:
            if m != num_workers:
                raise ValueError(
                    "foolsgold needs updates of the number of workers in its history, "
                    f"got {m} and num_workers={num_workers}"
                )
            finite = stacked.norms(updates, present).finite
            state = FoolsGoldState(
                jax.tree.map(
                    lambda total, x: total + _select(finite, x.astype(total.dtype)),
                    state.history,
                    updates,
                )
            )
            geometry = stacked.geometry(state.history, present=present)
        cosines = 1 - geometry.cosine_distances()
        shares = _unlikeness(cosines, geometry.present, small)
        finite &= geometry.finite
        shares = jnp.where(finite, shares, 0)
        none = jnp.sum(shares) == 0
        shares = jnp.where(none & finite, 1, shares)
        if normalize:
            shares = stacked.normalized(shares)
        return stacked.weighted_sum(updates, shares), state

    return Aggregator(init, update)


def _select(finite, rows):
    """Rows `[m, ...]`, zero where not finite."""
    return jnp.where(finite.reshape((-1,) + (1,) * (rows.ndim - 1)), rows, 0)


def _unlikeness(cosines, present, epsilon):
    """FoolsGold's weights α [m] from cosines [m, m], −inf where unknown."""
    m = cosines.shape[0]
    epsilon = checks.in_dtype(epsilon, cosines.dtype)
    # As in the authors' code a worker's likeness with itself counts as zero.
    itself = np.eye(m, dtype=bool)
    cosines = jnp.where(itself | ~jnp.isfinite(cosines), 0, cosines)
    most = jnp.max(cosines, axis=1) + epsilon
    pardoned = most[:, None] < most[None, :]
    ratio = most[:, None] / jnp.where(pardoned, most[None, :], 1)
    cosines = jnp.where(pardoned & ~itself, cosines * ratio, cosines)
    alpha = jnp.clip(1 - jnp.max(cosines, axis=1), 0, 1)
    largest = jnp.max(alpha if present is None else jnp.where(present, alpha, 0))
    alpha = alpha / jnp.where(largest > 0, largest, 1)
    alpha = jnp.minimum(alpha, 0.99)
    return jnp.clip(jnp.log(alpha / (1 - alpha) + epsilon) + 0.5, 0, 1)

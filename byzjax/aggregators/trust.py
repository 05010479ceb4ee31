"""Rules that trust a direction: a vote of signs, a reference update, unlike workers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import base, columns, lifts, reductions, stacked
from byzjax.base import Aggregator
from byzjax.columns import accumulator_dtype, flat_rows


def sign_majority() -> Aggregator:
    r"""The majority vote of signs (signSGD with majority vote).

    .. math:: A(x)_k = \operatorname{sign} \sum_i \operatorname{sign}(x_{ik})

    Zeros abstain, and a tie is zero. The result is a direction, with entries −1, 0 and
    1, and no mean: choose the learning rate for it.

    **Guarantee.** Fewer than half of the workers cannot turn a coordinate on whose sign
    all honest ones agree. NaN abstains, ±Inf votes. O(dm) in one pass over the stack.
    Its derivative is zero everywhere.

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

    def reduce(rows):
        votes = [jnp.sign(jnp.where(jnp.isnan(row), 0, row)) for row in rows]
        return jnp.sign(reductions.row_sum(votes))

    return lifts.coordinatewise("sign_majority", reduce)


def fltrust() -> Aggregator:
    r"""FLTrust: trust in proportion to the likeness with a reference update.

    .. math:: A(x) = \frac{1}{\sum_i t_i} \sum_i t_i \frac{\|r\|}{\|x_i\|} x_i, \qquad
      t_i = \max(0, \cos(x_i, r))

    with r the update that the server computes itself, on a few data that it trusts,
    passed as `update(..., reference=r)` or `aggregate(..., reference=r)`. If no worker
    is trusted, the result is zero.

    **Guarantee.** The result is no longer than r and never against it, however many
    workers are Byzantine. A row that is not finite has weight exactly 0. Three passes
    over the stack.

    Returns:
      An `Aggregator` that needs a `reference`, a tree like one worker's update.

    Raises:
      ValueError: a missing reference, or one of another structure or shape.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[5.0, 0.0], [0.0, 7.0], [-1e9, 0.0]])
      >>> print(byzjax.fltrust().aggregate(rows, reference=jnp.array([2.0, 0.0])))
      [2. 0.]

    Reference:
      Cao, Fang, Liu, Gong: FLTrust: Byzantine-robust Federated Learning via Trust
      Bootstrapping, NDSS 2021, https://arxiv.org/abs/2012.13995
    """

    def update(updates, state, params=None, *, reference=None, weights=None, **extra):
        lifts.refuse_weights("fltrust", weights)
        base.num_workers(updates)
        _check_reference(updates, reference)
        geometry = stacked.norms(updates)
        products, length = _products(updates, reference)
        norms = stacked.root(geometry.squared_norms)
        length = stacked.root(length)
        usable = geometry.finite & (norms > 0) & (length > 0)
        safe = jnp.where(usable, norms * length, 1)
        trust = jnp.where(usable, jnp.maximum(products / safe, 0), 0)
        scale = jnp.where(usable, length / jnp.where(usable, norms, 1), 0)
        shares = stacked.normalized(trust) * scale
        return stacked.weighted_sum(updates, shares), state

    return Aggregator(optax.init_empty_state, update)


def _check_reference(updates, reference):
    if reference is None:
        raise ValueError(
            "fltrust needs a reference, got reference=None: pass the update that the "
            "server computes on data it trusts to update or aggregate as reference=..."
        )
    wanted = jax.tree.map(lambda x: x.shape[1:], updates)
    if jax.tree.structure(reference) != jax.tree.structure(updates):
        raise ValueError(
            "fltrust needs a reference of the structure of one worker's update, got "
            f"{jax.tree.structure(reference)} and {jax.tree.structure(updates)}"
        )
    given = jax.tree.map(jnp.shape, reference)
    if given != wanted:
        raise ValueError(
            f"fltrust needs a reference with the shapes {wanted} of one worker's "
            f"update, got {given}"
        )


def _products(updates, reference):
    """⟨x_i, r⟩ [m], with entries that are not finite left out, and ‖r‖²."""

    def of_block(x, r):
        dtype = accumulator_dtype(x.dtype)
        x, r = x.astype(dtype), r.astype(dtype)
        x = jnp.where(jnp.isfinite(x), x, 0)
        return (), (x * r[None], r * r)

    rows, references = columns.bundled(
        [flat_rows(x) for x in jax.tree.leaves(updates)],
        [jnp.ravel(r) for r in jax.tree.leaves(reference)],
    )
    return columns.fold(of_block, rows, references)[1]


def cosine_distances(geometry: stacked.Geometry) -> jax.Array:
    """1 − cos(x_i, x_j) [m, m]; 1 from and to zero rows, +inf where not finite."""
    m = geometry.num_workers
    norms = stacked.root(jnp.where(geometry.finite, geometry.squared_norms, 0))
    product = norms[:, None] * norms[None, :]
    both = geometry.finite[:, None] & geometry.finite[None, :]
    usable = product > 0
    product = jnp.where(usable, product, 1)
    # Between rows of like norms from the distance: 1 − cos itself cancels where they
    # are nearly parallel. Between others from the product, since the distance cancels.
    squared = jnp.where(both, geometry.squared_distances, 0)
    squared = squared - jnp.square(norms[:, None] - norms[None, :])
    gram, origin = geometry.gram[:m, :m], geometry.gram[:m, m]
    inner = gram - origin[:, None] - origin[None, :] + geometry.gram[m, m]
    alike = norms[:, None] <= 2 * norms[None, :]
    distances = jnp.where(alike & alike.T, squared / (2 * product), 1 - inner / product)
    distances = jnp.where(usable, jnp.clip(distances, 0, 2), 1)
    distances = jnp.where(np.eye(m, dtype=bool), 0, distances)
    return jnp.where(both, distances, jnp.inf)


class FoolsGoldState(NamedTuple):
    """State of `foolsgold`."""

    history: base.Tree  # Sums of the updates so far, leaves [m, ...]; or None.


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
    not finite has weight exactly 0 and is left out of the history. Two passes over the
    stack, one more for the history.

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
    if num_workers is not None:
        base.check_count("foolsgold", num_workers=num_workers, minimum=1)
    base.check_number("foolsgold", epsilon=epsilon, open_interval=True)

    def init(params):
        if num_workers is None:
            return FoolsGoldState(None)
        return FoolsGoldState(
            jax.tree.map(
                lambda p: jnp.zeros(
                    (num_workers, *jnp.shape(p)), accumulator_dtype(p.dtype)
                ),
                params,
            )
        )

    def update(updates, state, params=None, *, weights=None, **extra):
        lifts.refuse_weights("foolsgold", weights)
        m = base.num_workers(updates)
        if num_workers is None:
            geometry = stacked.geometry(updates)
            finite = geometry.finite
        else:
            if m != num_workers:
                raise ValueError(
                    "foolsgold needs updates of the number of workers in its history, "
                    f"got {m} and num_workers={num_workers}"
                )
            finite = stacked.norms(updates).finite
            state = FoolsGoldState(
                jax.tree.map(
                    lambda total, x: total + _select(finite, x.astype(total.dtype)),
                    state.history,
                    updates,
                )
            )
            geometry = stacked.geometry(state.history)
        shares = _unlikeness(1 - cosine_distances(geometry), epsilon)
        shares = jnp.where(finite & geometry.finite, shares, 0)
        none = jnp.sum(shares) == 0
        shares = jnp.where(none & finite, 1, shares)
        if normalize:
            shares = stacked.normalized(shares)
        return stacked.weighted_sum(updates, shares), state

    return Aggregator(init, update)


def _select(finite, rows):
    """Rows `[m, ...]`, zero where not finite."""
    return jnp.where(finite.reshape((-1,) + (1,) * (rows.ndim - 1)), rows, 0)


def _unlikeness(cosines, epsilon):
    """FoolsGold's weights α [m] from cosines [m, m], −inf where unknown."""
    m = cosines.shape[0]
    # As in the authors' code a worker's likeness with itself counts as zero.
    itself = np.eye(m, dtype=bool)
    cosines = jnp.where(itself | ~jnp.isfinite(cosines), 0, cosines)
    most = jnp.max(cosines, axis=1) + epsilon
    pardoned = most[:, None] < most[None, :]
    ratio = most[:, None] / jnp.where(pardoned, most[None, :], 1)
    cosines = jnp.where(pardoned & ~itself, cosines * ratio, cosines)
    alpha = jnp.clip(1 - jnp.max(cosines, axis=1), 0, 1)
    largest = jnp.max(alpha)
    alpha = alpha / jnp.where(largest > 0, largest, 1)
    alpha = jnp.minimum(alpha, 0.99)
    return jnp.clip(jnp.log(alpha / (1 - alpha) + epsilon) + 0.5, 0, 1)

"""Rules that weigh whole workers by where they lie: geometric median and Krum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax import base, lifts, order, stacked
from byzjax.base import Aggregator


def geometric_median(
    *,
    smoothing: float = 0.0,
    num_iterations: int = 100,
    init: str = "mean",
    tolerance: float | None = None,
) -> Aggregator:
    r"""The geometric median (GM, RFA), by Weiszfeld's iteration.

    .. math::
      A(x) = \arg\min_z \sum_i \|x_i - z\|, \qquad
      z \leftarrow \frac{\sum_i w_i x_i}{\sum_i w_i}, \quad
      w_i = \frac{1}{\max(\|x_i - z\|, \nu)}

    The iteration runs on m×m arrays, so its length hardly costs. The defaults reach the
    geometric median to 1e-4 of the spread; `smoothing=0.1, num_iterations=3,
    init="zeros"` is the setting of the CTMA paper's experiments. With ν = 0, an iterate
    that meets a row follows Vardi and Zhang's step and not 0/0.

    With weights α, w_i = α_i / max(‖x_i − z‖, ν) (Dahan and Levy 2024b).

    **Guarantee.** Breakdown point ⌊(m−1)/2⌋/m. (c_δ, δ)-robust with
    c_δ ≤ 4(1 + f/(m−2f))² (Allouah et al. 2023). Rows that are not finite have weight
    exactly 0. Two passes over the stack and O(m²) an iteration.

    Args:
      smoothing: ν ≥ 0, in units of the updates; the paper's experiments use 0.1.
      num_iterations: at most this many steps, at least 1.
      init: where to start, "zeros", "mean" (of the finite rows), or "median" (the
        coordinate-wise one, which costs another pass).
      tolerance: stop when a step moves z by less than this times the distance to the
        nearest half of the rows; None runs all steps.

    Returns:
      An `Aggregator`; takes `weights` `[m]`.

    Raises:
      ValueError: negative smoothing, no iterations, an unknown init.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [jnp.inf, jnp.nan]])
      >>> print(byzjax.geometric_median().aggregate(rows).round(3))
      [0.423 0.423]

    Reference:
      Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, 2022,
      https://arxiv.org/abs/1912.13445; Chen, Su, Xu: Distributed Statistical Machine
      Learning in Adversarial Settings, 2017, https://arxiv.org/abs/1705.05491; Vardi,
      Zhang: The multivariate L1-median and associated data depth, PNAS 2000
    """
    name = "geometric_median"
    base.check_number(name, smoothing=smoothing)
    base.check_count(name, num_iterations=num_iterations, minimum=1)
    if tolerance is not None:
        base.check_number(name, tolerance=tolerance)
    if init not in ("zeros", "mean", "median"):
        raise ValueError(
            f'{name} needs init to be "zeros", "mean" or "median", got init={init!r}'
        )

    def weigh(geometry, weights):
        m = geometry.num_workers
        prior = jnp.ones((m,), geometry.gram.dtype) if weights is None else weights
        prior = jnp.where(geometry.finite, prior.astype(geometry.gram.dtype), 0)
        if init == "mean":
            start = stacked.normalized(prior)
        else:  # At the origin: zero, or the coordinate-wise median.
            start = jnp.zeros_like(prior)
        return _weiszfeld(geometry, prior, start, smoothing, num_iterations, tolerance)

    if init != "median":
        return lifts.geometric(name, weigh, weighted=True)

    def update(updates, state, params=None, *, weights=None, **extra):
        m = base.num_workers(updates)
        weights = lifts.check_weights(name, weights, m)
        center = lifts.along_workers(order.middle, updates)
        geometry = stacked.geometry(updates, origin=center)
        shares = jnp.where(geometry.finite, weigh(geometry, weights), 0)
        return stacked.weighted_sum(updates, shares, origin=center), state

    return Aggregator(optax.init_empty_state, update)


def _weiszfeld(geometry, prior, start, smoothing, num_iterations, tolerance):
    """Weiszfeld's iteration on the plane of the geometry, from weights to weights [m].

    Vardi and Zhang's step: where z is itself a row, the pull R of the others moves it
    only by what exceeds that row's own weight η.
    """
    gram = geometry.gram
    m = prior.shape[0]
    tiny = jnp.finfo(gram.dtype).tiny
    epsilon = jnp.finfo(gram.dtype).eps
    majority = m // 2 + 1
    # A row is also met where z is nearer to it than other rows are by far: z would only
    # creep up on it, and derivatives would drown in the rounding of a tiny distance.
    diagonal = jnp.diagonal(gram)[:m]
    blur = 4 * epsilon * (diagonal[:, None] + diagonal[None, :])
    apart = geometry.squared_distances
    gap = jnp.min(jnp.where(apart > blur, apart, jnp.inf), axis=1)
    close = epsilon**1.5 * gap

    def step(_, carry):
        shares, done = carry
        squared = stacked.squared_distances_to(geometry, shares)
        # Rounding in `squared` is relative to how far the points are from the centre.
        a = stacked.point(shares)
        level = jnp.maximum(stacked.squared_length(gram, a), 0)
        level = 4 * epsilon * (diagonal + level)
        meets = geometry.finite & (squared <= jnp.maximum(level, close))
        squared = jnp.where(meets | ~geometry.finite, 1.0, squared)
        distance = jnp.sqrt(squared)
        if smoothing:
            pull = prior / jnp.where(meets, smoothing, jnp.maximum(distance, smoothing))
            own = jnp.zeros((), gram.dtype)
            others = jnp.sum(pull)
        else:
            pull = jnp.where(meets, 0, prior / distance)
            own = jnp.sum(jnp.where(meets, prior, 0))
            others = jnp.sum(pull)
        target = stacked.normalized(pull)
        if smoothing:
            new = target
        else:
            force = stacked.point(target) - a
            force = stacked.squared_length(gram, force)
            # Selected before the root and the quotient, so that derivatives are finite
            # where all rows meet.
            pulled = force > tiny
            force = jnp.where(pulled, others * jnp.sqrt(jnp.where(pulled, force, 1)), 0)
            leaves = (own > 0) & (force > own)
            stay = jnp.where(
                leaves, own / jnp.where(leaves, force, 1), jnp.where(own > 0, 1.0, 0.0)
            )
            # That row itself, and not the z within rounding of it.
            at_row = stacked.normalized(jnp.where(meets, prior, 0))
            new = target + stay * (at_row - target)
        if tolerance is None:
            return new, done
        gap = stacked.point(new) - a
        moved = stacked.squared_length(gram, gap)
        spread = jnp.sort(squared)[majority - 1]
        return jnp.where(done, shares, new), done | (moved <= tolerance**2 * spread)

    carry = (start, jnp.asarray(False))
    return lax.fori_loop(0, num_iterations, step, carry)[0]


def _krum_check(name, f, num_neighbors, num_selected=None):
    """The requirements of Krum, those of its proof unless the caller overrides them."""

    def check(m):
        if num_neighbors is None:
            if not m >= 2 * f + 3:
                raise ValueError(
                    f"{name} needs num_workers >= 2 * num_byzantine + 3, got "
                    f"num_workers={m} and num_byzantine={f}"
                )
        else:
            base.check_minority(name, f)(m)
            if not num_neighbors <= m - 1:
                raise ValueError(
                    f"{name} needs num_neighbors <= num_workers - 1, got "
                    f"num_neighbors={num_neighbors} and num_workers={m}"
                )
        if num_selected is not None and not num_selected <= m:
            raise ValueError(
                f"{name} needs num_selected <= num_workers, got "
                f"num_selected={num_selected} and num_workers={m}"
            )

    return check


def krum_scores(
    squared_distances: jax.Array, num_neighbors: int, squared: bool | str = True
) -> jax.Array:
    """Krum's score [m]: the sum of distances to the nearest other rows.

    Rows out of the running have score +inf and are nobody's neighbours, so that asking
    for more neighbours than there are finite ones does not make all scores equal.

    Args:
      squared_distances: `[m, m]`, +inf for rows out of the running.
      num_neighbors: how many of the nearest others.
      squared: True, False for plain distances, or "twice" for fourth powers.
    """
    m = squared_distances.shape[0]
    finite = jnp.isfinite(jnp.diagonal(squared_distances))
    ordered = jnp.sort(krum_distances(squared_distances, squared), axis=1)
    read = np.arange(m) < jnp.minimum(num_neighbors, jnp.sum(finite) - 1)
    scores = jnp.sum(jnp.where(read[None, :], ordered, 0), axis=1)
    return jnp.where(finite, scores, jnp.inf)


def krum_distances(
    squared_distances: jax.Array, squared: bool | str = True
) -> jax.Array:
    """What Krum sums, [m, m], +inf on the diagonal; `squared` as in `krum_scores`."""
    m = squared_distances.shape[0]
    others = jnp.where(np.eye(m, dtype=bool), jnp.inf, squared_distances)
    if squared is False:
        return jnp.sqrt(others)
    if squared is True:
        return others
    # Fourth powers leave float32's range at distances of 1e9 and 1e-10; in units of
    # how far the most central row must reach for half of the rows, they do not.
    reach = jnp.min(jnp.sort(others, axis=1)[:, max(0, m // 2 - 1)])
    others = others / jnp.where((reach > 0) & (reach < jnp.inf), reach, 1)
    return others * others


def check_squared(name, squared):
    """Says what may be summed."""
    if not (isinstance(squared, bool) or squared == "twice"):
        raise ValueError(
            f'{name} needs squared to be True, False or "twice", got '
            f"squared={squared!r}"
        )


def krum(
    num_byzantine: int,
    *,
    num_neighbors: int | None = None,
    squared: bool | str = True,
) -> Aggregator:
    r"""Krum: the row that is closest to its nearest others.

    .. math:: A(x) = x_{i^*}, \quad i^* = \arg\min_i \sum_{j \in N_i} \|x_i - x_j\|^2

    with N_i the m−f−2 nearest *others* of i.

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 3. (c_δ, δ)-robust with
    c_δ ≤ 6(1 + f/(m−2f)) (Allouah et al. 2023). A row that is not finite is never
    chosen; ties go to the lowest index. Two passes over the stack and O(m² log m).

    Args:
      num_byzantine: f.
      num_neighbors: m−f−2 by default, as in the paper; ByzFL and ByzPy take m−f−1.
        Given explicitly, the paper's m ≥ 2f + 3 is not asked for, only m ≥ 2f + 1.
      squared: True sums squared distances (the paper), False plain ones, and "twice"
        fourth powers; both occur in published code. They choose different rows.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: m < 2f + 3, or more neighbours than other workers, at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [1.0], [1.2], [9.0], [jnp.nan]])
      >>> print(byzjax.krum(num_byzantine=1).aggregate(rows))
      [1.]

    Reference:
      Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries:
      Byzantine Tolerant Gradient Descent, 2017, https://arxiv.org/abs/1703.02757
    """
    f = base.check_count("krum", num_byzantine=num_byzantine)
    if num_neighbors is not None:
        base.check_count("krum", num_neighbors=num_neighbors, minimum=1)
    check_squared("krum", squared)

    def weigh(geometry):
        count = num_neighbors or geometry.num_workers - f - 2
        scores = krum_scores(geometry.squared_distances, count, squared)
        return order.mark_nearest(scores, 1)

    check = _krum_check("krum", f, num_neighbors)
    return lifts.geometric("krum", weigh, check=check, keeps=lambda m: 1)


def multi_krum(
    num_byzantine: int,
    *,
    num_selected: int | None = None,
    num_neighbors: int | None = None,
    squared: bool | str = True,
) -> Aggregator:
    r"""Multi-Krum: the mean of the rows with the best Krum scores.

    .. math:: A(x) = \frac{1}{q} \sum_{i \in S} x_i, \quad S = \text{the } q
      \text{ rows of least score}

    **Guarantee.** As `krum` for q ≤ m−f: breakdown point f/m for m ≥ 2f + 3. A row that
    is not finite has weight exactly 0; ties go to the lowest index.

    Args:
      num_byzantine: f.
      num_selected: q, m−f by default (the paper, ByzFL); some code takes m−2f−3.
      num_neighbors: as in `krum`.
      squared: as in `krum`.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: m < 2f + 3, or q > m, at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [1.0], [2.0], [1.0], [jnp.nan]])
      >>> print(byzjax.multi_krum(num_byzantine=1).aggregate(rows))
      [1.]

    Reference:
      Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries:
      Byzantine Tolerant Gradient Descent, 2017, https://arxiv.org/abs/1703.02757
    """
    name = "multi_krum"
    f = base.check_count(name, num_byzantine=num_byzantine)
    for keyword, value in (
        ("num_selected", num_selected),
        ("num_neighbors", num_neighbors),
    ):
        if value is not None:
            base.check_count(name, minimum=1, **{keyword: value})
    check_squared(name, squared)

    def weigh(geometry):
        m = geometry.num_workers
        scores = krum_scores(
            geometry.squared_distances, num_neighbors or m - f - 2, squared
        )
        count = num_selected or m - f
        return order.mark_nearest(scores, count) / count

    check = _krum_check(name, f, num_neighbors, num_selected)
    return lifts.geometric(
        name, weigh, check=check, keeps=lambda m: min(num_selected or m - f, m)
    )

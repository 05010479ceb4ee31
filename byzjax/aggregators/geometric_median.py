"""The geometric median, by Weiszfeld's iteration."""

import jax.numpy as jnp
import optax
from jax import lax

from byzjax import checks
from byzjax.aggregators import lift
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked


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
      TypeError: a smoothing or tolerance that is traced or no number.

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
    smoothing = checks.number(name, smoothing=smoothing, static=True)
    num_iterations = checks.count(name, num_iterations=num_iterations, minimum=1)
    if tolerance is not None:
        tolerance = checks.number(name, tolerance=tolerance, static=True)
    checks.word(name, ("zeros", "mean", "median"), init=init)

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
        return lift.geometric(name, weigh, weighted=True)

    def update(updates, state, params=None, *, weights=None, **extra):
        m = checks.num_workers(updates)
        weights = lift.check_weights(name, weights, m)
        center = stacked.along_workers(order.middle, updates)
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
        squared = geometry.squared_distances_to(shares)
        # Rounding in `squared` is relative to how far the points are from the centre.
        a = stacked.point(shares)
        level = jnp.maximum(geometry.squared_length(a), 0)
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
            force = geometry.squared_length(force)
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
        moved = geometry.squared_length(gap)
        spread = jnp.sort(squared)[majority - 1]
        return jnp.where(done, shares, new), done | (moved <= tolerance**2 * spread)

    carry = (start, jnp.asarray(False))
    return lax.fori_loop(0, num_iterations, step, carry)[0]

"""The geometric median: exact by Newton's method, or so many of Weiszfeld's steps."""

import functools

import jax
import jax.core
import jax.numpy as jnp
import optax

from byzjax import checks, loops
from byzjax.aggregators import bearing, claims, lift, newton
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked


def geometric_median(
    *,
    smoothing: float = 0.0,
    num_iterations: int | None = None,
    init: str | None = None,
    tolerance: float | None = None,
) -> Aggregator:
    r"""The geometric median (GM, RFA), exact or by Weiszfeld's iteration.

    .. math::
      A(x) = \arg\min_z \sum_i \max(\|x_i - z\|, \nu), \qquad
      z \leftarrow \frac{\sum_i w_i x_i}{\sum_i w_i}, \quad
      w_i = \frac{1}{\max(\|x_i - z\|, \nu)}

    By default the minimum itself: from the best row (the medoid, which no minority
    moves) by Newton's method with an exact line search along every step. A convex
    function falls at each, wherever rows lie; the row is the answer where it is one.
    With `num_iterations` so many steps of Weiszfeld's iteration, which come back slowly
    from a start that attackers have moved: `smoothing=0.1, num_iterations=3,
    init="zeros"` is the setting of the CTMA paper's experiments. Both run on m×m
    arrays. With ν = 0, an iterate that meets a row follows Vardi and Zhang's step.

    With weights α, each distance counts α_i times (Dahan and Levy 2024b).

    **Guarantee.** Breakdown point ⌊(m−1)/2⌋/m, wherever f rows lie: the minimum, to
    1e-4 of the distance to its nearer half of the rows, is no farther from the centre
    of the honest rows than 2(m−f)/(m−2f) times the farthest honest row. (c_δ, δ)-robust
    with c_δ ≤ 4(1 + f/(m−2f))² (Allouah et al. 2023). With `num_iterations` neither
    holds for rows far away. Rows that are not finite have weight exactly 0, as have
    those 10^18 times as far out as the middle one, and may have those 10^18 away in
    float32: the minimum is then that of the others. It is known to some ten units in
    the last place of the rows at best, and along a line that rows are near no better
    than sums tell: of an even number, all between the middle two are nearly minima,
    and of rows within ε times their distance of a line it is known to 10^-6/ε² of it.
    Two passes over the stack, with more than 48 workers one more where some are as
    close together as 2% of how far out they are, and O(m³) for each of some ten steps,
    O(m²) for one of Weiszfeld's.

    Args:
      smoothing: ν ≥ 0, in units of the updates; the paper's experiments use 0.1.
      num_iterations: steps of Weiszfeld's iteration, at least 1; None for the minimum.
      init: where these start, "zeros", "mean" (of the finite rows, the default), or
        "median" (the coordinate-wise one, which costs another pass).
      tolerance: they stop when one moves z by less than this times the distance to the
        nearest half of the rows; None runs all of them.

    Returns:
      An `Aggregator`; takes `weights` `[m]`.

    Raises:
      ValueError: negative smoothing, no iterations, an unknown init; smoothing, init or
        tolerance without `num_iterations`.
      TypeError: a smoothing or tolerance that is no number.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [jnp.inf, jnp.nan]])
      >>> print(byzjax.geometric_median().aggregate(rows).round(3))
      [0.423 0.423]

    Reference:
      Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, 2022,
      https://arxiv.org/abs/1912.13445; Chen, Su, Xu: Distributed Statistical Machine
      Learning in Adversarial Settings, 2017, https://arxiv.org/abs/1705.05491; Vardi,
      Zhang: The multivariate L1-median and associated data depth, PNAS 2000; Overton: A
      quadratically convergent method for minimizing a sum of Euclidean norms, 1983
    """
    name = "geometric_median"
    smoothing = checks.number(name, smoothing=smoothing)
    if num_iterations is not None:
        num_iterations = checks.count(name, num_iterations=num_iterations, minimum=1)
    if tolerance is not None:
        tolerance = checks.number(name, tolerance=tolerance, static=True)
    if init is not None:
        checks.word(name, ("zeros", "mean", "median"), init=init)
    # Traced, it may be anything, and is taken for more than zero.
    smoothed = isinstance(smoothing, jax.core.Tracer) or bool(smoothing > 0)
    given = smoothed or init is not None or tolerance is not None
    if num_iterations is None and given:
        raise ValueError(
            f"{name} needs num_iterations with smoothing, init or tolerance, got "
            f"num_iterations=None, smoothing={smoothing}, init={init!r} and "
            f"tolerance={tolerance}: the minimum itself does not depend on them"
        )

    def weigh(geometry, weights):
        m = geometry.num_workers
        prior = jnp.ones((m,), geometry.gram.dtype) if weights is None else weights
        prior = jnp.where(geometry.finite, prior.astype(geometry.gram.dtype), 0)
        if num_iterations is None:
            return newton.minimum(geometry, prior)
        if init in ("zeros", "median"):  # At the origin, which is that median.
            start = jnp.zeros_like(prior)
        else:
            start = stacked.normalized(prior)
        nu = smoothing if smoothed else None
        return _weiszfeld(geometry, prior, start, nu, num_iterations, tolerance)

    if init != "median":
        return lift.geometric(
            name, weigh, bears=bearing.minority, weighted=True, absent=True
        )

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        m = checks.num_workers(updates)
        weights = claims.check_weights(name, weights, m, present)
        middle = functools.partial(order.middle, present=present)
        center = stacked.along_workers(middle, updates)
        geometry = stacked.geometry(updates, origin=center, present=present)
        shares = jnp.where(geometry.finite, weigh(geometry, weights), 0)
        return stacked.weighted_sum(updates, shares, origin=center), state

    return Aggregator(optax.init_empty_state, update, bears=bearing.minority)


def _weiszfeld(geometry, prior, start, smoothing, num_iterations, tolerance):
    """Weiszfeld's iteration on the plane of the geometry, from weights to weights [m].

    Vardi and Zhang's step: where z is itself a row, the pull R of the others moves it
    only by what exceeds that row's own weight η.
    """
    gram = geometry.gram
    m = prior.shape[0]
    tiny = jnp.finfo(gram.dtype).tiny
    epsilon = jnp.finfo(gram.dtype).eps
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
        if smoothing is not None:
            nu = geometry.in_unit(checks.in_dtype(smoothing, prior.dtype))
            nu = jnp.maximum(nu, tiny)
            lengths = jnp.where(meets, nu, jnp.maximum(distance, nu))
            # In units of the nearest row's: where most rows are zero, ν may be a small
            # part of the unit of the others.
            near = jnp.min(jnp.where(geometry.finite, lengths, jnp.inf))
            pull = prior * (stacked.power_of_two(near) / lengths)
            own = jnp.zeros((), gram.dtype)
            others = jnp.sum(pull)
        else:
            # In units of the nearest row's, as their sum is divided by: derivatives of
            # rows far out would leave the range on their way through its inverse.
            near = jnp.min(jnp.where(meets | ~geometry.finite, jnp.inf, distance))
            near = stacked.power_of_two(near)
            pull = jnp.where(meets, 0, prior * (near / distance))
            own = jnp.sum(jnp.where(meets, prior, 0))
            others = jnp.sum(pull) * stacked.inverse(near)
        target = stacked.normalized(pull)
        if smoothing is not None:
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
        others = squared
        if geometry.present is not None:
            others = jnp.where(geometry.present, squared, jnp.inf)
        spread = jnp.sort(others)[geometry.num_present // 2]
        return jnp.where(done, shares, new), done | (moved <= tolerance**2 * spread)

    carry = (start, jnp.asarray(False))
    return loops.fori_loop(0, num_iterations, step, carry)[0]

"""The geometric median: exact by Newton's method, or so many of Weiszfeld's steps."""

from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.sparse.linalg import cg

from byzjax import checks
from byzjax.aggregators import lift
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked

# Newton's method ends when a full step is shorter than this share of the distance to
# the nearer half of the rows; the error is then about its square. So much nearer to a
# row than that, z is taken for the row.
_SHORT = 1e-5
_MET = 1e-6
_NEAR = 0.1
# When its equations are solved, by conjugate gradients.
_RESIDUAL = 1e-4
_MOST_PRODUCTS = 100
# Shares of a step that a line search tries.
_SHARES = np.append(0, np.outer(2.0 ** np.arange(-20, 9), 1 + np.arange(8) / 8))
_MOST_STEPS = 40
_RIDGE = 1e-6  # Of the Hessian's largest eigenvalue: rows on a line leave it singular.


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
    holds for rows far away. Rows that are not finite have weight exactly 0. Two passes
    over the stack, and O(m³) for each of some ten steps, O(m²) for one of Weiszfeld's.

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
    checks.number(name, smoothing=smoothing)
    if num_iterations is not None:
        checks.count(name, num_iterations=num_iterations, minimum=1)
    if tolerance is not None:
        checks.number(name, tolerance=tolerance)
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
            return _minimum(geometry, prior)
        if init in ("zeros", "median"):  # At the origin, which is that median.
            start = jnp.zeros_like(prior)
        else:
            start = stacked.normalized(prior)
        nu = smoothing if smoothed else None
        return _weiszfeld(geometry, prior, start, nu, num_iterations, tolerance)

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


# --- Newton's method ------------------------------------------------------------------


class _Place(NamedTuple):
    """A point z, as seen from a row x_k near it, in units S_i of length."""

    itself: jax.Array  # Which row x_k is, [m].
    units: jax.Array  # S_i = ‖x_i − x_k‖, but no less than the spread, [m].
    gram: jax.Array  # (x_i − x_k)·(x_j − x_k) / S_i S_j, [m, m].
    steps: jax.Array  # b, with z − x_k = Σ b_i (x_i − x_k) / S_i, [m].
    along: jax.Array  # (z − x_k)·(x_i − x_k) / S_i, [m].
    length: jax.Array  # ‖z − x_k‖².
    squares: jax.Array  # ‖z − x_i‖², [m].
    meets: jax.Array  # Which rows z is, [m].


@jax.custom_jvp
def _minimum(geometry, prior):
    """Weights [m] of the point of least Σ prior_i ‖x_i − z‖."""
    sums = geometry.summed_distances(prior)
    best = jnp.argmin(sums)
    spread = _middle_distance(geometry.squared_distances[best], prior)
    row = (jnp.arange(prior.shape[0]) == best).astype(prior.dtype)

    def going(carry):
        steps, *_, far = carry
        return far & (steps < _MOST_STEPS)

    def step(carry):
        steps, shares, nearest, before, _ = carry
        place = _place(geometry, shares, nearest, spread)
        direction, length, held = _direction(place, prior)
        # Near the minimum, which is where a step is short beside the way to any row,
        # whole steps square the error, until rounding ends that.
        near = length <= _NEAR * jnp.sqrt(jnp.min(place.squares))
        far = (length > _SHORT * spread) & ~(near & (length > before / 2)) & ~held
        share = jnp.where(near, 1, _line_search(place, direction, prior))
        moved = _changes(place, place.steps + share * direction)
        moved, there = as_a_mean(moved + place.itself.astype(moved.dtype))
        before = jnp.where(near, length, jnp.inf)
        return steps + 1, jnp.where(held, shares, moved), there, before, far

    def as_a_mean(shares):
        # One step of Weiszfeld's, which leads down too, and whose shares are those of a
        # mean: sums of steps would come to differences of large ones.
        squares = geometry.squared_distances_to(shares)
        meets = squares <= _MET**2 * spread**2
        pulls = prior / jnp.sqrt(jnp.where(meets, 1, squares))
        pulls = jnp.where(jnp.any(meets), meets.astype(pulls.dtype), pulls)
        return stacked.normalized(pulls), jnp.argmin(squares)

    start = jnp.int32(0), row, best, jnp.asarray(jnp.inf, row.dtype), jnp.asarray(True)
    shares = lax.while_loop(going, step, start)[1]
    # Rows with as small a sum, such as the middle two on a line, share the answer.
    blur = 4 * jnp.finfo(prior.dtype).eps * jnp.sum(prior) * spread
    ties = stacked.normalized((sums <= sums[best] + blur).astype(prior.dtype))
    return jnp.where(jnp.any(shares == 1), ties, shares)


@_minimum.defjvp
def _minimum_jvp(primals, tangents):
    # That of a last step of Newton's from where z is, which there is exact.
    shares = _minimum(*primals)

    def last_step(geometry, prior):
        best = jnp.argmax(shares)
        spread = _middle_distance(geometry.squared_distances[best], prior)
        place = _place(geometry, shares, best, lax.stop_gradient(spread))
        return _changes(place, _direction(place, prior)[0])

    moved = jax.jvp(last_step, primals, tangents)[1]
    # Rows that are the minimum stay so.
    at_rows = jnp.sum((shares > 0).astype(shares.dtype)) * jnp.max(shares) == 1
    return shares, jnp.where(at_rows, 0, moved)


def _middle_distance(squares, weights):
    """The distance within which half of the weight lies."""
    nearest = jnp.argsort(squares)
    reached = jnp.cumsum(weights[nearest]) * 2 >= jnp.sum(weights)
    middle = squares[nearest][jnp.argmax(reached)]
    return jnp.sqrt(jnp.where(jnp.isfinite(middle), middle, 0))


def _place(geometry, shares, nearest, spread):
    """The point Σ shares_i x_i, as seen from the row of an index, near it."""
    gram = geometry.around(nearest)
    reach = jnp.diagonal(gram)
    units = jnp.maximum(jnp.sqrt(lax.stop_gradient(reach)), spread)
    units = jnp.where(units > 0, units, 1)
    gram = gram / units[:, None] / units[None, :]
    itself = jnp.arange(shares.shape[0]) == nearest
    steps = jnp.where(itself, 0, shares * units)
    along = _precisely(gram, steps)
    length = jnp.maximum(stacked.product(steps, along), 0)
    squares = jnp.maximum(length - 2 * units * along + reach, 0)
    squares = jnp.where(geometry.finite, squares, jnp.inf)
    meets = squares <= _MET**2 * spread**2
    return _Place(itself, units, gram, steps, along, length, squares, meets)


def _precisely(matrix, vector):
    """The product [n] of `[n, m]` and `[m]`, its sums rounded once.

    Where far attackers hold z far out, an error that they all share would move it.
    """
    terms = matrix * vector[None]
    rest = jnp.zeros_like(terms[:, 0])
    while terms.shape[1] > 1:
        terms = jnp.pad(terms, ((0, 0), (0, terms.shape[1] % 2)))
        one, other = jnp.split(terms, 2, axis=1)
        terms = one + other
        back = terms - one
        rest += jnp.sum((one - (terms - back)) + (other - back), axis=1)
    return terms[:, 0] + rest


def _changes(place, steps):
    """Σ steps_i (x_i − x_k) / S_i as changes of the shares [m] from those of x_k."""
    others = jnp.where(place.itself, 0, steps / place.units)
    return jnp.where(place.itself, -jnp.sum(others), others)


def _inverses(place):
    """1 / ‖z − x_i‖ [m], 0 where z is that row."""
    return jnp.where(
        place.meets, 0, 1 / jnp.sqrt(jnp.where(place.meets, 1, place.squares))
    )


def _pull(place, prior):
    """What pulls z: cosines between the ways there [m, m], the pull along each [m].

    From rows that z is there is no way, and they hold it with their weight: what is
    left of the pull is a share of it, 0 at the minimum.
    """
    inverse = _inverses(place)
    towards = (place.units * place.along * inverse)[:, None] * inverse[None, :]
    cosines = place.length * inverse[:, None] * inverse[None, :] - towards - towards.T
    ratio = place.units * inverse
    cosines = cosines + ratio[:, None] * ratio[None, :] * place.gram
    others = jnp.where(place.meets, 0, prior)
    pulls = _sum_of_cosines(cosines, others)
    force = jnp.maximum(lax.stop_gradient(stacked.product(pulls, others)), 0)
    held = jnp.sum(jnp.where(place.meets, prior, 0))
    tiny = jnp.finfo(force.dtype).tiny
    left = jnp.maximum(1 - held / jnp.sqrt(jnp.maximum(force, tiny)), 0)
    left = jnp.where(held > 0, left, 1)
    return cosines, left * pulls, left


def _sum_of_cosines(cosines, weights):
    """Σ_j cosines_ij weights_j [m].

    Far attackers draw z far out, where honest rows pull as one against them: sums of ±1
    are exact, and what is left of the cosines is small.
    """
    whole = lax.stop_gradient(jnp.round(cosines))
    rest = cosines - whole
    return stacked.product(whole, weights) + stacked.product(rest, weights)


def _direction(place, prior):
    """Newton's step in units of the place [m], its length, and whether z is held.

    The gradient is U α and the Hessian sI − U W Uᵀ, with the ways' unit vectors U,
    α the prior, W = α_i / ‖z − x_i‖ and s their sum. The step is −U (α + v) / s with
    (sI − W UᵀU) v = W Uᵀ U α, m equations whose right side is small near the minimum.
    """
    cosines, pulls, left = _pull(place, prior)
    inverse = _inverses(place)
    curved = prior * inverse
    total = jnp.sum(curved)
    total = jnp.where(total > 0, total, 1)
    others = left * jnp.where(place.meets, 0, prior)
    # Symmetric, by the root of W on either side.
    root = stacked.root(curved / total)

    def hessian(x):
        return (1 + _RIDGE) * x - root * stacked.product(cosines, root * x)

    bent = root * cg(hessian, root * pulls, tol=_RESIDUAL, maxiter=_MOST_PRODUCTS)[0]
    # A row holds z where it is: away from it the pull itself leads down for sure.
    bent = jnp.where(jnp.any(place.meets), 0, bent)
    moved = (others + bent) / total * inverse
    steps = place.units * moved - jnp.sum(moved) * place.steps
    length = stacked.product(stacked.product(place.gram, steps), steps)
    return steps, jnp.sqrt(jnp.maximum(lax.stop_gradient(length), 0)), left == 0


def _line_search(place, steps, prior):
    """How far to go along a direction: to the minimum of the sum on it, nearly.

    The sum is convex, and its slope has no term that a far row could round away.
    """
    along = stacked.product(place.gram, steps)
    square = jnp.maximum(stacked.product(steps, along), 0)
    rate = stacked.product(place.steps, along) - place.units * along
    rate = jnp.where(place.meets, 0, rate)
    start = jnp.where(place.meets, 0, place.squares)
    speed = jnp.where(square > 0, jnp.sqrt(square), 1)

    def cosines(share):
        squares = start + 2 * share * rate + share * share * square
        ways = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 1)
        return (rate + share * square) / (ways * speed)

    shares = jnp.asarray(_SHARES, prior.dtype)
    slopes = _sum_of_cosines(jax.vmap(cosines)(shares), prior)
    falling = jnp.max(jnp.where(slopes <= 0, shares, 0))
    whole = slopes[int(np.argmax(_SHARES == 1))]
    good = jnp.abs(whole) <= 0.1 * jnp.abs(slopes[0])
    return jnp.where(good, 1, falling)


# --- Weiszfeld's iteration


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
        if smoothing is not None:
            nu = jnp.asarray(smoothing).astype(prior.dtype)
            pull = prior / jnp.where(meets, nu, jnp.maximum(distance, nu))
            own = jnp.zeros((), gram.dtype)
            others = jnp.sum(pull)
        else:
            pull = jnp.where(meets, 0, prior / distance)
            own = jnp.sum(jnp.where(meets, prior, 0))
            others = jnp.sum(pull)
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
        spread = jnp.sort(squared)[majority - 1]
        return jnp.where(done, shares, new), done | (moved <= tolerance**2 * spread)

    carry = (start, jnp.asarray(False))
    return lax.fori_loop(0, num_iterations, step, carry)[0]

"""The point of least sum of distances from rows, by Newton's method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.sparse.linalg import cg

from byzjax import loops
from byzjax.numerics import stacked

# Newton's method ends when a full step is shorter than this share of the distance to
# the nearer half of the rows; the error is then about its square. So much nearer to a
# row than that, z is taken for the row.
_SHORT = 1e-5
_MET = 1e-6
# Of the way to the nearest row: a shorter step is taken whole.
_NEAR = 0.1
# When its equations are solved, by conjugate gradients.
_RESIDUAL = 1e-4
_MOST_PRODUCTS = 100
# Shares of a step that a line search tries.
_SHARES = np.append(0, np.outer(2.0 ** np.arange(-20, 9), 1 + np.arange(8) / 8))
_MOST_STEPS = 40
_AVERAGED = 5  # Steps at the minimum, whose mean rounding leaves nearer to it.
_RIDGE = 1e-6  # Of the Hessian's largest eigenvalue: rows on a line leave it singular.


class _Place(NamedTuple):
    """A point z, as seen from a row x_k near it, in units S_i of length."""

    itself: jax.Array  # Which row x_k is, [m].
    units: jax.Array  # S_i = ‖x_i − x_k‖, but no less than the spread, [m].
    reach: jax.Array  # ‖x_i − x_k‖², [m].
    gram: jax.Array  # (x_i − x_k)·(x_j − x_k) / S_i S_j, [m, m].
    steps: jax.Array  # b, with z − x_k = Σ b_i (x_i − x_k) / S_i, [m].
    along: jax.Array  # (z − x_k)·(x_i − x_k) / S_i, [m].
    length: jax.Array  # ‖z − x_k‖².
    rest: jax.Array  # ‖z − x_i‖² − ‖z − x_k‖², [m].
    squares: jax.Array  # ‖z − x_i‖², [m].
    apart: jax.Array  # ‖x_i − x_j‖², [m, m], 0 if not finite.
    meets: jax.Array  # Which rows z is, [m].


@jax.custom_jvp
def minimum(geometry: stacked.Geometry, prior: jax.Array) -> jax.Array:
    """Weights [m] of the point of least Σ prior_i ‖x_i − z‖."""
    return _found(geometry, prior)[0]


@minimum.defjvp
def _minimum_jvp(primals, tangents):
    # That of a last step of Newton's from where z is, which there is exact.
    shares, is_row = _found(*primals)

    def last_step(geometry, prior):
        best = jnp.argmax(shares)
        spread = _middle_distance(geometry.squared_distances[best], prior)
        place = _place(geometry, shares, best, lax.stop_gradient(spread))
        return _changes(place, _direction(place, prior)[0])

    moved = jax.jvp(last_step, primals, tangents)[1]
    return shares, jnp.where(is_row, 0, moved)  # A row that is the minimum stays so.


def _found(geometry, prior):
    """The weights [m] of `minimum`, and whether the best row is it."""
    sums = geometry.summed_distances(prior)
    best = jnp.argmin(sums)
    spread = _middle_distance(geometry.squared_distances[best], prior)
    row = (jnp.arange(prior.shape[0]) == best).astype(prior.dtype)

    def going(carry):
        steps, *_, there = carry
        return (there < _AVERAGED) & (steps < _MOST_STEPS)

    def step(carry):
        steps, shares, nearest, before, total, there = carry
        place = _place(geometry, shares, nearest, spread)
        direction, length, held = _direction(place, prior)
        # Near the minimum, which is where a step is short beside the way to any row,
        # whole steps square the error, until rounding ends that. Elsewhere a step that
        # is short says nothing: beside a row all are.
        near = length <= _NEAR * jnp.sqrt(jnp.min(place.squares))
        over = (length <= _SHORT * spread) | (length > before / 2)
        far = ~(near & over) & ~held
        share = jnp.where(near, 1, _line_search(place, direction, prior))
        moved, nearest = as_a_mean(place, place.steps + share * direction)
        before = jnp.where(near, length, jnp.inf)
        shares = jnp.where(held, shares, moved)
        total = jnp.where(far, total, total + shares)
        there = jnp.where(held, _AVERAGED, there + (~far).astype(there.dtype))
        return steps + 1, shares, nearest, before, total, there

    def as_a_mean(place, steps):
        # One step of Weiszfeld's, which leads down too, and whose shares are those of a
        # mean: sums of steps would come to differences of large ones.
        *_, squares = _seen(geometry, place.gram, place.units, place.reach, steps)
        meets = squares <= _MET**2 * spread**2
        pulls = prior / jnp.sqrt(jnp.where(meets, 1, squares))
        pulls = jnp.where(jnp.any(meets), meets.astype(pulls.dtype), pulls)
        return stacked.normalized(pulls), jnp.argmin(squares)

    far_off = jnp.asarray(jnp.inf, row.dtype)
    start = jnp.int32(0), row, best, far_off, jnp.zeros_like(row), jnp.int32(0)
    _, shares, *_, total, there = loops.while_loop(going, step, start)
    # Where z never left a row, that row exactly.
    left = (there > 0) & ~jnp.all(shares == row)
    shares = jnp.where(left, stacked.normalized(total), shares)
    # Rows with as small a sum, such as the middle two on a line, share the answer.
    blur = 4 * jnp.finfo(prior.dtype).eps * jnp.sum(prior) * spread
    ties = stacked.normalized((sums <= sums[best] + blur).astype(prior.dtype))
    is_row = jnp.all(shares == row)  # From where z never went.
    return jnp.where(is_row, ties, shares), is_row


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
    along, length, rest, squares = _seen(geometry, gram, units, reach, steps)
    meets = squares <= _MET**2 * spread**2
    both = geometry.finite[:, None] & geometry.finite[None, :]
    apart = jnp.where(both, geometry.squared_distances, 0)
    return _Place(
        *(itself, units, reach, gram, steps),
        *(along, length, rest, squares, apart, meets),
    )


def _seen(geometry, gram, units, reach, steps):
    """`along`, `length`, `rest` and `squares` of the point at these steps from x_k.

    Distances as seen from x_k, which is near: as seen from elsewhere those to rows that
    are near each other would be lost in the rounding of larger ones.
    """
    along = _precisely(gram, steps)
    length = jnp.maximum(stacked.product(steps, along), 0)
    rest = reach - 2 * units * along
    squares = jnp.where(geometry.finite, jnp.maximum(length + rest, 0), jnp.inf)
    return along, length, rest, squares


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
    # Between ways of like lengths from how far apart their rows are: the rounding of
    # `length`, which all of them share, would add up where they are nearly parallel.
    ways = jnp.where(inverse > 0, 1 / jnp.where(inverse > 0, inverse, 1), 1)
    longer = place.rest[:, None] - place.rest[None, :]
    longer = longer / (ways[:, None] + ways[None, :])
    chord = (place.apart - longer * longer) * inverse[:, None] * inverse[None, :]
    alike = (inverse[:, None] <= 2 * inverse[None, :]) & (inverse[:, None] > 0)
    cosines = jnp.where(alike & alike.T, 1 - chord / 2, cosines)
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

    bent = root * lax.custom_linear_solve(
        hessian, root * pulls, _by_conjugate_gradients, symmetric=True
    )
    # A row holds z where it is: away from it the pull itself leads down for sure.
    bent = jnp.where(jnp.any(place.meets), 0, bent)
    moved = (others + bent) / total * inverse
    steps = place.units * moved - jnp.sum(moved) * place.steps
    length = stacked.product(stacked.product(place.gram, steps), steps)
    return steps, jnp.sqrt(jnp.maximum(lax.stop_gradient(length), 0)), left == 0


def _by_conjugate_gradients(matrix, right):
    # In a unit: the derivatives that are solved for as well are of any size.
    unit = stacked.power_of_two(jnp.max(jnp.abs(right)))
    right = right * stacked.inverse(unit)
    return unit * cg(matrix, right, tol=_RESIDUAL, maxiter=_MOST_PRODUCTS)[0]


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

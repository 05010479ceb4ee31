"""Where the workers' rows lie relative to each other: the plane that rules weigh in.

Everything here happens on m×m arrays and smaller ones; `stacked.geometry` reads them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax.numerics import _range
from byzjax.numerics._gram import distances_in, plane, product
from byzjax.numerics._range import LARGEST_SQUARE

# A squared length that is no more than this many times its rounding is not known.
_CANCELS = 100
# A sum of squares is known from this many times the smallest float on, squared.
_KNOWN = 1e5


class Geometry(NamedTuple):
    """Where the workers' rows lie relative to each other.

    `gram` holds the inner products of x_i − c around a central row c, with one point
    more, the *origin* (zero, or the centre of a rule that has one), in the last place.
    Every point Σ a_i x_i with Σ a_i <= 1 is then a point of this plane: what is missing
    to one sits at the origin. Centring is what makes small distances between large rows
    exact: an uncentred Gram matrix cancels just when the honest workers agree.

    Squares are in units of `unit` squared, so that they stay in the range of floats
    where the rows do; a length of one's own is divided by it. Norms are in units of
    `norm_unit`, which is 1 but where a norm is beyond the largest float.

    Attributes:
      gram: `[m + 1, m + 1]`, zero for rows that are not finite.
      finite: `[m]`, bool; False for a worker who is absent.
      norms: `[m]`, distances to the origin, +inf if not finite.
      norm_unit: 1, or 2^32 where a norm would be no float in 1.
      squared_distances: `[m, m]`, +inf from and to rows that are not finite.
      unit: a power of two, 1 as long as squares stay in range.
      present: `[m]`, which rows are workers; None for all.
    """

    gram: jax.Array  # [m + 1, m + 1], zero for rows that are not finite.
    finite: jax.Array  # [m], bool; False for a worker who is absent.
    norms: jax.Array  # [m], distances to the origin, +inf if not finite.
    norm_unit: jax.Array  # 1, or 2^32 where a norm would be no float in 1.
    squared_distances: jax.Array  # [m, m], +inf from and to rows that are not finite.
    unit: jax.Array  # A power of two, 1 as long as squares stay in range.
    present: jax.Array | None = None  # [m], which rows are workers; None for all.

    @property
    def num_workers(self) -> int:
        """m, of which some may be absent."""
        return self.finite.shape[0]

    @property
    def num_present(self) -> int | jax.Array:
        """How many workers there are: m, or an integer array under a mask."""
        return self.num_workers if self.present is None else jnp.sum(self.present)

    def in_unit(self, lengths: jax.Array) -> jax.Array:
        """Lengths in the unit of the squares."""
        return lengths * _range.inverse(self.unit)

    def in_norm_unit(self, lengths: jax.Array) -> jax.Array:
        """Lengths in the unit of the norms."""
        return lengths * _range.inverse(self.norm_unit)

    def norms_in_unit(self) -> jax.Array:
        """The norms [m] in the unit of the squares, zero for rows not finite."""
        norms = jnp.where(self.finite, self.norms, 0)
        return norms * (self.norm_unit * _range.inverse(self.unit))

    def plain_norms(self) -> jax.Array:
        """Norms [m] as they are, those beyond the largest float as that."""
        return _range.Lengths(self.norms, self.norm_unit).plain()

    def squared_distances_to(self, weights: jax.Array) -> jax.Array:
        """‖x_k − z‖² [m] for z = Σ weights_i x_i, +inf for rows that are not finite.

        From inner products around c, which cancel where z and x_k are near each other
        and far from c, or from the distances between the points, which cancel where z
        has its weight on points far from both: whichever cancels less.
        """
        m = self.num_workers
        a = point(weights)
        towards = product(self.gram, a)
        diagonal = jnp.diagonal(self.gram)
        length = product(a, towards)
        by_products = length - 2 * towards + diagonal
        norms = jnp.square(self.norms_in_unit())[:, None]
        apart = jnp.block([[self.squared_distances, norms]])
        apart = jnp.where(self.finite[:, None] & (a != 0)[None, :], apart, 0)
        among = jnp.concatenate([apart, jnp.append(apart[:, m], 0)[None]])
        by_distances = product(apart, a) - product(product(among, a), a) / 2
        size = jnp.abs(a)
        lost = product(apart, size) + product(product(among, size), size)
        closer = lost < length + diagonal[:m]
        squares = jnp.where(closer, by_distances, by_products[:m])
        return jnp.where(self.finite, jnp.maximum(squares, 0), jnp.inf)

    def around(self, index: jax.Array) -> jax.Array:
        """(x_i − x_k)·(x_j − x_k) [m, m] for the k of an index; zero if not finite."""
        known = self.finite & self.finite[index]
        return self._products_around(index, self.squared_distances[index], known)

    def around_origin(self) -> jax.Array:
        """x_i·x_j [m, m] around the origin; zero if not finite."""
        own = jnp.square(self.norms_in_unit())
        return self._products_around(self.num_workers, own, self.finite)

    def _products_around(self, index, own, known):
        """Of the `known` [m] rows around a point of the plane, `own` [m] away, squared.

        From inner products around c or from distances, whichever cancels less.
        """
        m = self.num_workers
        gram, towards = self.gram[:m, :m], self.gram[index, :m]
        length = self.gram[index, index]
        by_products = gram - towards[:, None] - towards[None, :] + length
        both = known[:, None] & known[None, :]
        apart = jnp.where(both, self.squared_distances, 0)
        own = jnp.where(known, own, 0)
        by_distances = (own[:, None] + own[None, :] - apart) / 2
        reach = jnp.sqrt(lax.stop_gradient(jnp.diagonal(gram)))
        reach += jnp.sqrt(lax.stop_gradient(length))
        closer = own[:, None] + own[None, :] < reach[:, None] * reach[None, :]
        return jnp.where(both, jnp.where(closer, by_distances, by_products), 0)

    def summed_distances(self, weights: jax.Array) -> jax.Array:
        """Σ_i weights_i (‖x_k − x_i‖ − ‖c − x_i‖) [m], +inf if x_k is not finite.

        Sums of distances but for a constant, taken off term by term, so that no row,
        however far, rounds the others away.
        """
        m = self.num_workers
        gram = self.gram[:m, :m]
        squares = jnp.diagonal(gram)
        apart = jnp.where(jnp.isinf(self.squared_distances), 0, self.squared_distances)
        lengths = jnp.sqrt(apart) + jnp.sqrt(squares)[None, :]
        gaps = over(squares[:, None] - 2 * gram, lengths)
        used = self.finite[None, :]
        sums = product(jnp.where(used, gaps, 0), jnp.where(self.finite, weights, 0))
        return jnp.where(self.finite, sums, jnp.inf)

    def squared_length(self, vector: jax.Array) -> jax.Array:
        """aᵀ G a: the squared length of Σ a_i (x_i − c), for a `[m + 1]`."""
        return product(product(vector, self.gram), vector)

    def cosine_distances(self) -> jax.Array:
        """1 − cos(x_i, x_j) [m, m]; 1 from and to zero rows, +inf where not finite."""
        m = self.num_workers
        norms = self.norms_in_unit()
        lengths = norms[:, None] * norms[None, :]
        both = self.finite[:, None] & self.finite[None, :]
        usable = lengths > 0
        lengths = jnp.where(usable, lengths, 1)
        # Between rows of like norms from the distance: 1 − cos itself cancels where
        # they are nearly parallel. Between others the distance cancels.
        squared = jnp.where(both, self.squared_distances, 0)
        squared = squared - jnp.square(norms[:, None] - norms[None, :])
        inner = self.around_origin()
        alike = norms[:, None] <= 2 * norms[None, :]
        near, far = squared / (2 * lengths), 1 - inner / lengths
        distances = jnp.where(alike & alike.T, near, far)
        distances = jnp.where(usable, jnp.clip(distances, 0, 2), 1)
        distances = jnp.where(np.eye(m, dtype=bool), 0, distances)
        return jnp.where(both, distances, jnp.inf)

    def clip_factors(self, max_norm: jax.Array | float) -> jax.Array:
        """What is kept [m] of rows cut to a norm of `max_norm`; 0 if not finite.

        Args:
          max_norm: in the unit of the norms.
        """
        norms = self.norms
        if self.gram.size:
            # Of what is shorter beside the others' squares a norm may be too small.
            least = math.sqrt(float(jnp.finfo(norms.dtype).tiny)) * _KNOWN
            norms = jnp.maximum(norms, self.in_norm_unit(least * self.unit))
        max_norm = jnp.asarray(max_norm, norms.dtype)
        long = norms > max_norm
        # Selected before the quotient, so that derivatives are finite.
        kept = jnp.where(long, over(max_norm, jnp.where(long, norms, 1)), 1)
        return jnp.where(jnp.isfinite(norms), kept, 0)

    def mixed(self, matrix: jax.Array, present: jax.Array | None = None) -> "Geometry":
        """The geometry of y = `matrix` x, without touching the coordinates.

        Args:
          matrix: `[n, m]`; rows may sum to less than one, the rest is at the origin.
          present: which of the n are workers, or None for all.

        Returns:
          Geometry of n workers. y_i is finite if all rows that enter it are, and one of
          far rows that cancel as far from all others as is known of it.
        """
        finite = self.mixed_finite(matrix)
        rest = 1 - jnp.sum(matrix, axis=1)
        last = jnp.zeros((1, matrix.shape[1] + 1), matrix.dtype).at[0, -1].set(1)
        points = jnp.concatenate(
            [jnp.concatenate([matrix, rest[:, None]], axis=1), last], axis=0
        )
        half = product(points, self.gram)
        gram = product(half, points)
        gram = (gram + gram.T) / 2
        squares = jnp.diagonal(gram)[:-1]
        finite &= squares < LARGEST_SQUARE
        # Far rows may cancel in a mean, which then is known to their rounding only:
        # where that is no less than the spread of most rows, it counts as so much
        # farther, every way. As not finite it would be lost, and where most rows are
        # equal all means may be of some that cancel.
        lengths = jnp.diagonal(self.gram)[:-1]
        rounding = product(jnp.square(matrix), lengths)
        rounding *= _CANCELS * jnp.finfo(gram.dtype).eps
        lengths = jnp.where(self.finite, lengths, jnp.inf)
        spread = _range.middle(lengths, self.present)
        # Nor is less known of the others than the last place of what they are.
        size = jnp.where(self.finite, self.norms_in_unit(), jnp.inf)
        size = _range.middle(size, self.present)
        spread = jnp.maximum(spread, jnp.square(jnp.finfo(gram.dtype).eps * size))
        known = (rounding <= spread) | (rounding < squares)
        blur = lax.stop_gradient(jnp.where(known, 0, rounding))
        gram += jnp.diag(jnp.append(blur, 0))
        distances = distances_in(gram)
        norms, distances = distances[:-1, -1], distances[:-1, :-1]
        return masked(gram, norms, distances, finite, self.unit, present)

    def scaled(self, factors: jax.Array) -> "Geometry":
        """The geometry of y_i = `factors`_i x_i; rows of factor zero are zeros.

        Args:
          factors: `[m]`, at most one.
        """
        read = factors != 0
        norms = factors * jnp.where(read, self.norms, 0)
        finite = self.finite | ~read
        if self.present is not None:  # An absent row is no row of zeros.
            finite &= self.present
        cut = _range.lengths_of(norms, self.norm_unit, finite)
        if not self.gram.size:
            return self._replace(finite=finite, norms=cut.values, norm_unit=cut.unit)
        # In a unit of their own, as they may have become far shorter.
        unit = _range.power_of_two(_range.middle(cut.plain(), self.present))
        factors = factors * (self.unit * _range.inverse(unit))
        lengths = norms * (self.norm_unit * _range.inverse(unit))
        # ‖s_i x_i − s_j x_j‖² from distances, which cancel for far rows that are cut to
        # a small ball, or from inner products, which do for rows near each other.
        both = read[:, None] & read[None, :]
        apart = jnp.where(both, self.squared_distances, 0)
        # One factor after the other: their product may leave the range.
        apart = factors[:, None] * (factors[None, :] * apart)
        whole = lengths * jnp.where(read, self.norms_in_unit(), 0)
        change = factors[:, None] - factors[None, :]
        moment = change * (whole[:, None] - whole[None, :])
        inner = factors[:, None] * (factors[None, :] * self.around_origin())
        # Of rows far shorter than most, which are cut to what they were, it is noise.
        most = lengths[:, None] * lengths[None, :]
        inner = jnp.clip(inner, -most, most)
        squares = jnp.square(lengths)
        sums = squares[:, None] + squares[None, :]
        closer = apart + jnp.abs(moment) <= sums
        apart = jnp.where(closer, apart + moment, sums - 2 * inner)
        apart = (apart + apart.T) / 2
        apart = jnp.where(np.eye(self.num_workers, dtype=bool), 0, apart)
        # What neither can tell still lies between two rows of these lengths.
        least = jnp.square(lengths[:, None] - lengths[None, :])
        apart = jnp.clip(apart, least, jnp.square(lengths[:, None] + lengths[None, :]))
        # Products around a row in the midst of the cut ones: from one that was far
        # out, all of them would lie on each other. From distances, or from products
        # around the origin where rows are left far out: whichever cancel less.
        gram, center, _ = plane(squares, apart, finite, self.present)
        inner = jnp.pad(inner, (0, 1))
        towards = inner[center]
        by_products = inner - towards[:, None] - towards[None, :] + towards[center]
        reach = jnp.append(lengths, 0) + lengths[center]
        reach = lax.stop_gradient(reach)
        from_center = jnp.append(apart[center], squares[center])
        lost = lax.stop_gradient(from_center[:, None] + from_center[None, :])
        closer = lost <= reach[:, None] * reach[None, :]
        gram = jnp.where(closer, gram, by_products)
        return masked(gram, squares, apart, finite, unit, self.present)

    def mixed_finite(self, matrix: jax.Array) -> jax.Array:
        """Which rows [n] of `matrix` x read finite rows of x only."""
        return ~jnp.any((matrix != 0) & ~self.finite[None, :], axis=1)


def masked(gram, squared_norms, squared_distances, finite, unit, present) -> Geometry:
    """Without the rows that are out of range, not `finite` or not `present`."""
    m = squared_norms.shape[0]
    # False for NaN.
    kept = finite & (squared_norms < LARGEST_SQUARE)
    if present is not None:
        kept &= present
    norms = _range.lengths_of(root(squared_norms), unit, kept)
    points = jnp.append(kept, jnp.any(kept))  # Without any there is no plane.
    both = points[:, None] & points[None, :]
    return Geometry(
        jnp.where(both, gram, 0),
        kept,
        *norms,
        jnp.where(both[:m, :m], squared_distances, jnp.inf),
        unit,
        present,
    )


def point(weights: jax.Array) -> jax.Array:
    """Weights [m] as a point [m + 1]: what is missing to one sits at the origin."""
    return jnp.append(weights, 1 - jnp.sum(weights))


def normalized(weights: jax.Array) -> jax.Array:
    """Weights `[m]` over their sum; zeros stay zeros, with finite derivatives."""
    return over(weights, jnp.sum(weights))


def root(squares: jax.Array) -> jax.Array:
    """√squares, with a finite derivative at zero and at infinity."""
    inside = (squares > 0) & jnp.isfinite(squares)
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, squares, 1)), squares)


def over(values: jax.Array, size: jax.Array) -> jax.Array:
    """Values over their size, zeros where that is zero.

    By way of a power of two: in a derivative the square of the size could be none.
    """
    size = jnp.where(size > 0, size, 1)
    scale = _range.inverse(_range.power_of_two(size))
    return (values * scale) / (size * scale)

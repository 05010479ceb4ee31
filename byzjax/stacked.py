"""All numerics on stacked trees: geometry, mixing, distances.

Rules that weigh whole workers never look at single coordinates. They need the m×m
`Geometry`, read from the stack in one pass, and end in one weighted sum, a second pass;
whatever happens in between happens on m×m arrays.

Poison-proof: a row with a non-finite entry, or with a norm above about 10^18 (whose
square float32 cannot hold), is an outlier. Its distances are +inf, and a weighted sum
*selects* before it multiplies, since 0·inf is NaN.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax import base, columns, order, reductions
from byzjax.columns import accumulator_dtype, flat_rows
from byzjax.gram import LARGEST_SQUARE, centered_gram, distances_in, product
from byzjax.loops import on_all_cores

# Rows mixed one by one, in a longer program: four times as fast on CPU as a product.
_MOST_TERMS = 256
_MOST_IN_PARTS = 32  # Rows whose reduction is compiled for each part of a block.
_GROUP = 8  # Rows of many that are added up at once: with more, memory is slower.


class Geometry(NamedTuple):
    """Where the workers' rows lie relative to each other.

    `gram` holds the inner products of x_i − c around a central row c, with one point
    more, the *origin* (zero, or the centre of a rule that has one), in the last place.
    Every point Σ a_i x_i with Σ a_i <= 1 is then a point of this plane: what is missing
    to one sits at the origin. Centring is what makes small distances between large rows
    exact: an uncentred Gram matrix cancels just when the honest workers agree.
    """

    gram: jax.Array  # [m + 1, m + 1], zero for rows that are not finite.
    finite: jax.Array  # [m], bool.
    squared_norms: jax.Array  # [m], distances to the origin, +inf if not finite.
    squared_distances: jax.Array  # [m, m], +inf from and to rows that are not finite.

    @property
    def num_workers(self) -> int:
        return self.finite.shape[0]


# --- the geometry -------------------------------------------------------------------


def geometry(updates: base.Tree, *, origin: base.Tree | None = None) -> Geometry:
    """Reads the geometry of a stack, in one pass over it in the ordinary case.

    The rows are centred on one in their midst. Only what an attacker or a broken worker
    sends may ask for more passes, two at most: a centre that turns out to lie far from
    the majority, or rows far from any centre.

    Args:
      updates: stacked tree, leaves `[m, ...]`.
      origin: tree `[...]` that distances `squared_norms` are measured from; zero
        when None.
    """
    base.num_workers(updates)
    rows = [flat_rows(leaf) for leaf in jax.tree.leaves(updates)]
    origins = None if origin is None else [x.ravel() for x in jax.tree.leaves(origin)]
    gram, squared_norms, distances, from_center = centered_gram(rows, origins)
    return _masked(gram, squared_norms, distances, from_center < LARGEST_SQUARE)


def norms(updates: base.Tree) -> Geometry:
    """A geometry of norms alone: `gram` and `squared_distances` are empty `[0, 0]`."""
    base.num_workers(updates)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), updates)
    squared_norms = squared_distances_to_tree(updates, zero)
    nothing = jnp.zeros((0, 0), squared_norms.dtype)
    return Geometry(nothing, jnp.isfinite(squared_norms), squared_norms, nothing)


def _masked(gram, squared_norms, squared_distances, finite) -> Geometry:
    """Without the rows that are out of range or not `finite`."""
    m = squared_norms.shape[0]
    kept = finite & (squared_norms < LARGEST_SQUARE)  # False for NaN.
    points = jnp.append(kept, jnp.any(kept))  # Without any there is no plane.
    both = points[:, None] & points[None, :]
    return Geometry(
        jnp.where(both, gram, 0),
        kept,
        jnp.where(kept, squared_norms, jnp.inf),
        jnp.where(both[:m, :m], squared_distances, jnp.inf),
    )


# --- the plane of the geometry --------------------------------------------------------


def point(weights: jax.Array) -> jax.Array:
    """Weights [m] as a point [m + 1]: what is missing to one sits at the origin."""
    return jnp.append(weights, 1 - jnp.sum(weights))


def squared_distances_to(geometry: Geometry, weights: jax.Array) -> jax.Array:
    """‖x_k − z‖² [m] for z = Σ weights_i x_i, +inf for rows that are not finite."""
    a = point(weights)
    towards = product(geometry.gram, a)
    distances = product(a, towards) - 2 * towards + jnp.diagonal(geometry.gram)
    return jnp.where(geometry.finite, jnp.maximum(distances[:-1], 0), jnp.inf)


def mix_geometry(geometry: Geometry, matrix: jax.Array) -> Geometry:
    """The geometry of y = `matrix` x, without touching the coordinates.

    Args:
      geometry: of x, m workers.
      matrix: `[n, m]`; rows may sum to less than one, the rest is at the origin.

    Returns:
      Geometry of n workers. y_i is finite if all rows that enter it are.
    """
    finite = mixed_finite(geometry, matrix)
    rest = 1 - jnp.sum(matrix, axis=1)
    last = jnp.zeros((1, matrix.shape[1] + 1), matrix.dtype).at[0, -1].set(1)
    points = jnp.concatenate(
        [jnp.concatenate([matrix, rest[:, None]], axis=1), last], axis=0
    )
    half = product(points, geometry.gram)
    gram = product(half, points)
    gram = (gram + gram.T) / 2
    finite &= jnp.diagonal(gram)[:-1] < LARGEST_SQUARE
    distances = distances_in(gram)
    return _masked(gram, distances[:-1, -1], distances[:-1, :-1], finite)


def scale_geometry(geometry: Geometry, factors: jax.Array) -> Geometry:
    """The geometry of y_i = `factors`_i x_i; a row of factor zero is a row of zeros.

    Args:
      geometry: of x, perhaps one of norms alone.
      factors: `[m]`, at most one.
    """
    if geometry.gram.size:
        return mix_geometry(geometry, jnp.diag(factors))
    read = factors != 0
    squares = jnp.where(read, geometry.squared_norms, 0) * factors**2
    return geometry._replace(finite=geometry.finite | ~read, squared_norms=squares)


def mixed_finite(geometry: Geometry, matrix: jax.Array) -> jax.Array:
    """Which rows [n] of `matrix` x read finite rows of x only."""
    return ~jnp.any((matrix != 0) & ~geometry.finite[None, :], axis=1)


def squared_length(gram: jax.Array, vector: jax.Array) -> jax.Array:
    """aᵀ G a: the squared length of Σ a_i (x_i − c)."""
    return product(product(vector, gram), vector)


# --- passes over the stack ------------------------------------------------------------


def weighted_sum(
    updates: base.Tree,
    weights: jax.Array,
    *,
    origin: base.Tree | None = None,
    at_most: int | None = None,
) -> base.Tree:
    """Σ weights_i x_i, plus what the weights lack to one times the origin.

    A row of weight zero is not read into the sum at all.

    Args:
      updates: stacked tree, leaves `[m, ...]`.
      weights: `[m]`.
      origin: tree `[...]`; zero when None.
      at_most: how many weights can be other than zero, if that is known: if at most
        `order.NETWORK_LIMIT`, the other rows are not read from memory either.
    """
    rows = range(weights.shape[0])
    if at_most is not None and at_most < len(rows):
        first = jnp.argsort(weights == 0, stable=True)
        rows = [first[i] for i in range(at_most)]

    def of_rows(x, w, rows):
        def term(i):
            row = lax.dynamic_index_in_dim(x, i, keepdims=False)
            return w[i] * jnp.where(w[i] != 0, row.astype(w.dtype), 0)

        return reductions.row_sum([term(i) for i in rows])

    def of_groups(x, w):  # All at once the program would grow with m.
        count = -(-x.shape[0] // _GROUP)
        # Rows that the last group lacks are the last row again, of weight zero.
        w = jnp.pad(w, (0, count * _GROUP - x.shape[0]))

        def add(k, total):
            first = on_all_cores(k) * _GROUP
            return total + of_rows(x, w, [first + j for j in range(_GROUP)])

        return lax.fori_loop(0, count, add, jnp.zeros(x.shape[1:], w.dtype))

    def of_leaf(x, *o):
        w = weights.astype(accumulator_dtype(x.dtype))
        many = len(rows) > order.NETWORK_LIMIT
        out = of_groups(x, w) if many else of_rows(x, w, rows)
        if o:
            out += (1 - jnp.sum(w)) * o[0].astype(w.dtype)
        return out.astype(x.dtype)

    others = () if origin is None else (origin,)
    return columns.map_bundles(of_leaf, updates, *others)


def mix(
    updates: base.Tree,
    matrix: jax.Array,
    finite: jax.Array,
    *,
    sizes: Sequence[int] | None = None,
    reduce: Callable[[jax.Array], jax.Array] | None = None,
) -> base.Tree:
    """The stack y = `matrix` x of n rows, or `reduce` of it, which is then not formed.

    Args:
      updates: stacked tree, leaves `[m, ...]`.
      matrix: `[n, m]`.
      finite: `[n]`, from `mixed_finite`; the other rows become NaN.
      sizes: if every row of `matrix` is the mean of some rows of x, of how many.
      reduce: `[n, b]` → `[b]`, column by column.
    """
    n = matrix.shape[0]
    few = tuple(sizes) if sizes and sum(sizes) <= _MOST_TERMS else None
    members = jnp.argsort(matrix == 0, axis=1, stable=True)

    def finished(mixed):
        return mixed if reduce is None else reduce(mixed)[None]

    def of_block(x, matrix, finite):
        return finished(_mixed(x, matrix, finite))

    def of_leaf(x):
        flat = flat_rows(x)
        if few is not None:
            out = finished(_means(few, flat, members, finite))
        else:
            rows = n if reduce is None else 1
            out = columns.map_columns(of_block, rows, flat, matrix, finite)
        shape = x.shape[1:] if reduce is not None else (n, *x.shape[1:])
        return out.astype(x.dtype).reshape(shape)

    if reduce is None:
        return jax.tree.map(of_leaf, updates)
    if n <= (_MOST_IN_PARTS if few is None else order.NETWORK_LIMIT):
        return columns.map_bundles(of_leaf, updates)

    def of_columns(x, matrix, finite):
        return of_block(x, matrix, finite)[0].astype(x.dtype)

    return columns.map_blocks(of_columns, updates, matrix, finite)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _means(sizes, x, members, finite):
    """Means `[n, b]` of the rows that `members` `[n, ...]` lists, `sizes` of them.

    Read row by row: what reduces them fuses with them into one pass.
    """
    x = x.astype(accumulator_dtype(x.dtype))

    def mean(i):
        rows = order.take(x, members[i, : sizes[i]])
        return jnp.where(finite[i], reductions.row_sum(list(rows)) / sizes[i], jnp.nan)

    return jnp.stack([mean(i) for i in range(len(sizes))])


@_means.defjvp
def _means_jvp(sizes, primals, tangents):
    # A product: backwards, a sum of so many single rows would be slow.
    x, members, finite = primals
    moved = tangents[0].astype(accumulator_dtype(x.dtype))
    listed = np.arange(members.shape[1]) < np.asarray(sizes)[:, None]
    hits = members[:, :, None] == np.arange(x.shape[0])[None, None]
    matrix = jnp.any(hits & listed[:, :, None], axis=1).astype(moved.dtype)
    matrix = jnp.where(finite[:, None], matrix, 0)
    matrix = matrix / np.asarray(sizes, moved.dtype)[:, None]
    return _means(sizes, x, members, finite), product(matrix, moved.T)


def _mixed(x, matrix, finite):
    """A block of y = `matrix` x, `[m, b]` → `[n, b]`."""
    x = x.astype(accumulator_dtype(x.dtype))
    read = jnp.any(matrix != 0, axis=0)
    clean = jnp.where(read[:, None] & jnp.isfinite(x), x, 0)
    matrix = jnp.where(finite[:, None], matrix, 0).astype(x.dtype)
    mixed = jnp.matmul(matrix, clean, precision=lax.Precision.HIGHEST)
    return jnp.where(finite[:, None], mixed, jnp.nan)


def squared_distances_to_tree(updates: base.Tree, center: base.Tree) -> jax.Array:
    """‖x_k − center‖² [m] over the whole tree, +inf where it is not finite."""
    rows, centers = columns.bundled(
        [flat_rows(x) for x in jax.tree.leaves(updates)],
        [c.ravel() for c in jax.tree.leaves(center)],
    )
    return _in_range(columns.fold(_squared_gaps, rows, centers)[1])


def squared_distances_to_row(updates: base.Tree, index: int) -> jax.Array:
    """‖x_k − x_index‖² [m] over the whole tree, +inf where it is not finite."""
    rows, nothing = columns.bundled([flat_rows(x) for x in jax.tree.leaves(updates)])
    return _in_range(columns.fold(_squared_gaps, rows, nothing, center=index)[1])


def _squared_gaps(x, c):
    """For `columns.fold`: no sums, but terms `[m, b]`."""
    dtype = accumulator_dtype(x.dtype)
    return (), _square(x.astype(dtype) - c.astype(dtype)[None])


@jax.custom_jvp
def _square(gap):
    return gap * gap


@_square.defjvp
def _square_jvp(primals, tangents):
    (gap,), (moved,) = primals, tangents
    # What is not finite is cut off later; its derivative 0·NaN would not be zero.
    square = gap * gap
    return square, 2 * jnp.where(jnp.isfinite(square), gap, 0) * moved


def _in_range(squares):
    return jnp.where(squares < LARGEST_SQUARE, squares, jnp.inf)


def normalized(weights: jax.Array) -> jax.Array:
    """Weights `[m]` over their sum; zeros stay zeros, with finite derivatives."""
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)


def root(squares: jax.Array) -> jax.Array:
    """√squares, with a finite derivative at zero and at infinity."""
    inside = (squares > 0) & jnp.isfinite(squares)
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, squares, 1)), squares)

"""Whole rows of a stacked tree: passes over it, and the geometry read from it.

Rules that weigh whole workers never look at single coordinates. They need the m×m
`Geometry`, read from the stack in one pass, and end in one weighted sum, a second pass;
whatever happens in between happens on m×m arrays.

Poison-proof: a row with a non-finite entry is an outlier, and so in a geometry is one
10^9 times as long as most or more (so that float32 cannot hold both squares). Its
distances are +inf, and a weighted sum *selects* before it multiplies, since 0·inf is
NaN. Lengths are right, though their squares, or they themselves, may be no floats.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import checks, loops, trees
from byzjax.numerics import _columns, _range, order
from byzjax.numerics._columns import flat_rows, total, widest_accumulator
from byzjax.numerics._geometry import (
    Geometry,
    masked,
    normalized,
    over,
    point,
    root,
)
from byzjax.numerics._gram import centered_gram, product
from byzjax.numerics._lengths import distances_to_row, distances_to_tree, norm
from byzjax.numerics._loops import by_platform
from byzjax.numerics._mixing import beside, means, mixed, summed
from byzjax.numerics._range import LARGEST_SQUARE, inverse, power_of_two
from byzjax.numerics.devices import coordinates, drawn, each, is_split
from byzjax.trees import accumulator_dtype

__all__ = [
    "Geometry",
    "along_workers",
    "column_sums",
    "coordinates",
    "distances_to_row",
    "distances_to_tree",
    "drawn",
    "each",
    "flat_rows",
    "geometry",
    "inverse",
    "is_split",
    "mix",
    "norm",
    "normalized",
    "norms",
    "numbers_only",
    "over",
    "point",
    "power_of_two",
    "product",
    "root",
    "scale",
    "total",
    "weighted_sum",
    "widest_accumulator",
]

# Rows mixed one by one, in a longer program: four times as fast on CPU as a product.
_MOST_TERMS = 256
_MOST_IN_PARTS = 32  # Rows whose reduction is compiled for each part of a block.


def geometry(
    updates: trees.Tree,
    *,
    origin: trees.Tree | None = None,
    present: jax.Array | None = None,
) -> Geometry:
    """Reads the geometry of a stack, in one pass over it in the ordinary case.

    The rows are centred on one in their midst. Only what an attacker or a broken worker
    sends may ask for more passes, three at most: a centre that turns out to lie far
    from the majority, rows far from any centre, or crowded together and no copies, as
    rows of few coordinates may be by themselves. And where most rows are longer than
    10^9 or shorter than 10^-10, two more are made in a unit of their size.

    Args:
      updates: stacked tree, leaves `[m, ...]`.
      origin: tree `[...]` that `norms` are measured from; zero when None.
      present: which rows `[m]` are workers, all when None. The others are not finite
        in the geometry, and no majority is made of them.
    """
    checks.num_workers(updates)
    rows = [flat_rows(leaf) for leaf in jax.tree.leaves(updates)]
    origins = None if origin is None else [x.ravel() for x in jax.tree.leaves(origin)]
    found = centered_gram(rows, origins, present)
    gram, squares, distances, from_center, unit = found
    near = from_center < LARGEST_SQUARE
    return masked(gram, squares, distances, near, unit, present)


def norms(updates: trees.Tree, present: jax.Array | None = None) -> Geometry:
    """A geometry of norms alone: `gram` and `squared_distances` are empty `[0, 0]`."""
    lengths = distances_to_tree(updates, None, present)
    nothing = jnp.zeros((0, 0), lengths.values.dtype)
    unit = power_of_two(_range.middle(lengths.plain(), present))
    finite = jnp.isfinite(lengths.values)
    return Geometry(nothing, finite, *lengths, nothing, unit, present)


def numbers_only(updates: trees.Tree, known: jax.Array) -> jax.Array:
    """Which rows [m] hold numbers only, of any size.

    Args:
      updates: stacked tree, leaves `[m, ...]`.
      known: rows `[m]` that need no look, such as the finite ones of a geometry; where
        all are known the stack is not read.
    """
    rows = [flat_rows(leaf) for leaf in jax.tree.leaves(updates)]

    def look(_):
        finite = _range.largest(rows, [None] * len(rows)) < jnp.inf
        return jnp.asarray(False), known | finite

    # A loop of one turn at most: of a condition, both sides would run under vmap.
    return loops.while_loop(lambda carry: carry[0], look, (~jnp.all(known), known))[1]


def along_workers(
    reduce: Callable[..., jax.Array],
    updates: trees.Tree,
    weights: jax.Array | None = None,
) -> trees.Tree:
    """`reduce` over the rows of a stack, `[m, ...]` → `[...]`, in at least float32.

    A network over the rows fuses into one pass. Sorts of more rows, and of weights,
    run in blocks of columns, so that what they keep stays in cache.
    """

    def of_rows(x, *args):
        rows = x.astype(accumulator_dtype(x.dtype))
        return reduce(rows, *(w.astype(rows.dtype) for w in args)).astype(x.dtype)

    def of_block(x, weights):
        return of_rows(x, weights)[None]

    def of_leaf(x):
        flat = flat_rows(x)
        return _columns.map_columns(of_block, 1, flat, weights).reshape(x.shape[1:])

    if weights is not None:
        return _columns.map_bundles(of_leaf, updates)
    if checks.num_workers(updates) <= order.NETWORK_LIMIT:
        return _columns.map_bundles(of_rows, updates)
    return _columns.map_blocks(of_rows, updates)


def weighted_sum(
    updates: trees.Tree,
    weights: jax.Array,
    *,
    origin: trees.Tree | None = None,
    at_most: int | None = None,
) -> trees.Tree:
    """Σ weights_i x_i, plus what the weights lack to one times the origin.

    A row of weight zero is not read into the sum at all. Up to 64 rows, or weights that
    are not zero, are added up row by row in one pass; more rows eight at a time, in a
    program that does not grow with them: the mean of 128 by 10^5 takes 1.1 ms on two
    CPU cores so, 2.4 as a product (see docs/performance.md).

    Args:
      updates: stacked tree, leaves `[m, ...]`.
      weights: `[m]`.
      origin: tree `[...]`; zero when None.
      at_most: how many weights can be other than zero, if that is known: if at most
        `order.NETWORK_LIMIT`, the other rows are not read from memory either.
    """
    few = at_most if at_most is not None and 0 < at_most < len(weights) else None
    first = jnp.argsort(weights == 0, stable=True) if few else np.zeros(0, np.int32)
    # In the widest: a weight may be no float of a leaf that is narrower than others.
    w = weights.astype(_columns.widest_accumulator(jax.tree.leaves(updates)))

    def of_leaf(x, *o):
        out = summed(few, x, w, first)
        if o:
            out += (1 - jnp.sum(w)) * o[0].astype(w.dtype)
        return out.astype(x.dtype)

    others = () if origin is None else (origin,)
    return _columns.map_bundles(of_leaf, updates, *others)


def scale(updates: trees.Tree, factors: jax.Array) -> trees.Tree:
    """The stack y_i = `factors`_i x_i; any row of factor zero becomes zeros.

    Args:
      updates: stacked tree, leaves `[m, ...]`.
      factors: `[m]`.
    """

    def of_leaf(x):
        kept = beside(factors, x)
        wide = x.astype(accumulator_dtype(x.dtype))
        return jnp.where(kept != 0, wide * kept.astype(wide.dtype), 0).astype(x.dtype)

    return jax.tree.map(of_leaf, updates)


def mix(
    updates: trees.Tree,
    matrix: jax.Array,
    finite: jax.Array,
    *,
    sizes: Sequence[int] | None = None,
    fewer: bool = False,
    reduce: Callable[[jax.Array], jax.Array] | None = None,
) -> trees.Tree:
    """The stack y = `matrix` x of n rows, or `reduce` of it, which is then not formed.

    On a CPU, means that list at most 256 rows in all are read row by row into what
    reduces them, one pass: `nnm(median)` of 17 by 10^6 takes 14 ms on two cores so, 24
    else. Elsewhere they are one product, which reads each row once. Otherwise blocks of
    columns are products. What reduces more than 64 means, or more than 32 rows of a
    product, is compiled once for all leaves, in a loop over blocks (see
    docs/performance.md).

    Args:
      updates: stacked tree, leaves `[m, ...]`.
      matrix: `[n, m]`.
      finite: `[n]`, from `mixed_finite`; the other rows become NaN.
      sizes: if every row of `matrix` is the mean of some rows of x, of how many.
      fewer: whether they may be of fewer, as `matrix` says.
      reduce: `[n, b]` → `[b]`, column by column.
    """
    n = matrix.shape[0]
    few = tuple(sizes) if sizes and sum(sizes) <= _MOST_TERMS else None
    members = jnp.argsort(matrix == 0, axis=1, stable=True)
    counts = jnp.sum(matrix != 0, axis=1) if fewer else None

    def finished(mixed):
        return mixed if reduce is None else reduce(mixed)[None]

    def of_block(x, matrix, finite):
        return finished(mixed(x, matrix, finite))

    def of_few(flat, *rest, on_cpu):
        matrix, members, finite, counts = rest
        if on_cpu:
            return finished(means(few, flat, members, finite, counts))
        return of_block(flat, matrix, finite)

    def of_leaf(x):
        flat = flat_rows(x)
        if few is not None:
            out = by_platform(of_few, flat, matrix, members, finite, counts)
        else:
            rows = n if reduce is None else 1
            out = _columns.map_columns(of_block, rows, flat, matrix, finite)
        shape = x.shape[1:] if reduce is not None else (n, *x.shape[1:])
        return out.astype(x.dtype).reshape(shape)

    if reduce is None:
        return jax.tree.map(of_leaf, updates)
    if n <= (_MOST_IN_PARTS if few is None else order.NETWORK_LIMIT):
        return _columns.map_bundles(of_leaf, updates)

    def of_columns(x, matrix, finite):
        return of_block(x, matrix, finite)[0].astype(x.dtype)

    return _columns.map_blocks(of_columns, updates, matrix, finite)


def column_sums(
    terms: Callable[..., trees.Tree],
    updates: trees.Tree,
    beside: trees.Tree | None = None,
    *,
    row: int | None = None,
    parts: int = _columns.SUMS,
) -> trees.Tree:
    """Sums over all coordinates of terms that each coordinate gives by itself.

    One pass over the stack in blocks of _columns.

    Args:
      terms: of a block `[m, b]`, and one `[b]` of `beside` and of `row` if given → a
        tree of `[..., b]`.
      updates: stacked tree, leaves `[m, ...]`.
      beside: tree `[...]` that is read along.
      row: the index of a row that is read along.
      parts: into how many a block is cut on CPU: fewer are slower, and compile sooner.

    Returns:
      The tree of terms, summed: `[...]`.
    """
    rows = [flat_rows(x) for x in jax.tree.leaves(updates)]
    vectors = None
    if beside is not None:
        vectors = [jnp.ravel(x) for x in jax.tree.leaves(beside)]
    rows, vectors = _columns.bundled(rows, vectors)

    def of_block(*block):
        return (), terms(*block)

    return _columns.fold(of_block, rows, vectors, center=row, parts=parts)[1]

"""Lengths of rows, and of trees: of these the largest float where one is beyond it.

The ordinary pass adds up squares. Where these may have left the range of floats, more
passes take them over powers of two, row by row.
"""

import functools

import jax
import jax.numpy as jnp

from byzjax import checks, loops, trees
from byzjax.numerics import _columns, _range, devices
from byzjax.numerics._columns import flat_rows, total
from byzjax.numerics._geometry import root
from byzjax.numerics._gram import product
from byzjax.numerics._range import Lengths, inverse, power_of_two
from byzjax.trees import accumulator_dtype

# A row is an outlier when it is so much longer than most, than one, and than what it is
# measured from.
_FARTHEST = 1e18


def distances_to_tree(
    updates: trees.Tree, center: trees.Tree | None, present: jax.Array | None = None
) -> Lengths:
    """‖x_k − center‖ [m] over the whole tree, of zero if None; +inf for an outlier.

    That is a row that is not finite, or whose distance is beyond 10^18, 10^18 times the
    middle one and, where most rows are at the center, 10^18 times its largest entry; as
    is one that is not `present`. One pass over the stack. Where it holds
    squares that may have left the range of floats, two more: the largest entry of each
    row, and squares over a power of two.
    """
    checks.num_workers(updates)
    rows = jax.tree.leaves(updates)
    beside = None if center is None else jax.tree.leaves(center)
    rows = [flat_rows(x) for x in rows]
    roots, units, top = _lengths(rows, _flat(beside), present, None)
    return _near(roots, units, top, present)


def distances_to_row(
    updates: trees.Tree, index: int, present: jax.Array | None = None
) -> Lengths:
    """‖x_k − x_index‖ [m] over the whole tree, as `distances_to_tree`."""
    rows = [flat_rows(x) for x in jax.tree.leaves(updates)]
    roots, units, top = _lengths(rows, None, present, index)
    return _near(roots, units, top, present)


def _near(roots, units, top, present):
    """roots · units [m], +inf for outliers and for rows that are not present."""
    lengths = Lengths(roots, units).plain()
    unit = jnp.maximum(power_of_two(_range.middle(lengths, present)), 1)
    # Where most rows are equal, nothing but their size says what is far from them.
    near = lengths < _FARTHEST * jnp.maximum(unit, top)
    return _range.lengths_of(roots, units, near if present is None else near & present)


def norm(tree: trees.Tree) -> jax.Array:
    """The Euclidean norm over a whole tree `[...]`, in range as `distances_to_tree`."""
    return _length(_flat(jax.tree.leaves(tree)))


def _flat(leaves):
    return None if leaves is None else [jnp.ravel(x) for x in leaves]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _lengths(rows, center, present, index):
    """Distances [m] of rows, a list of `[m, n]`, to a list of `[n]` or to a row.

    In units of their own, both [m], and the largest entry of what they are measured
    from, 0 where squares are safe.
    """
    squares, units, top = _squares_and_units(rows, center, present, index)
    return root(squares), units, top


def _squares_and_units(rows, center, present, index):
    """The squared distances over units² and the units, [m] each; and the top."""
    squares = _squares(rows, center, index, None)
    one = jnp.ones_like(squares)

    def in_units(_):
        if index is not None:
            beside = [x[index] for x in rows]
        else:
            beside = [None] * len(rows) if center is None else center
        tops = _range.largest(rows, beside).astype(one.dtype)
        units = power_of_two(tops)
        found = _squares(rows, center, index, inverse(units))
        found = jnp.where(tops < jnp.inf, found, jnp.inf)
        return jnp.asarray(False), found, units, _top(beside, one.dtype)

    # A loop of one turn at most: of a condition, both sides would run under vmap.
    # Of its own row the distance is zero, which needs no second look.
    itself = jnp.arange(one.shape[0]) == (-1 if index is None else index)
    known = _range.is_safe(squares) | (itself & (squares == 0))
    left = ~jnp.all(known if present is None else known | ~present)
    start = left, squares, one, jnp.zeros((), one.dtype)
    _, squares, units, top = loops.while_loop(lambda carry: carry[0], in_units, start)
    squares = jnp.where(squares < jnp.inf, squares, jnp.inf)  # NaN as well.
    return squares, units, top


def _top(center, dtype):
    """The largest entry of a list of `[n]`, 0 for a center of zero, None each."""
    if any(x is None for x in center):
        return jnp.zeros((), dtype)
    # That of a center known when compiled XLA would find then, which takes it seconds.
    rows = [x[None] for x in _range.unfolded(center)]
    return _range.largest(rows, [None] * len(rows))[0].astype(dtype)


def _squares(rows, center, index, scales):
    """Σ ((x_k − c) · scales_k)² [m] over all columns."""
    parts = _columns.SUMS if scales is None else 1

    def of_block(x, *c):
        # Scales may be none of the floats of a leaf that is narrower than others.
        dtype = accumulator_dtype(x.dtype) if scales is None else scales.dtype
        gaps = x.astype(dtype)
        if c:
            gaps = gaps - c[0].astype(dtype)[None]
        if scales is not None:
            gaps = gaps * scales[:, None]
        return (), _square(gaps)

    if scales is not None:
        rows, center = _range.unfolded((rows, center))
    vectors = None if center is None else list(center)
    blocks = _columns.bundled(rows, vectors)
    return _columns.fold(of_block, *blocks, center=index, parts=parts)[1]


@_lengths.defjvp
def _lengths_jvp(index, primals, tangents):
    rows, center, present = primals
    squares, units, top = _squares_and_units(rows, center, present, index)

    def in_units(rows, center):
        return _squares(rows, center, index, inverse(units))

    moved = jax.jvp(in_units, primals[:2], tangents[:2])[1]
    # Of the root, and none at zero and at infinity.
    usable = (squares > 0) & (squares < jnp.inf)
    halves = jnp.sqrt(jnp.where(usable, squares, 1)) * 2
    moved = jnp.where(usable, moved / halves, 0)
    still = jnp.zeros_like(units), jnp.zeros_like(top)
    return (root(squares), units, top), (moved, *still)


@jax.custom_jvp
def _length(leaves):
    """The norm of a list of `[n]`. By products: XLA:CPU would copy what sums are of."""
    wide = [x.astype(accumulator_dtype(x.dtype)) for x in leaves]
    squares = devices.each(
        lambda parts: total([product(x, x) for x in parts]), wide, sums=True
    )
    one = jnp.ones_like(squares)

    def in_unit(_):
        tops = _range.largest([x[None] for x in wide], [None] * len(wide))
        unit = power_of_two(tops[0].astype(one.dtype))
        parts = [x.astype(unit.dtype) * inverse(unit) for x in _range.unfolded(wide)]
        found = total([jnp.sum(part * part) for part in parts])
        return jnp.asarray(False), found, unit

    start = ~_range.is_safe(squares), squares, one
    _, squares, unit = loops.while_loop(lambda carry: carry[0], in_unit, start)
    length = jnp.sqrt(squares) * unit
    return jnp.where(squares < jnp.inf, _range.in_reach(length), length)


@_length.defjvp
def _length_jvp(primals, tangents):
    length = _length(*primals)
    scale = inverse(power_of_two(length))
    slopes = []
    for x, x_dot in zip(*primals, *tangents, strict=True):
        part = x.astype(scale.dtype) * scale
        slopes.append(product(part, x_dot.astype(scale.dtype)))
    usable = (length > 0) & jnp.isfinite(length)
    ratio = jnp.where(usable, length * scale, 1)
    return length, jnp.where(usable, total(slopes) / ratio, 0)


@jax.custom_jvp
def _square(gap):
    return gap * gap


@_square.defjvp
def _square_jvp(primals, tangents):
    (gap,), (moved,) = primals, tangents
    # What is not finite is cut off later; its derivative 0·NaN would not be zero.
    square = gap * gap
    return square, 2 * jnp.where(jnp.isfinite(square), gap, 0) * moved

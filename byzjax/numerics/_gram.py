"""The Gram matrix of a stack around a central row, in one pass over the coordinates.

An uncentred Gram matrix cancels just when the honest workers agree; around a row that
an attacker chose it would cancel whenever the attacker likes. So the centre is checked
after a pass, and a better one is taken if need be; rows that lie close together far
from it are looked at once more (`_crowds.py`). On CPUs and some GPUs the distances
of a few dozen rows are measured: the centre is chosen by them, and inner products
follow from them as long as no row lies far out. Where the squares of most rows leave
the range of floats, one more pass takes them in a unit of length of their size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax import loops
from byzjax.numerics import (
    _columns,
    _crowds,
    _pairs,
    _pairs_gpu,
    _products,
    _range,
)
from byzjax.numerics._products import distances_in, product
from byzjax.numerics._range import LARGEST_SQUARE

# The centre is taken to be far off when most workers are this much farther from it
# (squared) than from some worker: distances would lose more than 1e-4.
_FAR = 1e3
_MAX_CENTERS = 3
# Beside most rows of this squared length the square of one that is 10^9 times as long
# still is in range: it may be an honest one.
_LONG = 1e18
# A row is far out when its squared distance from the centre is this many times that of
# the rows around it. Inner products with those rows, where they follow from distances,
# are off by the last place of the largest one: a hundred times their own last place.
_FAR_OUT = 1e4


class _Pass(NamedTuple):
    """What products around a row told, and where the next ones would be taken."""

    gram: jax.Array  # [m + 1, m + 1]
    squared_norms: jax.Array  # [m]
    distances: jax.Array  # [m, m], squared.
    center: jax.Array  # Index of the row.
    usable: jax.Array  # [m], rows that count and have squares in range.
    far: jax.Array  # Whether it lies far from the majority.
    crowded: jax.Array  # Whether rows lie together far from it.
    near: jax.Array  # [m], for each row the index of a better one.


@jax.custom_jvp
def centered_gram(
    rows: list[jax.Array],
    origins: list[jax.Array] | None,
    present: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The Gram matrix [m+1, m+1] around a central row, and what is known beside it.

    The way it takes is chosen in `_ordinary`:

    * On a CPU up to 48 rows pair by pair (`_pairs.py`): for 17 rows by 10^6 krum takes
      5.1 to 5.9 ms so, where products of centred copies take 1.6 to 2.2 times as long
      whenever the two cores share no cache; of 64 rows products take less.
    * On one NVIDIA GPU of compute capability 9 or more up to 48 rows a kernel
      (`_pairs_gpu.py`): 0.34 ms for 17 rows by 10^7 in a prototype, products 2.18.
    * Else, and around an origin of its own, products of blocks (`_by_products`).

    Measured on two CPU cores with jax 0.10.2 and on one H100; see docs/performance.md.

    Args:
      rows: `[m, n]` each.
      origins: `[n]` each, or None.
      present: which rows [m] count as workers, or None for all.

    Returns:
      gram, squared norms [m], squared distances [m, m], of these the ones from the
      central row [m], and the unit of length that all are in, a power of two. Nothing
      is masked: rows that are not finite make what they enter infinite or NaN.
    """
    found = _around_center(rows, origins, present)
    gram, squared_norms, distances, center, unit = found
    return gram, squared_norms, distances, distances[center], unit


@centered_gram.defjvp
def _gram_jvp(primals, tangents):
    # Centre and unit are constants here. That is exact for what the library makes of
    # them: distances and affine combinations do not depend on the centre.
    rows, origins, present = primals
    row_tangents, origin_tangents, _ = tangents
    found = _around_center(rows, origins, present)
    gram, squared_norms, distances, center, unit = found
    scale = _range.inverse(unit)
    points_dot = jnp.zeros_like(gram)
    norms_dot = jnp.zeros_like(squared_norms)
    for k, (x, x_dot) in enumerate(zip(rows, row_tangents, strict=True)):
        dtype = gram.dtype
        x, x_dot = x.astype(dtype), x_dot.astype(dtype)
        c = x[center]
        zero = jnp.zeros_like(c)
        o = zero if origins is None else origins[k].astype(dtype)
        o_dot = zero if origins is None else origin_tangents[k].astype(dtype)
        y = jnp.concatenate([x - c[None], (o - c)[None]]) * scale.astype(dtype)
        # 0·NaN would reach the finite rows through the transposed product.
        y = jnp.where(jnp.isfinite(y * y), y, 0)
        y_dot = jnp.concatenate([x_dot, o_dot[None]]) * scale.astype(dtype)
        half = product(y_dot, y)
        points_dot += half + half.T
        z = y[:-1] - y[-1:]
        norms_dot += 2 * jnp.sum(z * (y_dot[:-1] - y_dot[-1:]), axis=1)
    squares_dot = jnp.diagonal(points_dot)
    distances_dot = squares_dot[:, None] + squares_dot[None, :] - 2 * points_dot
    distances_dot = distances_dot[:-1, :-1]
    from_center = distances[center]
    return (gram, squared_norms, distances, from_center, unit), (
        points_dot,
        norms_dot,
        distances_dot,
        distances_dot[center],
        jnp.zeros_like(unit),
    )


def _around_center(rows, origins, present):
    """Gram matrix, squared norms and distances, the central row's index, the unit."""
    found = _ordinary(rows, origins, present)
    one = jnp.ones((), found[0].dtype)
    middle = _range.middle(found[1], present)
    left = ~_range.is_safe(middle) | (middle > _LONG)

    def in_unit(_):
        # That of the middle of the rows' largest entries, which no minority moves.
        beside = [None] * len(rows) if origins is None else origins
        tops = _range.largest(rows, beside)
        size = _range.middle(tops, present)
        # Where most are zero, that of the nearest other: its square is no zero then.
        size = jnp.where(size > 0, size, jnp.min(jnp.where(tops > 0, tops, jnp.inf)))
        unit = _range.power_of_two(size).astype(one.dtype)
        x, o = _range.unfolded((rows, origins))
        found = _by_products(x, o, present, _range.inverse(unit))
        return jnp.asarray(False), found, unit

    # A loop of one turn at most, as in `_by_pairs`.
    _, found, unit = loops.while_loop(lambda c: c[0], in_unit, (left, found, one))
    return *found, unit


def _ordinary(rows, origins, present):
    """Gram matrix, squared norms, squared distances, the index of the central row."""
    ways = {}
    if origins is None and rows[0].shape[0] <= _pairs.MOST_ROWS:
        ways["cpu"] = functools.partial(
            _by_pairs, measured=_pairs.measured, multiplied=_pairs.multiplied
        )
    if origins is None and _pairs_gpu.can_measure(rows):

        def multiplied(rows, center):
            return _products.around_row(rows, None, center, parts=1)[:2]

        ways["cuda"] = functools.partial(
            _by_pairs, measured=_pairs_gpu.measured, multiplied=multiplied
        )
    if not ways:
        return _by_products(rows, origins, present)
    ways["default"] = functools.partial(_by_products, origins=None)
    ways = {k: functools.partial(way, present=present) for k, way in ways.items()}
    return lax.platform_dependent(rows, **ways)


def _by_pairs(rows, *, present, measured, multiplied):
    norms, distances = measured(rows)
    m = norms.shape[0]
    gram, center, far_out = plane(norms, distances, norms < LARGEST_SQUARE, present)

    def by_products(_):
        inner, towards = multiplied(rows, center)
        inner = jnp.where(np.eye(m, dtype=bool), jnp.diag(distances[center]), inner)
        origin = norms[center, None, None]
        return False, jnp.block([[inner, towards[:, None]], [towards[None], origin]])

    # A loop of one turn at most: of a condition, both sides would run under vmap. Rules
    # that read distances alone are compiled without it.
    _, gram = loops.while_loop(lambda carry: carry[0], by_products, (far_out, gram))
    return gram, norms, distances, center


def plane(squared_norms, distances, finite, present):
    """Inner products [m + 1, m + 1] around a central row, from squared distances.

    Returns:
      They, the row's index, and whether some finite row lies so far out that products
      with it are off by more than their own last place.
    """
    if present is not None:
        finite &= present
    both = finite[:, None] & finite[None, :]
    among = jnp.where(both, distances, jnp.inf)
    # The middle of a row's distances is small only near the majority; without one that
    # is finite, a finite row will do.
    middle = _smallest(among, present)[1]
    middle = jnp.minimum(middle, jnp.finfo(middle.dtype).max)
    center = jnp.argmin(jnp.where(finite, middle, jnp.inf)).astype(jnp.int32)
    far_out = jnp.any(finite & (among[center] > _FAR_OUT * middle[center]))
    nothing = jnp.zeros((1, 1), squared_norms.dtype)
    squares = jnp.block(
        [[distances, squared_norms[:, None]], [squared_norms[None], nothing]]
    )
    from_center = squares[center]
    gram = (from_center[:, None] + from_center[None, :] - squares) / 2
    return gram, center, far_out


def _smallest(rows, present):
    """The m // 2 + 1 smallest of each row [..., m], in order, and the majority's last.

    Of n that are present the majority is n // 2 + 1, and is among them.
    """
    # A sort would take longer to compile than all the rest.
    half = -lax.top_k(-rows, rows.shape[-1] // 2 + 1)[0]
    if present is None:
        return half, half[..., -1]
    return half, jnp.take(half, jnp.sum(present) // 2, axis=-1)


def _by_products(rows, origins, present, scale=None):
    """The same by products, around a better centre if need be.

    Args:
      rows: `[m, n]` each.
      origins: `[n]` each, or None.
      present: which rows count, or None for all.
      scale: what all are multiplied by first, or None.
    """
    m = rows[0].shape[0]
    dtype = _columns.widest_accumulator(rows)

    def pass_around(centers, *, parts):
        gram, squared_norms = _gram_pass(
            rows, origins, centers, dtype, parts=parts, scale=scale
        )
        usable = _usable(gram, squared_norms, present)
        distances = distances_in(gram)[:m, :m]
        far, better = _judged(gram, squared_norms, distances, centers, usable, present)
        crowded, leader = _crowds.crowds(gram[:m, :m], distances, usable)
        # The next pass is around one row for all, or a row of its own crowd for each.
        near = jnp.where(far, better, leader)
        center = jnp.asarray(centers, jnp.int32).reshape(-1)[0]
        return _Pass(gram, squared_norms, distances, center, usable, far, crowded, near)

    def again(carry):
        tries, found = carry
        # How many centres are tried is bounded, so no attacker can stall a step.
        return (found.far | found.crowded) & (tries <= _MAX_CENTERS)

    def step(carry):
        tries, old = carry
        # These passes are rare: cut up, they would take as long to compile again, as
        # would a program for each of the two.
        new = pass_around(old.near, parts=1)
        new = new._replace(far=new.far & (tries < _MAX_CENTERS - 1))
        apart = _crowds.told_apart(old.distances, new.distances, old.near, old.usable)
        seen = old._replace(distances=apart, crowded=jnp.asarray(False))
        kept = jax.tree.map(lambda x, y: jnp.where(old.far, x, y), new, seen)
        return tries + 1, kept

    if scale is None:
        # The first pass stands by itself, as it can leave out its own centre.
        start = jnp.int32(1), pass_around(m - 1, parts=_columns.PRODUCTS)
    else:  # Rare as a whole: one program for all passes.
        last = jnp.full((m,), m - 1, jnp.int32)
        shapes = jax.eval_shape(functools.partial(pass_around, parts=1), last)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start = jnp.int32(0), nothing._replace(far=jnp.asarray(True), near=last)
    found = loops.while_loop(again, step, start)[1]
    return found.gram, found.squared_norms, found.distances, found.center


def _usable(gram, squared_norms, present):
    """Which rows [m] count, and have squares in range."""
    squares = jnp.diagonal(gram)[:-1]
    usable = (squares < LARGEST_SQUARE) & (squared_norms < LARGEST_SQUARE)
    return usable if present is None else usable & present


def _judged(gram, squared_norms, distances, centers, finite, present):
    """Whether the centre lies far from the majority, and which row does not."""
    m = squared_norms.shape[0]
    diagonal = jnp.diagonal(gram)[:m]
    there = squared_norms < LARGEST_SQUARE
    if present is not None:
        there &= present
    both = finite[:, None] & finite[None, :]
    distances = jnp.where(both, distances, jnp.inf)
    norms = jnp.where(there, squared_norms, jnp.inf)
    from_center = jnp.where(finite, diagonal, jnp.inf)
    together = jnp.concatenate([distances, norms[None], from_center[None]])
    smallest, middle = _smallest(together, present)
    reach, half_of_norms, from_center = middle[:m], middle[m], middle[m + 1]
    # A far centre blurs these distances, and a row planted within the blur would
    # look as central as an honest one. Norms are not blurred: of the smaller half
    # none is larger than every honest row, so the next centre is near enough.
    reach = jnp.where(norms <= half_of_norms, reach, jnp.inf)
    known = jnp.isfinite(jnp.min(reach))
    far = ~known | (from_center > _FAR * jnp.min(reach))
    # Without distances to choose by, the finite row of median norm: it is no
    # farther out than some honest row.
    usable = jnp.sum(norms < jnp.inf)
    median_norm = smallest[m, jnp.maximum(usable - 1, 0) // 2]
    by_norm = jnp.argmax(norms == median_norm)
    better = jnp.where(known, jnp.argmin(reach), by_norm).astype(jnp.int32)
    return far & jnp.any(better != centers), better


def _gram_pass(rows, origins, center, dtype, *, parts, scale):
    """One pass over the stack, centred on the row of index `center`, or m rows' own."""
    inner, towards, squared_norms = _products.around_row(
        rows, origins, center, parts=parts, scale=scale
    )
    gram = jnp.block(
        [
            [inner, towards[:, None]],
            [towards[None, :], squared_norms[jnp.ravel(center)[0]]],
        ]
    )
    return gram.astype(dtype), squared_norms.astype(dtype)

"""Divide and conquer: the rows that are never far out along the top spread."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax import checks, loops
from byzjax.aggregators import bearing, claims
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked

# Rows so much longer than most are outliers.
_FARTHEST = 1e18


def dnc(
    num_byzantine: int,
    *,
    num_iterations: int = 5,
    subsample: int = 10_000,
    c: float = 1.0,
) -> Aggregator:
    r"""Divide and conquer (DnC): the rows that are never far out along the top spread.

    Each round draws coordinates at random, centres the rows there, and keeps the
    m − ⌊c f⌋ rows with the least squared projection on the top right singular vector.

    .. math:: A(x) = \frac{1}{|S|} \sum_{i \in S} x_i, \quad
      S = \text{the rows kept in every round}

    If no row is, those that are kept most often. The coordinates are drawn one from
    each of `subsample` stretches of equal length, up to one coordinate, where the
    paper draws them from all: a draw whose cost does not grow with their number.

    **Guarantee.** For m ≥ 2f + 1, filters out rows that shift the mean by more than the
    spread of the honest ones in the coordinates seen (Shejwalkar and Houmansadr 2021),
    if they lie along one direction. Rows far off along several, or at sizes far apart,
    hide each other, and those left in move the mean: against such it has no bound. A
    row that is not finite, or 10^18 times as long as most, has weight 0; ties go to the
    lowest index. One pass for the norms, one for the mean, and O(subsample · m²) a
    round.

    Args:
      num_byzantine: f.
      num_iterations: rounds, at least 1.
      subsample: coordinates drawn in each round, at least 1; all of them if there are
        no more, and then the rounds are all the same.
      c: how many rows are left out in a round, in units of f.

    Returns:
      An `Aggregator` that needs a `key`.

    Raises:
      ValueError: no round, no coordinates, c < 0, a missing key; m < 2f + 1 or
        ⌊c f⌋ ≥ m at trace time.
      TypeError: a c that is traced or no number.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-9.0, 0.0]])
      >>> print(byzjax.dnc(num_byzantine=1).aggregate(rows, key=jax.random.key(0)))
      [1. 0.]

    Reference:
      Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021,
      https://doi.org/10.14722/ndss.2021.24498
    """
    f = checks.count("dnc", num_byzantine=num_byzantine)
    num_iterations = checks.count("dnc", num_iterations=num_iterations, minimum=1)
    subsample = checks.count("dnc", subsample=subsample, minimum=1)
    # As decimals: 0.29 of 100 are 29, and a little less in binary.
    dropped = int(fractions.Fraction(str(checks.number("dnc", c=c, static=True))) * f)

    def check(m):
        checks.minority("dnc", f)(m)
        if not dropped < m:
            raise ValueError(
                f"dnc needs c * num_byzantine < num_workers, got c={c}, "
                f"num_byzantine={f} and num_workers={m}"
            )

    def update(
        updates, state, params=None, *, key=None, weights=None, present=None, **extra
    ):
        claims.refuse_weights("dnc", weights)
        key = checks.key("dnc", key)
        rows = [stacked.flat_rows(leaf) for leaf in jax.tree.leaves(updates)]
        rows = lax.stop_gradient(rows)
        geometry = jax.tree.map(lax.stop_gradient, stacked.norms(updates, present))
        m, n = geometry.num_workers, geometry.num_present
        # Squares of the others could not be added up.
        finite = geometry.plain_norms() < _FARTHEST * geometry.unit

        def step(kept, key):
            gram = _sampled_gram(rows, finite, geometry.unit, subsample, key)
            size = jnp.max(jnp.abs(gram))
            vectors = jnp.linalg.eigh(stacked.over(gram, size), symmetrize_input=False)[
                1
            ]
            scores = jnp.where(finite, jnp.square(vectors[:, -1]), jnp.inf)
            return kept + order.mark_nearest(scores, n - dropped), None

        start = jnp.zeros((m,), geometry.norms.dtype)
        kept, _ = loops.scan(step, start, jax.random.split(key, num_iterations))
        kept = jnp.where(finite, kept, -1)
        shares = stacked.normalized((kept == jnp.max(kept)).astype(start.dtype))
        shares = jnp.where(finite, shares, 0)
        return stacked.weighted_sum(updates, shares), state

    return Aggregator(
        optax.init_empty_state, update, check=check, bears=bearing.told(f)
    )


def _sampled_gram(rows, finite, unit, count, key):
    """The Gram matrix [m, m] of the rows, centred, in coordinates drawn at random."""
    total = sum(x.shape[1] for x in rows)
    if not total:
        return jnp.zeros((len(finite),) * 2, unit.dtype)
    count = min(count, total)
    # One coordinate in each stretch from starts[k] to starts[k + 1]. On the host, where
    # integers have 64 bits.
    starts = np.arange(count + 1, dtype=np.int64) * total // count
    widths = np.diff(starts).astype(np.int32)
    drawn = jax.random.randint(key, (count,), 0, jnp.asarray(widths), jnp.int32)
    if stacked.is_split():
        wanted = jnp.asarray(starts[:-1].astype(np.uint32)) + drawn.astype(jnp.uint32)
        return _gram_at(rows, wanted, finite, unit)
    parts, end = [], 0
    for x in rows:
        begin, end = end, end + x.shape[1]
        if begin == end:
            continue
        # The stretches that reach into this leaf; the outer two may reach beyond.
        first = int(np.searchsorted(starts[1:], begin, "right"))
        last = int(np.searchsorted(starts[:-1], end, "left"))
        at = jnp.asarray((starts[first:last] - begin).astype(np.int32))
        at = at + drawn[first:last]
        inside = (at >= 0) & (at < end - begin)
        seen = jnp.asarray(x)[:, jnp.clip(at, 0, end - begin - 1)]
        parts.append(_centered_gram(seen, inside, finite, unit))
    return stacked.total(parts)


def _centered_gram(seen, inside, finite, unit):
    """The Gram matrix of the columns `inside`, around their mean."""
    seen = jnp.where(finite[:, None] & inside[None, :], seen.astype(unit.dtype), 0)
    seen = seen * stacked.inverse(unit)
    share = stacked.normalized(finite.astype(seen.dtype))
    mean = jnp.matmul(share, seen, precision=lax.Precision.HIGHEST)
    seen = jnp.where(finite[:, None], seen - mean[None, :], 0)
    return jnp.matmul(seen, seen.T, precision=lax.Precision.HIGHEST)


def _gram_at(rows, wanted, finite, unit):
    """`_centered_gram` of the coordinates of some numbers, where each device has some.

    Numbers ascend in each array. They are passed as complements, so that what a device
    is filled up with, zeros, comes last.
    """

    def local(columns, wanted, finite, unit):
        parts = []
        for x, left in zip(columns[: len(rows)], columns[len(rows) :], strict=True):
            # The smaller of the two is looked up in the other.
            if len(left) <= len(wanted):
                at = jnp.clip(jnp.searchsorted(wanted, ~left), 0, len(wanted) - 1)
                seen, inside = x, wanted[at] == ~left
            else:
                at = jnp.clip(jnp.searchsorted(~left, wanted), 0, len(left) - 1)
                seen, inside = x[:, at], ~left[at] == wanted
            parts.append(_centered_gram(seen, inside, finite, unit))
        return stacked.total(parts)

    numbers = stacked.coordinates([x[0] for x in rows])
    left = [~number for number in numbers]
    columns = [*rows, *left]
    return stacked.each(local, columns, wanted, finite, unit, sums=True)

"""Rules that filter along the direction in which the rows spread most: CAF and DnC."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax import base, columns, lifts, order, stacked
from byzjax.base import Aggregator
from byzjax.columns import accumulator_dtype, flat_rows

# With the published scaling a filter may need any number of rounds. Beyond so many, or
# when one round takes off less than this, the scaling that ends is used.
_MOST_ROUNDS = 1000
_LEAST_PROGRESS = 1e-6


def caf(num_byzantine: int, *, scale: str = "all") -> Aggregator:
    r"""The covariance bound-agnostic filter (CAF).

    .. math::
      c = 1; \quad \text{while } \sum_i c_i > m - 2f: \quad
      \mu = \frac{\sum_i c_i x_i}{\sum_i c_i}, \quad
      (\lambda, v) = \text{top eigenpair of }
      \frac{\sum_i c_i (x_i - \mu)(x_i - \mu)^\top}{\sum_i c_i}, \quad
      c_i \leftarrow c_i \Big(1 - \frac{\tau_i}{\max_j \tau_j}\Big), \quad
      \tau_i = \langle x_i - \mu, v \rangle^2

    and the result is the μ with the least λ; for f = 0 the mean. The eigenpair is
    exact, from the Gram matrix, where published code takes a few steps of the power
    method from a random start.

    **Guarantee.** As `smea`, relative to the top eigenvalue of the honest covariance
    and without knowing it, for m ≥ 2f + 1 (Allouah et al. 2025), in polynomial time.
    A row that is not finite has weight exactly 0 from the start. Two passes over the
    stack and O(m³) a round; derivatives hold the weights constant.

    Args:
      num_byzantine: f.
      scale: what the largest τ is taken over: "all" rows, as ByzFL and ByzPy do, or
        those of "positive" weight, with which each round removes a row, so that there
        are at most m. With "all" a removed row that lies far out slows the filter down
        to a standstill; after 1000 rounds, or at a standstill, the other is used.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: another `scale`; m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [1.0], [2.0], [1.0], [1e6], [jnp.nan]])
      >>> print(byzjax.caf(num_byzantine=2).aggregate(rows))
      [1.]

    Reference:
      Allouah, Guerraoui, Stephan: Towards Trustworthy Federated Learning with Untrusted
      Participants, 2025, https://arxiv.org/abs/2505.01874
    """
    f = base.check_count("caf", num_byzantine=num_byzantine)
    if scale not in ("all", "positive"):
        raise ValueError(
            f'caf needs scale to be "all" or "positive", got scale={scale!r}'
        )

    def weigh(geometry):
        m = geometry.num_workers
        gram = lax.stop_gradient(geometry.gram[:m, :m])

        def filtering(carry):
            _, c, _, _, moved = carry
            return (jnp.sum(c) > m - 2 * f) & moved

        def step(carry):
            rounds, c, least, best, _ = carry
            top, along = _spread(gram, c)
            better = top < least
            best = jnp.where(better, c, best)
            size = jnp.abs(along)
            farthest = jnp.max(jnp.where(c > 0, size, 0))
            largest = farthest
            if scale == "all":
                over_all = jnp.max(jnp.where(geometry.finite, size, 0))
                slow = jnp.square(_scaled(size, over_all))
                going = jnp.sum(c * slow) > _LEAST_PROGRESS * jnp.sum(c)
                going &= rounds < _MOST_ROUNDS
                largest = jnp.where(going, over_all, farthest)
            kept = 1 - jnp.square(_scaled(size, largest))
            # Compared, for a compiled quotient of equals may fall short of one.
            c = jnp.where((c > 0) & (size < largest), c * kept, 0)
            least = jnp.minimum(top, least)
            return rounds + 1, c, least, best, farthest > 0

        c = geometry.finite.astype(gram.dtype)
        infinity = jnp.asarray(jnp.inf, gram.dtype)
        carry = jnp.int32(0), c, infinity, c, jnp.asarray(True)
        best = lax.while_loop(filtering, step, carry)[3]
        return stacked.normalized(best)

    return lifts.geometric("caf", weigh, check=base.check_minority("caf", f))


def _spread(gram, weights):
    """The top eigenvalue of the weighted covariance, and the rows along its vector.

    The latter `[m]` up to a common factor.
    """
    share = stacked.normalized(weights)
    towards = jnp.matmul(gram, share, precision=lax.Precision.HIGHEST)
    level = jnp.vdot(share, towards, precision=lax.Precision.HIGHEST)
    centered = gram - towards[:, None] - towards[None, :] + level
    root = jnp.sqrt(share)
    inside = root[:, None] * centered * root[None, :]
    # At unit size, so that neither the squares nor the solver leave the range.
    size = jnp.max(jnp.abs(inside))
    values, vectors = jnp.linalg.eigh(_scaled(inside, size), symmetrize_input=False)
    mixed = root * vectors[:, -1]
    along = jnp.matmul(_scaled(centered, size), mixed, precision=lax.Precision.HIGHEST)
    return values[-1] * size, along


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
    spread of the honest ones in the coordinates seen (Shejwalkar and Houmansadr 2021).
    A row that is not finite has weight exactly 0; ties go to the lowest index. One pass
    for the norms, one for the mean, and O(subsample · m²) a round.

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
    f = base.check_count("dnc", num_byzantine=num_byzantine)
    base.check_count("dnc", num_iterations=num_iterations, minimum=1)
    base.check_count("dnc", subsample=subsample, minimum=1)
    base.check_number("dnc", c=c)
    dropped = int(c * f)

    def update(updates, state, params=None, *, key=None, weights=None, **extra):
        lifts.refuse_weights("dnc", weights)
        key = base.check_key("dnc", key)
        m = base.num_workers(updates)
        base.check_minority("dnc", f)(m)
        if not dropped < m:
            raise ValueError(
                f"dnc needs c * num_byzantine < num_workers, got c={c}, "
                f"num_byzantine={f} and num_workers={m}"
            )
        rows = [flat_rows(leaf) for leaf in jax.tree.leaves(updates)]
        rows = lax.stop_gradient(rows)
        finite = lax.stop_gradient(stacked.norms(updates).finite)

        def step(kept, key):
            gram = _sampled_gram(rows, finite, subsample, key)
            size = jnp.max(jnp.abs(gram))
            vectors = jnp.linalg.eigh(_scaled(gram, size), symmetrize_input=False)[1]
            scores = jnp.where(finite, jnp.square(vectors[:, -1]), jnp.inf)
            return kept + order.mark_nearest(scores, m - dropped), None

        start = jnp.zeros((m,), accumulator_dtype(rows[0].dtype))
        kept, _ = lax.scan(step, start, jax.random.split(key, num_iterations))
        kept = jnp.where(finite, kept, -1)
        shares = stacked.normalized((kept == jnp.max(kept)).astype(start.dtype))
        shares = jnp.where(finite, shares, 0)
        return stacked.weighted_sum(updates, shares), state

    return Aggregator(optax.init_empty_state, update)


def _sampled_gram(rows, finite, count, key):
    """The Gram matrix [m, m] of the rows, centred, in coordinates drawn at random."""
    total = sum(x.shape[1] for x in rows)
    count = min(count, total)
    # One coordinate in each stretch from starts[k] to starts[k + 1]. On the host, where
    # integers have 64 bits.
    starts = np.arange(count + 1, dtype=np.int64) * total // count
    widths = np.diff(starts).astype(np.int32)
    drawn = jax.random.randint(key, (count,), 0, jnp.asarray(widths), jnp.int32)
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
        seen = seen.astype(accumulator_dtype(x.dtype))
        seen = jnp.where(finite[:, None] & inside[None, :], seen, 0)
        share = stacked.normalized(finite.astype(seen.dtype))
        mean = jnp.matmul(share, seen, precision=lax.Precision.HIGHEST)
        seen = jnp.where(finite[:, None], seen - mean[None, :], 0)
        parts.append(jnp.matmul(seen, seen.T, precision=lax.Precision.HIGHEST))
    return columns.total(parts)


def _scaled(values, size):
    """Values over their size, zeros where that is zero."""
    return values / jnp.where(size > 0, size, 1)

"""The covariance bound-agnostic filter."""

import jax.numpy as jnp
from jax import lax

from byzjax import checks, loops
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked

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
    f = checks.count("caf", num_byzantine=num_byzantine)
    checks.word("caf", ("all", "positive"), scale=scale)

    def weigh(geometry):
        m = geometry.num_workers
        count = order.as_number(geometry.num_present - 2 * f, geometry.gram.dtype)
        gram = lax.stop_gradient(geometry.gram[:m, :m])

        def filtering(carry):
            _, c, _, _, moved = carry
            return (jnp.sum(c) > count) & moved

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
                slow = jnp.square(stacked.over(size, over_all))
                going = jnp.sum(c * slow) > _LEAST_PROGRESS * jnp.sum(c)
                going &= rounds < _MOST_ROUNDS
                largest = jnp.where(going, over_all, farthest)
            kept = 1 - jnp.square(stacked.over(size, largest))
            # Compared, for a compiled quotient of equals may fall short of one.
            c = jnp.where((c > 0) & (size < largest), c * kept, 0)
            least = jnp.minimum(top, least)
            return rounds + 1, c, least, best, farthest > 0

        c = geometry.finite.astype(gram.dtype)
        infinity = jnp.asarray(jnp.inf, gram.dtype)
        carry = jnp.int32(0), c, infinity, c, jnp.asarray(True)
        best = loops.while_loop(filtering, step, carry)[3]
        return stacked.normalized(best)

    check = checks.minority("caf", f)
    bears = bearing.told(f)
    return lift.geometric("caf", weigh, check=check, bears=bears, absent=True)


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
    values, vectors = jnp.linalg.eigh(
        stacked.over(inside, size), symmetrize_input=False
    )
    mixed = root * vectors[:, -1]
    along = jnp.matmul(
        stacked.over(centered, size), mixed, precision=lax.Precision.HIGHEST
    )
    return values[-1] * size, along

"""Against comparative gradient elimination: as long as that rule still keeps."""

import jax
import jax.numpy as jnp

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.numerics import order, stacked


def anti_cge(*, num_byzantine: int | None = None) -> Attack:
    r"""Against `cge`: the longest message whose norm that rule still keeps.

    .. math:: b_i = -\rho \frac{s}{\|s\|}, \quad s = \sum_{j \in S} x_j, \quad
      \rho < \|x\|_{(h - f + 1)}

    with S the h − f shortest honest messages, those that the rule keeps beside the f
    Byzantine ones, and ρ just below the norm of the next longer one (by a part in 10⁴,
    or more for leaves of lower precision, so that rounding cannot lift it above).

    Differs from the one public implementation (EPFL's), which counts the shortest
    message twice in s.

    Args:
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [0.0]])
      >>> attack = byzjax.attacks.anti_cge()
      >>> print(attack.apply(rows, num_byzantine=1).ravel().round(2))
      [ 1.  2.  3. -3.]

    Reference:
      The rule: Gupta, Liu, Vaidya: Byzantine Fault-Tolerant Distributed Machine
      Learning Using Stochastic Gradient Descent (SGD) and Norm-Based Comparative
      Gradient Elimination (CGE), 2021, https://arxiv.org/abs/2008.04699
    """

    def message(honest, f):
        h = checks.num_workers(honest)
        checks.minority("anti_cge", f)(h + f)
        norms = stacked.norms(honest).plain_norms()
        shortest = order.mark_nearest(norms, h - f)
        sums = stacked.weighted_sum(jax.tree.map(lift.wide, honest), shortest)
        coarsest = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(honest))
        limit = jnp.sort(norms)[h - f] * (1 - max(1e-4, coarsest))
        length = stacked.norm(sums)
        scale = jnp.where(length > 0, limit / jnp.where(length > 0, length, 1), 0)
        return jax.tree.map(lambda x: -(lift.number(scale, x) * x), sums)

    return lift.one_message(message, num_byzantine=num_byzantine)

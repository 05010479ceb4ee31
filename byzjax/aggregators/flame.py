"""FLAME: the majority cluster by cosine, clipped to the median norm, plus noise."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax import checks, loops
from byzjax.aggregators import lift
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked


def flame(*, noise: float = 0.001) -> Aggregator:
    r"""FLAME: the majority cluster by cosine, clipped to the median norm, plus noise.

    .. math:: A(x) = \frac{1}{|S|} \sum_{i \in S} \min(1, s / \|x_i\|) \, x_i
      + \mathcal{N}(0, \lambda^2 s^2), \quad s = \operatorname{median}_i \|x_i\|

    with S what HDBSCAN finds at a least cluster size of ⌊m/2⌋ + 1: the first cluster of
    more than half of the workers that forms when pairs are joined in the order of their
    cosine distances. (For this size alone it need not be run: two such clusters cannot
    be.) The paper takes cosines between models, here they are between updates.

    **Guarantee.** For m ≥ 2f + 1 the result, before the noise, is no longer than the
    longest honest row. Whether S leaves the attackers out is an assumption on their
    directions. A row that is not finite has weight exactly 0. Two passes over the stack
    and O(m³), and one pass to draw the noise.

    Args:
      noise: λ ≥ 0, the standard deviation of the noise in units of s; the paper's 0.001
        is for images. With 0 no key is needed.

    Returns:
      An `Aggregator` that needs a `key` if `noise` is not 0.

    Raises:
      ValueError: negative noise; a missing key.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1e6]])
      >>> print(byzjax.flame(noise=0.0).aggregate(rows).round(3))
      [1.833 0.   ]

    Reference:
      Nguyen, Rieger, Chen, Yalame, Möllering, Fereidooni et al.: FLAME: Taming
      Backdoors in Federated Learning, USENIX Security 2022,
      https://arxiv.org/abs/2101.02281
    """
    level = checks.number("flame", noise=noise)

    def weigh(geometry):
        cosines = geometry.cosine_distances()
        member = _majority_cluster(cosines, geometry.num_present // 2)
        typical = order.middle(geometry.norms, present=geometry.present)
        return lift.clipped_mean(member & geometry.finite, geometry, typical)

    without = lift.geometric("flame", weigh, absent=True)
    if isinstance(level, float) and level == 0:
        return without

    def update(
        updates, state, params=None, *, key=None, weights=None, present=None, **extra
    ):
        key = checks.key("flame", key)
        out, state = without.inside(
            updates, state, params, weights=weights, present=present
        )
        norms = stacked.norms(updates, present).plain_norms()
        typical = order.middle(norms, present=present)
        scale = checks.in_dtype(level, typical.dtype) * typical

        def noisy(leaf, drawn):
            drawn = drawn * scale.astype(drawn.dtype)
            return (leaf.astype(drawn.dtype) + drawn).astype(leaf.dtype)

        noise = stacked.drawn(out, key, jax.random.normal)
        return jax.tree.map(noisy, out, noise), state

    return Aggregator(optax.init_empty_state, update)


def _majority_cluster(distances, others):
    """Marks [m] the first connected majority as pairs are joined by distance [m, m].

    That is a row with so many `others`.
    """
    m = distances.shape[0]

    # The longest step on the best path between each two: what single linkage joins at.
    def through(i, reach):
        return jnp.minimum(reach, jnp.maximum(reach[:, i, None], reach[i, None, :]))

    reach = loops.fori_loop(0, m, through, lax.stop_gradient(distances))
    joined = jnp.sort(reach, axis=1)[:, others]
    first = jnp.argmin(joined)
    return reach[first] <= joined[first]

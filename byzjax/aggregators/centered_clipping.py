"""Centered clipping: a rule with a memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax import checks, loops, trees
from byzjax.aggregators import bearing, claims
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked


class CenteredClippingState(NamedTuple):
    """State of `centered_clipping`.

    Attributes:
      center: v, the last aggregate, a tree `[...]` like the parameters; zeros at first.
    """

    center: trees.Tree  # v, leaves [...].


def centered_clipping(radius: float, *, num_iterations: int = 1) -> Aggregator:
    r"""Centered clipping (CC): the mean of the rows clipped to a ball around v.

    .. math::
      v \leftarrow v + \frac{1}{m} \sum_i (x_i - v) \min(1, \tau / \|x_i - v\|)

    v starts at zero and is carried in the state from one update to the next, which is
    where its robustness comes from; `aggregate` starts from zero every time.

    **Guarantee.** No breakdown below 1/2 in one step: each Byzantine row moves v by at
    most τ/m an iteration from where the honest ones alone would lead it, wherever it
    is. Robustness comes over time with momentum (Karimireddy et al. 2021, Theorem III).
    A row that is not finite counts as v. Two passes over the stack, however many
    iterations.

    Args:
      radius: τ > 0, in units of the updates.
      num_iterations: how often v is improved for each update, at least 1.

    Returns:
      An `Aggregator` with a `CenteredClippingState`.

    Raises:
      ValueError: a radius that is not positive, no iterations.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rule = byzjax.centered_clipping(radius=1.0)
      >>> print(rule.aggregate(jnp.array([[0.3], [0.6], [0.6], [1e9], [jnp.nan]])))
      [0.5]

    Reference:
      Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization,
      2021, https://arxiv.org/abs/2012.10333
    """
    radius = checks.number("centered_clipping", radius=radius, open_interval=True)
    num_iterations = checks.count(
        "centered_clipping", num_iterations=num_iterations, minimum=1
    )

    def init(params):
        return CenteredClippingState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        claims.refuse_weights("centered_clipping", weights)
        m = checks.num_workers(updates)
        count = claims.num_present(m, present)

        def clip(distances, reach):
            inside = distances <= reach
            far = stacked.over(reach, jnp.where(inside, 1, distances))
            return jnp.where(inside, 1, far)

        if num_iterations == 1:  # Distances between rows are not needed.
            found = stacked.distances_to_tree(updates, state.center, present)
            distances, unit = found
            count = order.as_number(count, distances.dtype)
            reach = checks.in_dtype(radius, unit.dtype) * stacked.inverse(unit)
            shares = clip(distances, reach) / count
        else:
            # Around v itself, so the weights are of x_i − v and the rest stays at v; no
            # iterate is farther from it than the radius times their number.
            geometry = stacked.geometry(updates, origin=state.center, present=present)
            count = order.as_number(count, geometry.gram.dtype)
            products = geometry.around_origin()
            lengths = jnp.diagonal(products)

            def step(_, shares):
                towards = stacked.product(products, shares)
                squares = lengths - 2 * towards + stacked.product(towards, shares)
                squares = jnp.where(geometry.finite, jnp.maximum(squares, 0), jnp.inf)
                kept = clip(stacked.root(squares), reach)
                return shares * (1 - jnp.sum(kept) / count) + kept / count

            reach = geometry.in_unit(checks.in_dtype(radius, geometry.gram.dtype))
            start = jnp.zeros((m,), geometry.gram.dtype)
            shares = loops.fori_loop(0, num_iterations, step, start)
        center = stacked.weighted_sum(updates, shares, origin=state.center)
        kept = jax.tree.map(lambda new, v: new.astype(v.dtype), center, state.center)
        return center, CenteredClippingState(kept)

    return Aggregator(init, update, bears=bearing.minority)

"""AKSEL: the mean of the rows nearest the coordinate-wise median."""

import jax.numpy as jnp
import optax

from byzjax import checks
from byzjax.aggregators import lift
from byzjax.base import Aggregator
from byzjax.numerics import order, stacked


def aksel(
    num_byzantine: int, *, num_selected: int | None = None, even: str = "midpoint"
) -> Aggregator:
    r"""AKSEL: the mean of the rows nearest the coordinate-wise median.

    .. math:: A(x) = \frac{1}{q} \sum_{i \in S} x_i, \quad
      S = \text{the } q \text{ rows nearest } \operatorname{median}(x)

    **Guarantee.** Breakdown point f/m for m ≥ 2f + 1 and q ≤ m−f: no row kept is
    farther from the median than some honest row, and the median lies within the honest
    coordinates. A row that is not finite has weight exactly 0; ties go to the lowest
    index. Three passes over the stack.

    Args:
      num_byzantine: f.
      num_selected: q, m−f by default; the authors' code also has ⌊(m+1)/2⌋, the rows
        within the median distance.
      even: the median of an even number of workers, as in `median`; the authors' code,
        built on torch, takes the "lower" one.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: another `even`; m < 2f + 1 or q > m at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [2.0, 1e9]])
      >>> print(byzjax.aksel(num_byzantine=1).aggregate(rows))
      [2. 0.]

    Reference:
      Boussetta, El Mhamdi, Guerraoui, Maurer, Rouault: AKSEL: Fast Byzantine SGD,
      OPODIS 2020, https://doi.org/10.4230/LIPIcs.OPODIS.2020.8
    """
    f = checks.count("aksel", num_byzantine=num_byzantine)
    if num_selected is not None:
        num_selected = checks.count("aksel", num_selected=num_selected, minimum=1)
    checks.word("aksel", ("midpoint", "lower"), even=even)
    median = lift.coordinatewise("aksel", lambda rows: order.middle(rows, even=even))

    def update(updates, state, params=None, *, weights=None, **extra):
        lift.refuse_weights("aksel", weights)
        m = checks.num_workers(updates)
        checks.minority("aksel", f)(m)
        count = num_selected or m - f
        if not count <= m:
            raise ValueError(
                f"aksel needs num_selected <= num_workers, got num_selected={count} "
                f"and num_workers={m}"
            )
        center, _ = median.update(updates, optax.EmptyState(), params)
        distances = stacked.distances_to_tree(updates, center)
        shares = order.mark_nearest(distances, count) / count
        shares = jnp.where(jnp.isfinite(distances), shares, 0)
        return stacked.weighted_sum(updates, shares, at_most=count), state

    return Aggregator(optax.init_empty_state, update)

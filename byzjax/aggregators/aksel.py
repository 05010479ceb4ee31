"""AKSEL: the mean of the rows nearest the coordinate-wise median."""

import functools

import jax.numpy as jnp
import optax

from byzjax import checks
from byzjax.aggregators import bearing, claims
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

    def check(m):
        checks.minority("aksel", f)(m)
        if num_selected is not None and not num_selected <= m:
            raise ValueError(
                "aksel needs num_selected <= num_workers, got "
                f"num_selected={num_selected} and num_workers={m}"
            )

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        claims.refuse_weights("aksel", weights)
        m = checks.num_workers(updates)
        middle = functools.partial(order.middle, even=even, present=present)
        center = stacked.along_workers(middle, updates)
        distances = stacked.distances_to_tree(updates, center, present).values
        count = claims.num_present(m, present)
        shares = order.nearest_shares(distances, num_selected or count - f)
        shares = jnp.where(jnp.isfinite(distances), shares, 0)
        at_most = num_selected or m - f
        return stacked.weighted_sum(updates, shares, at_most=at_most), state

    return Aggregator(
        optax.init_empty_state, update, check=check, bears=bearing.told(f)
    )

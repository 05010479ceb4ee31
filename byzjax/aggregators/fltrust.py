"""FLTrust: trust in proportion to the likeness with a reference update."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax import checks
from byzjax.aggregators import claims
from byzjax.base import Aggregator
from byzjax.numerics import stacked
from byzjax.trees import as_arrays


def fltrust() -> Aggregator:
    r"""FLTrust: trust in proportion to the likeness with a reference update.

    .. math:: A(x) = \frac{1}{\sum_i t_i} \sum_i t_i \frac{\|r\|}{\|x_i\|} x_i, \qquad
      t_i = \max(0, \cos(x_i, r))

    with r the update that the server computes itself, on a few data that it trusts,
    passed as `update(..., reference=r)` or `aggregate(..., reference=r)`. If no worker
    is trusted, the result is zero.

    **Guarantee.** The result is no longer than r and never against it, however many
    workers are Byzantine. A row that is not finite has weight exactly 0, and so has one
    10^37 times shorter or longer than r, or 10^18 times as long as most. Three passes
    over the stack.

    Returns:
      An `Aggregator` that needs a `reference`, a tree like one worker's update.

    Raises:
      ValueError: a missing reference, or one of another structure or shape.
      TypeError: a reference that is not of real floats, or of other dtypes.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[5.0, 0.0], [0.0, 7.0], [-1e9, 0.0]])
      >>> print(byzjax.fltrust().aggregate(rows, reference=jnp.array([2.0, 0.0])))
      [2. 0.]

    Reference:
      Cao, Fang, Liu, Gong: FLTrust: Byzantine-robust Federated Learning via Trust
      Bootstrapping, NDSS 2021, https://arxiv.org/abs/2012.13995
    """

    def update(
        updates,
        state,
        params=None,
        *,
        reference=None,
        weights=None,
        present=None,
        **extra,
    ):
        claims.refuse_weights("fltrust", weights)
        checks.num_workers(updates)
        reference = as_arrays(reference)
        _check_reference(updates, reference)
        geometry = stacked.norms(updates, present)
        norms, length = geometry.norms, stacked.norm(reference)
        usable = (norms > 0) & (norms < jnp.inf) & (length > 0) & (length < jnp.inf)
        norms = jnp.where(usable, norms, 1)
        wanted = geometry.in_norm_unit(length)
        scale = jnp.where(usable, stacked.over(wanted, norms), 0)
        # So short or long a row cannot be made as long as r.
        usable &= (scale < jnp.inf) & (scale >= jnp.finfo(scale.dtype).tiny)
        cosines = _cosines(updates, norms, reference, length)
        trust = jnp.where(usable, jnp.maximum(cosines, 0), 0)
        shares = stacked.normalized(trust) * jnp.where(usable, scale, 0)
        return stacked.weighted_sum(updates, shares), state

    return Aggregator(optax.init_empty_state, update)


def _check_reference(updates, reference):
    if reference is None:
        raise ValueError(
            "fltrust needs a reference, got reference=None: pass the update that the "
            "server computes on data it trusts to update or aggregate as reference=..."
        )
    if not all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(reference)):
        raise TypeError(
            f"fltrust needs a reference with arrays as leaves, got {reference!r}"
        )
    wanted = jax.tree.map(lambda x: x.shape[1:], updates)
    checks.floating("fltrust", reference)
    if jax.tree.structure(reference) != jax.tree.structure(updates):
        raise ValueError(
            "fltrust needs a reference of the structure of one worker's update, got "
            f"{jax.tree.structure(reference)} and {jax.tree.structure(updates)}"
        )
    dtypes = [[x.dtype for x in jax.tree.leaves(t)] for t in (updates, reference)]
    if dtypes[0] != dtypes[1]:
        raise TypeError(
            "fltrust needs a reference of the dtypes of one worker's update, "
            f"{dtypes[0]}, got {dtypes[1]}: cast it"
        )
    given = jax.tree.map(jnp.shape, reference)
    if given != wanted:
        raise ValueError(
            f"fltrust needs a reference with the shapes {wanted} of one worker's "
            f"update, got {given}"
        )


def _cosines(updates, norms, reference, length):
    """cos(x_i, r) [m], with entries that are not finite left out.

    Over powers of two, as products of what is in range may not be.
    """
    inverses, inverse = (
        stacked.inverse(stacked.power_of_two(size)) for size in (norms, length)
    )

    def terms(x, r):
        # The inverses may be none of the floats of a leaf narrower than others.
        x = jnp.where(jnp.isfinite(x), x, 0).astype(inverses.dtype)
        return x * inverses[:, None] * (r.astype(inverse.dtype) * inverse)[None]

    # XLA would fold what it knows of them without their units. A barrier each, as in
    # the geometry: jax 0.12 cannot go back through one of both.
    known = jax.tree.map(lax.optimization_barrier, (updates, reference))
    products = stacked.column_sums(terms, *known)
    return products / ((norms * inverses) * jnp.where(length > 0, length * inverse, 1))

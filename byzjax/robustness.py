"""Verdicts on a rule: which worker was trusted, and by how much."""

from typing import Any

import jax
import jax.numpy as jnp

from byzjax import base, checks, eager, trees
from byzjax.base import Aggregator
from byzjax.shares import with_shares
from byzjax.trees import Tree


def influence(
    rule: Aggregator,
    updates: Tree,
    *,
    state: Any = None,
    key: jax.Array | None = None,
    weights: jax.Array | None = None,
    **extra: Any,
) -> jax.Array:
    r"""Each worker's share in the output of any rule, by differentiating through it.

    .. math:: s_i = \frac{1}{d} \operatorname{tr} \frac{\partial A}{\partial x_i}

    How far the output follows worker i when it moves: by all of the way, s_i = 1; not
    at all, s_i = 0. One reverse pass gives all m shares: with signs v ∈ {−1, 1}^d, the
    cotangent v returns (∂A/∂x_i)ᵀ v, and its product with v is the trace, exactly if
    the Jacobians are diagonal, and up to a zero-mean term of order 1/√d otherwise.

    What it means:

    * Weights that are locally constant (mean, Krum, Multi-Krum, MDA, MoNNA, CGE; CTMA,
      NNM, bucketing over them): s_i is exactly the weight of worker i.
    * Coordinate-wise rules: the mean over the coordinates of the worker's weight in
      each; for the median, the share of coordinates in which the worker is the median.
      Workers with equal values have equal shares.
    * Weights that vary with the input (geometric median, centered clipping): the weight
      plus what moving x_i does to all weights, a term that fades with d.
    * Rules piecewise constant in the rows (sign majority): all zero, by definition.

    The shares sum to one for every translation-equivariant rule, whatever the input.
    They may be negative: a rule may move away from a worker that moves. Finite where
    the rule is, for rows up to 10^36 in float32.

    Args:
      rule: any aggregator.
      updates: stacked tree, leaves `[m, ...]`, where the verdict is asked for.
      state: for rules that remember, the state before these updates, as `update` was
        given it: such as `state.aggregator_state` of a trainer's state, or the rule's
        part of a chain's. It is held constant. None is a fresh one.
      key: for rules that draw; the verdict is on this draw.
      weights: `[m]`, for the rules that take them.
      **extra: what else the rule asks for by name.

    Returns:
      `[m]`, float32 (float64 for float64 leaves).

    Raises:
      TypeError: if `rule` is no aggregator, or an extra argument nothing in it takes.
      ValueError: updates that are not stacked over the workers, or a state that is not
        this rule's.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [1.0], [1.2], [9.0], [jnp.nan]])
      >>> print(byzjax.influence(byzjax.krum(num_byzantine=1), rows))
      [0. 1. 0. 0. 0.]
      >>> print(byzjax.influence(byzjax.trimmed_mean(num_byzantine=1), rows[:4]))
      [0.  0.5 0.5 0. ]
    """
    base.check_aggregator("influence", rule)
    given = [] if weights is None else ["weights"]
    rule.check_extras("influence", [*extra, *given], ("key", "state"))
    m = checks.stacked(updates)
    if extra.get("present") is not None:
        extra["present"] = rule.known_present(extra["present"], m)
    # Half-precision rows would round the derivative, not only the result.
    wide = jax.tree.map(_widened, trees.as_arrays(updates))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), wide)
    if state is None:
        state = rule.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one))
    else:
        checks.alike("influence", "state", state, jax.eval_shape(rule.init, one))
        state = jax.tree.map(_widened, state)

    extra = {"key": key, "weights": weights, **extra}

    def shares(rows, state, **extra):
        return with_shares(lambda x: rule.update(x, state, None, **extra), rows)[2]

    call = rule.named("influence")
    if not eager.may_run(call, (wide, state, extra)):
        return shares(wide, state, **extra)
    return eager.run(call, shares, wide, state, **trees.as_floats(extra))


def _widened(leaf):
    """Floats in the dtype that is computed in; others, such as counts, as they are."""
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return leaf.astype(trees.accumulator_dtype(leaf.dtype))

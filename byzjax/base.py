"""The protocol `Aggregator`, and what it shares with `byzjax.attack.Attack`.

A *stacked tree* is a pytree of floating-point arrays whose every leaf starts with the
worker axis, `[m, ...]`. An attack maps stacked to stacked, an aggregator maps stacked
to a plain tree `[...]`. Both are optax transformations, so both are links of a chain.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any, Protocol

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import checks
from byzjax.written import Written

Tree = Any  # A pytree of arrays.
Check = Callable[[int], None]  # Raises if a rule cannot serve this many workers.


class Weigh(Protocol):
    """Weights [m] of the workers from the geometry of their rows alone."""

    def __call__(
        self, geometry: Any, /, *, key: jax.Array | None, weights: jax.Array | None
    ) -> jax.Array: ...


class Aggregator(Written, optax.GradientTransformationExtraArgs):
    """A robust mean of the workers' rows: `[m, ...]` in, `[...]` out.

    It is an `optax.GradientTransformationExtraArgs`, hence a link of `optax.chain` and
    the middle of `optax.experimental.aggregating.process`: `init(params)` takes
    *unstacked* parameters, and `update(updates, state, params=None, *, key=None,
    weights=None, **extra)` takes stacked updates. `aggregate` is the short form for
    use outside a chain; `jax.jit(rule.aggregate)` works.

    One made by a factory is shown as the call: `ctma(nnm(median(), 3), 3)`.

    In a chain every link is given all extra arguments and ignores those of others;
    `aggregate` refuses what nothing in the rule takes. What a rule takes are the names
    of the keyword-only arguments of its `update`; a wrapper that passes others on to
    its base adds `takes=rule.takes`.

    Sharp edge: a link before a rule sees all rows as one update.
    `optax.clip_by_global_norm` there scales every honest row down by the length of an
    attacker's; `byzjax.per_worker(optax.clip_by_global_norm(1.0), num_workers)` clips
    each row by itself.

    Args:
      init: parameters → state.
      update: what to do with stacked updates whose leaves are arrays.
      weigh: see below.
      distances: see below.
      reduce: see below.
      by_rank: see below.
      takes: extra arguments that `update` passes on without naming them.

    Attributes:
      init: parameters → state.
      update: stacked updates, state → aggregate, state.
      weigh: for rules that are a weighting of the workers decided by their geometry
        alone, the function `weigh(geometry, key=, weights=)` → `[m]`; else None.
        Meta-rules compose such rules on m×m arrays, without touching the coordinates.
      distances: whether `weigh` reads more of the geometry than norms.
      reduce: for rules that act on every coordinate by itself and keep no state, the
        function of rows `[m, n]` → `[n]`; else None. Meta-rules that mix the rows give
        it the mixed ones, at once or in blocks, and never form their stack.
      by_rank: whether `reduce` is a mean of the sorted values with weights of their
        ranks alone, as the median; derivatives then need no more than the ranks.
      takes: names of the extra arguments that the rule or its base reads.

    Raises:
      ValueError: in `update` and `aggregate`, updates that are not stacked over the
        workers.
      TypeError: in `aggregate`, an extra argument that nothing in the rule takes.
    """

    weigh: Weigh | None
    distances: bool
    reduce: Callable[[jax.Array], jax.Array] | None
    by_rank: bool
    takes: frozenset[str]

    def __new__(
        cls,
        init,
        update,
        *,
        weigh: Weigh | None = None,
        distances: bool = True,
        reduce: Callable[[jax.Array], jax.Array] | None = None,
        by_rank: bool = False,
        takes: Collection[str] = (),
    ):
        def on_arrays(updates, state, params=None, **extra):
            checks.stacked(updates, params)
            return update(as_arrays(updates), state, params, **extra)

        self = super().__new__(cls, init, on_arrays)
        self.weigh = weigh
        self.distances = distances
        self.reduce = reduce
        self.by_rank = by_rank
        self.takes = keywords(update) | frozenset(takes)
        return self

    def aggregate(
        self,
        updates: Tree,
        *,
        key: jax.Array | None = None,
        weights: jax.Array | None = None,
        **extra: Any,
    ) -> Tree:
        """Aggregates once, from a fresh state.

        Args:
          updates: stacked tree, leaves `[m, ...]`.
          key: a `jax.random.key`, for the rules that draw at random.
          weights: `[m]` non-negative, for the rules with a weighted form: floats,
            integers such as sample counts, or bools, which count as 0 and 1.
          **extra: what else the rule asks for by name.

        Returns:
          The aggregate, leaves `[...]` of the dtypes of `updates`.

        Raises:
          ValueError: updates that are not stacked: leaves with different numbers of
            workers, a list of trees. `byzjax.stack` makes a stacked tree of such.
          TypeError: an extra argument that nothing in the rule takes.
        """
        checks.extras("aggregate", extra, self.takes | {"key", "weights"})
        checks.stacked(updates)
        state = self.init(jax.tree.map(zeros_of_one, updates))
        return self.update(updates, state, None, key=key, weights=weights, **extra)[0]


def zeros_of_one(leaf: jax.Array) -> jax.Array:
    """Zeros like one row of a leaf `[m, ...]`, which is not read for it."""
    return jnp.zeros(leaf.shape[1:], jax.dtypes.canonicalize_dtype(leaf.dtype))


def keywords(function: Callable[..., Any]) -> frozenset[str]:
    """Names of a function's keyword-only arguments, but `params` and f."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # Of what is not written in Python.
        return frozenset()
    names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return frozenset(names - {"params", "num_byzantine"})


def as_arrays(tree: Tree) -> Tree:
    """NumPy's leaves as JAX's: float64 becomes float32 unless jax_enable_x64 is set."""

    def of_leaf(leaf):
        if not isinstance(leaf, np.ndarray):
            return leaf
        with np.errstate(over="ignore"):  # Out of float32's range is infinite.
            return jnp.asarray(leaf)

    return jax.tree.map(of_leaf, tree)


def stack_rows(first: Tree, second: Tree, owner: str, what: str) -> Tree:
    """Two stacked trees, `[h, ...]` and `[f, ...]`, as one, `[h + f, ...]`.

    Args:
      first: whose structure, shapes and dtypes the second has to have.
      second: what is put below.
      owner: whose error it is if they differ.
      what: what the second is, for that error.
    """
    first, second = as_arrays(first), as_arrays(second)
    checks.same_rows(owner, what, second, first)

    def stack(a, b):
        # Flat, as what reads them is: XLA:CPU would write them once in either shape.
        rows = [x.reshape(len(x), a.size // len(a)) for x in (a, b)]
        return jnp.concatenate(rows).reshape(len(a) + len(b), *a.shape[1:])

    return jax.tree.map(stack, first, second)


def all_finite(tree: Tree) -> jax.Array:
    """Whether every number of a tree is finite."""
    found = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(found)) if found else jnp.asarray(True)


def stays_finite(new: Tree, old: Tree) -> jax.Array:
    """Whether every number of `new` is finite that is in `old`."""

    def of_leaf(x, y):
        x, y = jnp.asarray(x), jnp.asarray(y)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.asarray(True)
        return jnp.all(jnp.isfinite(x) | ~jnp.isfinite(y))

    found = jax.tree.leaves(jax.tree.map(of_leaf, new, old))
    return jnp.all(jnp.stack(found)) if found else jnp.asarray(True)


def kept(good: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` where a step was good, else `old`, of the same structure."""
    return jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old)


def accumulator_dtype(dtype) -> Any:
    """What is computed in: float32, or wider where the leaf is wider."""
    # NumPy's: that of jax.numpy refuses under jax_numpy_dtype_promotion="strict".
    return jax.dtypes.canonicalize_dtype(np.promote_types(dtype, np.float32))


def check_aggregator(name: str, rule: object) -> None:
    """Says so when a wrapper is given something that is no aggregator."""
    if not isinstance(rule, Aggregator):
        raise TypeError(
            f"{name} needs an aggregator such as byzjax.median() as its rule, got "
            f"{rule!r}"
        )

"""The two protocols of the library, `Aggregator` and `Attack`, and their checks.

A *stacked tree* is a pytree of floating-point arrays whose every leaf starts with the
worker axis, `[m, ...]`. An attack maps stacked to stacked, an aggregator maps stacked
to a plain tree `[...]`. Both are optax transformations, so both are links of a chain.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

Tree = Any  # A pytree of arrays.
Check = Callable[[int], None]  # Raises if a rule cannot serve this many workers.


class Weigh(Protocol):
    """Weights [m] of the workers from the geometry of their rows alone."""

    def __call__(
        self, geometry: Any, /, *, key: jax.Array | None, weights: jax.Array | None
    ) -> jax.Array: ...


class Aggregator(optax.GradientTransformationExtraArgs):
    """A robust mean of the workers' rows: `[m, ...]` in, `[...]` out.

    It is an `optax.GradientTransformationExtraArgs`, hence a link of `optax.chain` and
    the middle of `optax.experimental.aggregating.process`: `init(params)` takes
    *unstacked* parameters, and `update(updates, state, params=None, *, key=None,
    weights=None, **extra)` takes stacked updates. `aggregate` is the short form for
    use outside a chain; `jax.jit(rule.aggregate)` works.

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
    """

    weigh: Weigh | None
    distances: bool
    reduce: Callable[[jax.Array], jax.Array] | None

    def __new__(
        cls,
        init,
        update,
        *,
        weigh: Weigh | None = None,
        distances: bool = True,
        reduce: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self = super().__new__(cls, init, update)
        self.weigh = weigh
        self.distances = distances
        self.reduce = reduce
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
          weights: `[m]` non-negative, for the rules with a weighted form.
          **extra: what else the rule asks for by name.

        Returns:
          The aggregate, leaves `[...]` of the dtypes of `updates`.
        """
        num_workers(updates)
        state = self.init(jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), updates))
        return self.update(updates, state, None, key=key, weights=weights, **extra)[0]


class Attack(optax.GradientTransformationExtraArgs):
    """What the Byzantine workers send: stacked in, stacked out, last f rows changed.

    As a link of `optax.chain` it red-teams an existing pipeline; give it
    `num_byzantine` then. The trainer passes its own number, and leave it out there.

    Attributes:
      init: parameters → state.
      update: stacked updates, state → stacked updates, state. Extra arguments
        `num_byzantine` and `key`.
      forge: `forge(honest, own, state, *, num_byzantine, key, **extra)` → the f
        messages, stacked `[f, ...]`, and the new state. `own` are the messages that
        the Byzantine workers would send if they were honest.
      needs_own: whether `forge` reads `own`; if not, it may be None, and a trainer
        need not compute what honest Byzantine workers would have sent.
    """

    forge: Callable[..., tuple[Tree, Any]]
    needs_own: bool

    def __new__(
        cls,
        forge,
        *,
        init=optax.init_empty_state,
        needs_own: bool = False,
        num_byzantine: int | None = None,
    ):
        if num_byzantine is not None:
            check_count("attack", num_byzantine=num_byzantine)
        given = num_byzantine

        def update(
            updates, state, params=None, *, num_byzantine=None, key=None, **extra
        ):
            f = _one_of(given, num_byzantine)
            m = num_workers(updates)
            if f == 0:
                return updates, state
            if not f < m:
                raise ValueError(
                    "an attack needs num_byzantine < num_workers, got "
                    f"num_byzantine={f} and num_workers={m}"
                )
            honest = jax.tree.map(lambda leaf: leaf[: m - f], updates)
            own = jax.tree.map(lambda leaf: leaf[m - f :], updates)
            messages, state = forge(
                honest, own, state, num_byzantine=f, key=key, params=params, **extra
            )
            return stack_rows(honest, messages), state

        def checked_forge(honest, own, state, *, num_byzantine, **extra):
            f = _one_of(given, num_byzantine)
            return forge(honest, own, state, num_byzantine=f, **extra)

        self = super().__new__(cls, init, update)
        self.forge = checked_forge
        self.needs_own = needs_own
        return self

    def apply(
        self,
        updates: Tree,
        *,
        num_byzantine: int | None = None,
        key: jax.Array | None = None,
        **extra: Any,
    ) -> Tree:
        """Attacks once, from a fresh state: stacked → stacked, same shapes."""
        num_workers(updates)
        state = self.init(jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), updates))
        return self.update(
            updates, state, None, num_byzantine=num_byzantine, key=key, **extra
        )[0]


def _one_of(given: int | None, passed: int | None) -> int:
    """The number of Byzantine workers, from the factory or from the caller."""
    if given is None and passed is None:
        raise ValueError(
            "an attack needs num_byzantine: give it to the attack's factory, or pass "
            "num_byzantine=... to update or apply"
        )
    if given is not None and passed is not None and given != passed:
        raise ValueError(
            "an attack needs one num_byzantine, got "
            f"num_byzantine={given} in its factory and num_byzantine={passed} passed"
        )
    if given is not None:
        return given
    assert passed is not None
    return check_count("attack", num_byzantine=passed)


def stack_rows(first: Tree, second: Tree) -> Tree:
    """Two stacked trees, `[h, ...]` and `[f, ...]`, as one, `[h + f, ...]`."""

    def stack(a, b):
        if a.shape[1:] != b.shape[1:]:
            raise ValueError(f"rows need one shape, got {a.shape} and {b.shape}")
        # Flat, as what reads them is: XLA:CPU would write them once in either shape.
        rows = [x.reshape(len(x), a.size // len(a)).astype(a.dtype) for x in (a, b)]
        return jnp.concatenate(rows).reshape(len(a) + len(b), *a.shape[1:])

    return jax.tree.map(stack, first, second)


class WithKeyState(NamedTuple):
    """State of `with_key`."""

    key: jax.Array  # The key of the next step.
    inner_state: Any


def with_key(rule: Aggregator, key: jax.Array) -> Aggregator:
    """Keeps a random key in a rule's state, for loops that cannot pass one.

    Each update splits the key in the state, uses one half and keeps the other, so a
    run is reproduced by the key alone.

    Args:
      rule: any aggregator, usually one with `bucketing` in it.
      key: the first key, from `jax.random.key`.

    Returns:
      An aggregator that needs no `key` argument. `aggregate` uses the first key.

    Raises:
      TypeError: if `key` is no random key.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp, optax
      >>> rule = byzjax.bucketing(byzjax.median(), bucket_size=2)
      >>> rule = byzjax.with_key(rule, jax.random.key(0))
      >>> optimizer = optax.chain(rule, optax.sgd(0.1))
      >>> state = optimizer.init(jnp.zeros(3))
      >>> update, state = optimizer.update(jnp.ones((5, 3)), state)
      >>> print(update)
      [-0.1 -0.1 -0.1]
    """
    check_key("with_key", key)

    def init(params):
        # A copy, so that a donated state does not take the caller's key with it.
        return WithKeyState(jnp.copy(key), rule.init(params))

    def update(updates, state, params=None, **extra):
        extra.pop("key", None)
        key, subkey = jax.random.split(state.key)
        out, inner = rule.update(
            updates, state.inner_state, params, key=subkey, **extra
        )
        return out, WithKeyState(key, inner)

    return Aggregator(init, update)


def check_key(name: str, key: Any) -> jax.Array:
    """Returns `key`, or says how to give one."""
    if key is None:
        raise ValueError(
            f"{name} needs a key, got key=None: pass key=jax.random.key(...) to update "
            "or aggregate, or wrap the rule in byzjax.with_key(rule, key)"
        )
    is_key = hasattr(key, "dtype") and (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        or (key.dtype == np.uint32 and key.ndim >= 1)
    )
    if not is_key:
        raise TypeError(f"{name} needs a key made by jax.random.key, got {key!r}")
    return key


def num_workers(updates: Tree) -> int:
    """Checks a stacked tree and returns its number of workers.

    Raises:
      ValueError: no leaves, a leaf without a worker axis, leaves with different
        numbers of workers, or no worker at all.
      TypeError: leaves that are no floating-point arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    if not leaves:
        raise ValueError(f"updates need at least one array, got the tree {updates!r}")
    counts = {}
    for path, leaf in leaves:
        where = jax.tree_util.keystr(path) or "the array"
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(
                f"updates need arrays as leaves, got {type(leaf).__name__} at {where}"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"updates need floating-point leaves, got {leaf.dtype} at {where}"
            )
        if len(leaf.shape) == 0:
            raise ValueError(
                "updates need a worker axis in front of every leaf, got a scalar at "
                f"{where}"
            )
        counts.setdefault(leaf.shape[0], where)
    if len(counts) > 1:
        (m0, at0), (m1, at1), *_ = counts.items()
        raise ValueError(
            "updates need the same number of workers in every leaf, got "
            f"{m0} at {at0} and {m1} at {at1}"
        )
    (m,) = counts
    if m == 0:
        raise ValueError("updates need at least one worker, got num_workers=0")
    return m


def check_count(name: str, *, minimum: int = 0, **value: Any) -> int:
    """Returns the one keyword given if it is an int of at least `minimum`."""
    ((keyword, number),) = value.items()
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise TypeError(
            f"{name} needs {keyword} to be a static int, got {keyword}={number!r}"
        )
    if number < minimum:
        raise ValueError(f"{name} needs {keyword} >= {minimum}, got {keyword}={number}")
    return int(number)


def check_number(
    name: str, *, minimum: float = 0.0, open_interval: bool = False, **value: Any
) -> None:
    """Checks the one keyword given: a number at least (or above) `minimum`.

    A traced value, as under vmap over strengths, cannot be compared and passes.
    """
    ((keyword, number),) = value.items()
    if isinstance(number, jax.core.Tracer):
        return
    array = np.asarray(number)
    if array.dtype.kind not in "iuf" or array.ndim != 0:
        raise TypeError(f"{name} needs {keyword} to be a number, got {number!r}")
    ok = array > minimum if open_interval else array >= minimum
    if not ok or np.isinf(array):
        sign = ">" if open_interval else ">="
        raise ValueError(
            f"{name} needs a finite {keyword} {sign} {minimum:g}, "
            f"got {keyword}={number}"
        )


def check_minority(name: str, num_byzantine: int) -> Check:
    """A check that more than half of the workers are honest."""

    def check(m: int) -> None:
        if not m >= 2 * num_byzantine + 1:
            raise ValueError(
                f"{name} needs num_workers >= 2 * num_byzantine + 1, got "
                f"num_workers={m} and num_byzantine={num_byzantine}"
            )

    return check

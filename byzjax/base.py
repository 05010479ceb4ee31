"""The protocol `Aggregator`, and what it shares with `byzjax.attack.Attack`.

A *stacked tree* is a pytree of floating-point arrays whose every leaf starts with the
worker axis, `[m, ...]`. An attack maps stacked to stacked, an aggregator maps stacked
to a plain tree `[...]`. Both are optax transformations, so both are links of a chain.
"""

from collections.abc import Callable, Collection
from typing import Any, Protocol

import jax
import jax.core
import jax.numpy as jnp
import optax

from byzjax import checks, eager, loops, signatures, trees, written
from byzjax.trees import Tree
from byzjax.written import Written

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
    weights=None, present=None, **extra)` takes stacked updates. `aggregate` is the
    short form for use outside a chain; `jax.jit(rule.aggregate)` works.

    One made by a factory is shown as the call: `ctma(nnm(median(), 3), 3)`. Without jit
    such a one is compiled at its first call, and the next ones of equal shapes run that
    program; what is made of functions of your own runs operation by operation.

    In a chain every link is given all extra arguments and ignores those of others;
    `aggregate` refuses what nothing in the rule takes. What a rule takes are the names
    of the keyword-only arguments of its `update`; a wrapper that passes others on to
    its base adds `takes=rule.takes`, and `check=rule.check` if it serves as many.

    Sharp edge: a link before a rule sees all rows as one update.
    `optax.clip_by_global_norm` there scales every honest row down by the length of an
    attacker's; `byzjax.per_worker(optax.clip_by_global_norm(1.0), num_workers)` clips
    each row by itself.

    Args:
      init: parameters → state.
      update: what to do with stacked updates whose leaves are arrays; it is given the
        extra arguments that it names, all of them where it has a `**extra`.
      check: see below.
      trusted: see below.
      bears: see below.
      outermost: see below.
      weigh: see below.
      distances: see below.
      reduce: see below.
      takes: extra arguments that `update` passes on without naming them.

    Attributes:
      init: parameters → state.
      update: stacked updates, state → aggregate, state.
      check: raises a ValueError if the rule cannot serve so many workers.
      trusted: indices of rows that have to be present.
      bears: how many Byzantine workers of so many it bears at most, never fewer of
        more; None if nothing is known, and whatever is around it is not checked.
      outermost: whether it watches the workers' own rows, so that no meta-rule can be
        around it.
      weigh: for rules that are a weighting of the workers decided by their geometry
        alone, the function `weigh(geometry, key=, weights=)` → `[m]`; else None.
        Meta-rules compose such rules on m×m arrays, without touching the coordinates.
      distances: whether `weigh` reads more of the geometry than norms.
      reduce: for rules that act on every coordinate by itself and keep no state, the
        function of rows `[m, n]`, perhaps with `present=` `[m]`, → `[n]`; else None.
        Meta-rules that mix the rows give it the mixed ones, at once or in blocks, and
        never form their stack.
      takes: names of the extra arguments that the rule or its base reads.

    Raises:
      ValueError: in `update` and `aggregate`, updates that are not stacked over the
        workers.
      TypeError: in `aggregate`, an extra argument that nothing in the rule takes.
    """

    weigh: Weigh | None
    distances: bool
    reduce: Callable[..., jax.Array] | None
    takes: frozenset[str]
    check: Check
    trusted: tuple[int, ...]
    bears: Callable[[int], int] | None
    outermost: bool
    _update: Callable[..., Any]

    def __new__(
        cls,
        init,
        update,
        *,
        check: Check | None = None,
        trusted: tuple[int, ...] = (),
        bears: Callable[[int], int] | None = None,
        outermost: bool = False,
        weigh: Weigh | None = None,
        distances: bool = True,
        reduce: Callable[..., jax.Array] | None = None,
        takes: Collection[str] = (),
    ):
        given = {"check": check, "bears": bears, "weigh": weigh, "reduce": reduce}
        checks.functions("Aggregator", **given)
        takes = signatures.keywords(update) | frozenset(takes)
        update = signatures.ignoring_others(update)

        def on_arrays(updates, state, params=None, *, present=None, **extra):
            m = checks.stacked(updates, params)
            updates = trees.as_arrays(updates)
            call, function = self.named("update"), update
            if present is None:
                self._check_number(m, updates, params)
            elif (present := self.known_present(present, m)) is not None:
                extra["present"] = present
                call, function = self.named("update of some"), self._of_some

            def checked(updates, state, params, **extra):
                self._check_state(state, updates)
                return function(updates, state, params, **extra)

            if not eager.may_run(call, (updates, state, params, extra)):
                return checked(updates, state, params, **extra)
            extra = trees.as_floats(extra)
            # Traced once for a form of the arguments, which a state of others has not.
            return eager.run(call, checked, updates, state, params, **extra)

        self = super().__new__(cls, init, on_arrays)
        self._update = update
        self.check = check or (lambda m: None)
        self.trusted = trusted
        self.bears = bears
        self.outermost = outermost
        self.weigh = weigh
        self.distances = distances
        self.reduce = reduce
        self.takes = takes
        return self

    def _check_number(self, m, updates, params):
        """Without params nobody knows that the first axis is one of workers."""
        try:
            self.check(m)
        except ValueError as error:
            if params is not None:
                raise
            raise ValueError(f"{error}{checks.of_first_axis(updates)}") from error

    def _check_state(self, state, updates):
        """Else what a state has of each coordinate broadcasts, or is another rule's."""
        made = jax.eval_shape(
            lambda rows: self.init(jax.tree.map(trees.zeros_of_one, rows)), updates
        )
        checks.state(repr(self), state, made)

    def inside(self, updates, state, params=None, *, present=None, **extra):
        """`update` for a meta-rule, which has checked `present` and answers for it.

        Whatever is returned where too few are present, the meta-rule returns zeros.
        """
        if present is None:
            return self.update(updates, state, params, **extra)
        if "present" not in self.takes:
            raise ValueError(
                f"{self!r} has no form for absent workers, got present: give it the "
                "rows of those present alone, or another rule; one of your own has a "
                "form for them if its update names present behind *"
            )
        return self._update(updates, state, params, present=present, **extra)

    def _of_some(self, updates, state, params=None, *, present, **extra):
        """`update` of the rows that are present; zeros if these are too few."""
        m = checks.num_workers(updates)

        def of_all():
            return self._update(updates, state, params, **extra)

        def of_some():
            found = self.inside(updates, state, params, present=present, **extra)
            nothing = jax.tree.map(jnp.zeros_like, found[0]), state
            return trees.kept(self.enough(present), found, nothing)

        if not self._serves(m):
            return of_some()
        # The same bits as without a mask, whose counts are constants.
        return loops.cond(jnp.all(present), of_all, of_some)

    def known_present(self, present, m):
        """A mask of bools [m], or None if all are known to be present.

        It is an error if too few are, where that is known: of any mask, if none of 1 to
        m were enough.
        """
        present = checks.present("a rule", present, m)
        if not any(self._serves(n) for n in range(1, m + 1)):
            self.check(m)
        if isinstance(present, jax.core.Tracer):
            return present
        n = int(present.sum())
        for row in self.trusted:
            if row < m and not present[row]:
                raise ValueError(
                    f"{self!r} needs row {row}, which it trusts, to be present"
                )
        if n == 0:
            raise ValueError(f"a rule needs a worker who is present, got 0 of {m}")
        try:
            self.check(n)
        except ValueError as error:
            absent = f", as {m - n} are absent of {m}" if n < m else ""
            raise ValueError(f"{error}{absent}") from error
        return None if n == m else jnp.asarray(present)

    def _serves(self, num_workers: int) -> bool:
        try:
            self.check(num_workers)
        except ValueError:
            return False
        return num_workers > 0

    def enough(self, present: jax.Array) -> jax.Array:
        """Whether the rule can serve the workers present: else it returns zeros.

        Args:
          present: `[m]`, bools, one for each row of a stack.

        Returns:
          A bool, which a compiled step can report as it cannot raise.
        """
        shape = jnp.shape(present)
        if len(shape) != 1:
            raise ValueError(
                f"a rule needs present of shape (num_workers,), got {shape}"
            )
        present = jnp.asarray(checks.present("a rule", present, *shape))
        serves = [self._serves(n) for n in range(present.shape[0] + 1)]
        enough = jnp.asarray(serves)[jnp.sum(present)]
        for row in self.trusted:
            enough &= present[row]
        return enough

    def check_extras(
        self, owner: str, given: Collection[str], more: Collection[str] = ("key",)
    ) -> None:
        """Refuses what neither the rule nor the owner takes; in a chain it passes."""
        cure = ": a rule of your own takes what its update names behind *"
        checks.extras(owner, given, self.takes.union(more), cure)

    def aggregate(
        self,
        updates: Tree,
        *,
        key: jax.Array | None = None,
        weights: jax.Array | None = None,
        present: jax.Array | None = None,
        **extra: Any,
    ) -> Tree:
        """Aggregates once, from a fresh state.

        Args:
          updates: stacked tree, leaves `[m, ...]`.
          key: a `jax.random.key`, for the rules that draw at random.
          weights: `[m]` non-negative, for the rules with a weighted form: floats,
            integers such as sample counts, or bools, which count as 0 and 1.
          present: `[m]` bools: which rows are workers. An absent row, whatever it
            holds, counts neither as a worker nor as an attacker, so one program serves
            any number of workers; one that is not finite counts as both.
          **extra: what else the rule asks for by name.

        Returns:
          The aggregate, leaves `[...]` of the dtypes of `updates`.

        Raises:
          ValueError: updates that are not stacked: leaves with different numbers of
            workers, a list of equal trees, of which `byzjax.stack` makes a stacked one;
            a mask of another shape, or a known one that leaves too few.
          TypeError: an extra argument that nothing in the rule takes.
        """
        named = {"weights": weights, "present": present}
        given = [name for name, value in named.items() if value is not None]
        self.check_extras("aggregate", [*extra, *given])
        checks.stacked(updates)
        updates = trees.as_arrays(updates)
        if present is not None:
            m = len(jax.tree.leaves(updates)[0])
            extra["present"] = self.known_present(present, m)
        extra = {"key": key, "weights": weights, **extra}
        call = self.named("aggregate")
        if not eager.may_run(call, (updates, extra)):
            return self._from_fresh_state(updates, **extra)
        return eager.run(
            call, self._from_fresh_state, updates, **trees.as_floats(extra)
        )

    def _from_fresh_state(self, updates, **extra):
        state = self.init(jax.tree.map(trees.zeros_of_one, updates))
        return self.update(updates, state, None, **extra)[0]


def around(rule: Aggregator, init: Any, update: Any, **own: Any) -> Aggregator:
    """An aggregator over a base, which it is like in what `own` does not say.

    Args:
      rule: the base.
      init: parameters → state.
      update: which passes on what it does not name.
      **own: arguments of `Aggregator`.
    """
    names = "check", "trusted", "bears", "outermost", "takes"
    return Aggregator(
        init, update, **{name: getattr(rule, name) for name in names} | own
    )


def check_aggregator(name: str, rule: object) -> None:
    """Says so when a wrapper is given something that is no aggregator."""
    if isinstance(rule, Aggregator):
        return
    cure = written.not_called(rule)
    if isinstance(rule, optax.GradientTransformation) and not isinstance(rule, Written):
        cure = f": of a chain, give {name} the rule that is in it"
    raise TypeError(
        f"{name} needs an aggregator such as byzjax.median() as its rule, got "
        f"{written.shown(rule)}{cure}"
    )

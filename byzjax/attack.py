"""The protocol `Attack`: what Byzantine workers send, stacked in, stacked out."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax import checks, eager, signatures, trees
from byzjax.trees import Tree
from byzjax.written import Written


class Attack(Written, optax.GradientTransformationExtraArgs):
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
      num_byzantine: f as given to the factory, or None.
      takes: names of the extra arguments that `forge` reads.

    Raises:
      ValueError: in `update` and `apply`, updates that are not stacked over the
        workers, or f ≥ m, or f given twice and differently, or not at all.
      TypeError: in `apply`, an extra argument that the attack does not take.
    """

    forge: Callable[..., tuple[Tree, Any]]
    needs_own: bool
    num_byzantine: int | None
    takes: frozenset[str]

    def __new__(
        cls,
        forge,
        *,
        init=optax.init_empty_state,
        needs_own: bool = False,
        num_byzantine: int | None = None,
        takes: Collection[str] = (),
    ):
        if num_byzantine is not None:
            checks.count("attack", num_byzantine=num_byzantine)
        given = num_byzantine

        def update(
            updates,
            state,
            params=None,
            *,
            num_byzantine=None,
            key=None,
            present=None,
            **extra,
        ):
            f = _one_of(given, num_byzantine)
            m = checks.stacked(updates, params)
            if present is not None:
                extra["present"] = jnp.asarray(checks.present("update", present, m))
            updates = trees.as_arrays(updates)
            if f == 0:
                return updates, state
            if not f < m:
                raise ValueError(
                    "an attack needs num_byzantine < num_workers, got "
                    f"num_byzantine={f} and num_workers={m}"
                )

            def attacked(updates, state, params, key, *, present=None, **extra):
                honest = jax.tree.map(lambda leaf: leaf[: m - f], updates)
                seen = trees.of_present(honest, present)
                own = jax.tree.map(lambda leaf: leaf[m - f :], updates)
                messages, state = checked_forge(
                    seen, own, state, num_byzantine=f, key=key, params=params, **extra
                )
                owner, what = "an attack", "its messages"
                return trees.stack_rows(honest, messages, owner, what), state

            call = self.named(f"update with {f}")
            if not eager.may_run(call, (updates, state, params, key, extra)):
                return attacked(updates, state, params, key, **extra)
            extra = trees.as_floats(extra)
            return eager.run(call, attacked, updates, state, params, key, **extra)

        named = signatures.keywords(forge) | frozenset(takes)
        forge = signatures.ignoring_others(forge)

        def checked_forge(honest, own, state, *, num_byzantine, **extra):
            f = _one_of(given, num_byzantine)
            checks.num_workers(honest)
            honest = trees.as_arrays(honest)
            if f == 0:
                return jax.tree.map(lambda leaf: leaf[:0], honest), state
            if own is not None:
                rows = checks.num_workers(own)
                if rows != f:
                    raise ValueError(
                        "an attack needs num_byzantine rows of own messages, got "
                        f"{rows} and num_byzantine={f}"
                    )
                own = trees.as_arrays(own)
            sent, after = forge(honest, own, state, num_byzantine=f, **extra)
            shapes = [jnp.shape(x) for x in jax.tree.leaves(sent)]
            if any(shape[:1] != (f,) for shape in shapes):
                raise ValueError(
                    "an attack needs its forge to return num_byzantine messages, one a "
                    f"row of each leaf, got num_byzantine={f} and leaves of {shapes}"
                )
            # A bad batch of one honest worker is no reason to lose what was learnt.
            if jax.tree.structure(after) == jax.tree.structure(state):
                after = trees.kept(trees.stays_finite(after, state), after, state)
            return sent, after

        self = super().__new__(cls, init, update)
        self.forge = checked_forge
        self.needs_own = needs_own
        self.num_byzantine = given
        self.takes = named
        return self

    def apply(
        self,
        updates: Tree,
        *,
        num_byzantine: int | None = None,
        key: jax.Array | None = None,
        **extra: Any,
    ) -> Tree:
        """Attacks once, from a fresh state: stacked → stacked, same shapes.

        Args:
          updates: stacked tree, leaves `[m, ...]`.
          num_byzantine: f, if the factory was not given it.
          key: a `jax.random.key`, for attacks that draw.
          **extra: what else the attack asks for by name.
        """
        checks.extras("apply", extra, self.takes | {"num_byzantine", "key"})
        checks.stacked(updates)
        state = self.init(jax.tree.map(trees.zeros_of_one, updates))
        return self.update(
            updates, state, None, num_byzantine=num_byzantine, key=key, **extra
        )[0]


def _one_of(given: int | None, passed: int | None) -> int:
    """The number of Byzantine workers, from the factory or from the caller."""
    f = one_number("an attack", given, passed, "passed")
    if f is None:
        raise ValueError(
            "an attack needs num_byzantine: give it to the attack's factory, or pass "
            "num_byzantine=... to update or apply"
        )
    return checks.count("attack", num_byzantine=f)


def one_number(
    owner: str, given: int | None, other: int | None, whence: str
) -> int | None:
    """The f of a factory and of what is around it or inside, if either knows it."""
    if given is None or other is None:
        return other if given is None else given
    if checks.count("attack", num_byzantine=given) != other:
        raise ValueError(
            f"{owner} needs one num_byzantine, got num_byzantine={given} in its "
            f"factory and num_byzantine={other} {whence}"
        )
    return given

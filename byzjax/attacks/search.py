"""What attacks share that try themselves out on the very rule that they attack."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from byzjax import attack as protocol
from byzjax import trees
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.base import Aggregator
from byzjax.trees import Tree


class SearchState(NamedTuple):
    """State of `optimized` and `adaptive`."""

    attack_state: Any  # Of the attack searched over or started from.
    rule_state: Any  # Of the rule, as the server's is after the same messages.


def over(
    name: str,
    first: Attack,
    aggregator: Aggregator,
    worst: Callable[..., tuple[Tree, SearchState]],
    *,
    num_byzantine: int | None,
) -> Attack:
    """An attack that looks for the worst messages in every step.

    Args:
      name: the factory's.
      first: the attack whose state is carried, of those that are tried.
      aggregator: the rule that they are tried on.
      worst: `worst(honest, forged, aggregated)` → messages `[f, ...]` and the state
        after them; `forged(attack)` → messages of an attack and its state, and
        `aggregated(messages)` → the rule's output and its state.
      num_byzantine: f, from the factory.
    """

    def init(params):
        return SearchState(first.init(params), aggregator.init(params))

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        own_key, rule_key = (None, None) if key is None else jax.random.split(key)

        def forged(attack):
            return attack.forge(
                honest,
                own,
                state.attack_state,
                num_byzantine=num_byzantine,
                key=own_key,
                params=params,
                **extra,
            )

        def aggregated(sent):
            # The search is in float32 at least.
            sent = jax.tree.map(lambda b, x: b.astype(x.dtype), sent, honest)
            rows = trees.stack_rows(honest, sent, "an attack", "its messages")
            return aggregator.update(rows, state.rule_state, params, key=rule_key)

        return worst(honest, forged, aggregated)

    return Attack(
        forge,
        init=init,
        needs_own=first.needs_own,
        num_byzantine=one_number(name, num_byzantine, first),
        takes=first.takes,
    )


def gaps(out: Tree, mu: Tree) -> Tree:
    """How far an aggregate is from the honest mean, leaf by leaf."""
    return jax.tree.map(lambda a, c: lift.wide(a) - c, out, mu)


def check(
    name: str, aggregator: object, attack: object = None, what: str = "start"
) -> None:
    """Says so when an aggregator or, where given, an attack is none."""
    if not isinstance(aggregator, Aggregator):
        raise TypeError(
            f"{name} needs a byzjax.Aggregator as its aggregator, got {aggregator!r}"
        )
    if attack is not None:
        check_attack(name, attack, what)


def check_attack(name: str, attack: object, what: str) -> None:
    """Says so when an attack is none."""
    if not isinstance(attack, Attack):
        raise TypeError(f"{name} needs a byzjax.Attack as its {what}, got {attack!r}")


def one_number(name: str, num_byzantine: int | None, inner: Attack) -> int | None:
    """f of an attack around another, which may have been told as well."""
    whence = f"in {inner!r}"
    return protocol.one_number(name, num_byzantine, inner.num_byzantine, whence)

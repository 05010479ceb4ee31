"""How many Byzantine workers a rule bears, and which bases a wrapper may be put around.

A rule that is told f bears f, as does a wrapper that is told it, but never more than
its base: no rule may be told a smaller f than one around it, and a greater is fine.
"""

from collections.abc import Callable

from byzjax import base
from byzjax.base import Aggregator

Bears = Callable[[int], int]  # How many workers → how many of them may be Byzantine.

_MANY = 2**31 - 1  # More workers than a stack has.


def told(num_byzantine: int, rule: Aggregator | None = None) -> Bears:
    """Of a rule that is told f: so many, and no more than its base, if it has one."""
    of_base = None if rule is None else rule.bears

    def bears(m):
        return num_byzantine if of_base is None else min(num_byzantine, of_base(m))

    return bears


def minority(m: int) -> int:
    """Of a rule that is told no f, and bears less than half of the workers."""
    return (m - 1) // 2


def check_base(name: str, rule: object) -> None:
    """Says so when something is no rule, or one that no wrapper can be around."""
    base.check_aggregator(name, rule)
    assert isinstance(rule, Aggregator)
    if rule.outermost:
        raise ValueError(
            f"{name} needs a rule that reads what {name} makes of the workers' rows, "
            f"got {rule!r}, which watches the rows as they come: put {name}(...) "
            "inside of it"
        )


def check_told(name: str, rule: Aggregator, num_byzantine: int) -> None:
    """Says so when a rule bears fewer than f, however many workers there are."""
    most = num_byzantine if rule.bears is None else rule.bears(_MANY)
    if num_byzantine > most:
        raise ValueError(
            f"{name} needs a rule that bears its num_byzantine={num_byzantine}, got "
            f"{rule!r}, which bears {most} at most, as it is told: raise the "
            f"num_byzantine inside of it to {num_byzantine}, or lower that of {name}"
        )


def check_bears(name: str, rule: Aggregator, num_byzantine: int, m: int) -> None:
    """Says so when of m workers a base bears fewer than a wrapper is told."""
    if rule.bears is not None and num_byzantine > rule.bears(m):
        raise ValueError(
            f"{name} needs a rule that bears num_byzantine={num_byzantine} of "
            f"num_workers={m}, got {rule!r}, which bears {rule.bears(m)} at most: take "
            "smaller buckets, fewer attackers or more workers"
        )

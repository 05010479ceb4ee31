"""What one reply holds, as far as anybody looks at it."""

import math
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, Error, Message, MetricRecord

from byzjax.integrations.flower.npy import Rejected

_MOST_METRICS = 64  # Names read of one client's metrics.


class Refusal(Error):
    """Why a reply could not be pulled: our words, which no client can forge."""


class Contents(NamedTuple):
    """The records of a reply, none of its arrays looked at."""

    arrays: list[ArrayRecord]
    examples: float  # What the client claims; 1 where nobody asked.
    metrics: dict[str, float]
    record: str  # What the client called the record of its metrics.


def opened(message: Message, examples_key: str | None) -> Contents:
    """What a reply holds.

    Args:
      message: from anybody.
      examples_key: the metric that has the number of examples, if it counts.

    Raises:
      Rejected: of one that cannot be used.
    """
    if message.has_error():
        reason = one_line(str(message.error.reason))
        if isinstance(message.error, Refusal):
            raise Rejected(reason)
        raise Rejected(f"is an error, code {int(message.error.code)}: {reason}")
    if not message.has_content():
        raise Rejected("has no content")
    # Not `.array_records`: that rebuilds, writes back, and raises on odd content.
    records = list(message.content.items())
    arrays = [x for _, x in records if isinstance(x, ArrayRecord)]
    metrics = [(name, x) for name, x in records if isinstance(x, MetricRecord)]
    if len(metrics) > 1:
        raise Rejected(f"has {len(metrics)} metric records, not one")
    name, claimed = metrics[0] if metrics else ("metrics", MetricRecord())
    examples = _examples(claimed, examples_key)
    return Contents(arrays, examples, _numbers(claimed), one_line(str(name)))


def one_line(text: str) -> str:
    """A client's words, fit for a log: it forges no lines of it."""
    return "".join(c if c.isprintable() else " " for c in text[:120])


def _examples(metrics: MetricRecord, key: str | None) -> float:
    if key is None:
        return 1.0
    claim: Any = metrics.get(key)
    known = isinstance(claim, int | float) and not isinstance(claim, bool)
    if not known or not 0 < claim < 2**63:
        raise Rejected(f"claims {one_line(repr(claim))} {key}")
    return float(claim)


def _numbers(metrics: MetricRecord) -> dict[str, float]:
    """The finite numbers among a client's metrics, by name."""
    named = list(metrics.items())[:_MOST_METRICS]
    return {
        name: float(value)
        for name, value in named
        if len(name) <= 100
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e300
        and math.isfinite(value)
    }

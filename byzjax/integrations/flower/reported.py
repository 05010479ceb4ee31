"""What clients report beside arrays: metrics, of which f liars choose none."""

import collections
import statistics
from collections.abc import Callable
from logging import INFO, WARNING

from flwr.app import MetricRecord, RecordDict
from flwr.supercore import log

from byzjax.integrations.flower.contents import one_line
from byzjax.integrations.flower.rounds import Round

_SHOWN = 3  # Names in a line of the log.
Combine = Callable[[list[RecordDict], str], MetricRecord]


class Screen:
    """The metrics of one round that more than 2 f of its usable replies have.

    Fewer may be f liars and f honest nodes, of whose values either could be the middle.
    Of more than 2 f values the f lowest and the f highest are cut to the next: what is
    left lies between values of honest nodes, whatever the liars said.
    """

    def __init__(self, of: Round) -> None:
        self._replies = [reply for _, reply in sorted(of.replies.items())]
        f = of.num_byzantine
        values: dict[str, list[float]] = {}
        for reply in self._replies:
            for name, value in reply.metrics.items():
                values.setdefault(name, []).append(value)
        self.left_out = [
            name
            for name, found in sorted(values.items(), key=lambda x: -len(x[1]))
            if len(found) <= 2 * f
        ]
        self._sorted = {
            name: sorted(found)[f : len(found) - f]
            for name, found in sorted(values.items())
            if len(found) > 2 * f
        }

    def medians(self) -> dict[str, float]:
        """Of each metric the median: it is that of the values that were not cut."""
        return {name: statistics.median(x) for name, x in self._sorted.items()}

    def records(self) -> list[RecordDict]:
        """What an honest client might have sent, for each reply.

        Each has every metric: cut to what lies between honest values, and the median
        where the client sent none. Under the name that most clients gave the record.
        """
        if not self._sorted:
            return []
        names = collections.Counter(reply.record for reply in self._replies)
        ((most, _),) = names.most_common(1)
        middle = self.medians()
        found = []
        for reply in self._replies:
            kept = {
                name: min(max(reply.metrics.get(name, middle[name]), x[0]), x[-1])
                for name, x in self._sorted.items()
            }
            found.append(RecordDict({most: MetricRecord(dict(kept))}))
        return found


def combined(of: Round, by: Combine | None, key: str) -> dict[str, float | int]:
    """A round's metrics: their medians, or what the user's function makes of them.

    The function is the user's own, and what is missing may be a client's doing: where
    it raises the run goes on, with medians.
    """
    screen = Screen(of)
    if screen.left_out:
        shown = ", ".join(repr(one_line(x[:40])) for x in screen.left_out[:_SHOWN])
        more = len(screen.left_out) - _SHOWN
        log(
            INFO,
            "\t> metrics that no more than 2 f = %s replies have are left out: %s%s",
            2 * of.num_byzantine,
            shown,
            f" and {more} more" if more > 0 else "",
        )
    records = screen.records()
    if by is not None and records:
        try:
            return _checked(by(records, key))
        except Exception as error:
            log(
                WARNING,
                "\t> medians stand in for those of %r, which raised %s: %s",
                by,
                type(error).__name__,
                one_line(str(error)),
            )
    return dict(screen.medians())


def _checked(found: object) -> dict:
    if not isinstance(found, MetricRecord):
        raise TypeError(
            "RobustStrategy needs a function of metrics to return a MetricRecord, got "
            f"{type(found).__name__}"
        )
    return dict(found)

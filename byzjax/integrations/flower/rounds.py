"""One round: who was asked, who answered what, and the stack of the usable replies."""

import functools
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from flwr.app import Message

from byzjax.integrations.flower import contents
from byzjax.integrations.flower.model import Model
from byzjax.integrations.flower.npy import Rejected
from byzjax.integrations.flower.programs import rows_kept

_SUPERLINK = 1  # The node id under which the SuperLink reports errors.
_TO_THE_RULE = 0.5  # Grace for the last replies, as a share of the time of the others.
_LEAST_GRACE = 3.0  # Seconds: what Flower's clients take to hand over a reply.
_BUSY = 2.0  # Seconds that the server may take for others before it looks at a reply.


class Budget(NamedTuple):
    """How long a round waits."""

    round_seconds: float
    grace_seconds: float | None


class Rows:
    """Memory for the replies of a round, kept from round to round."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def of(self, rows: int, columns: int) -> np.ndarray:
        """Rows [rows, columns], float32, placed as XLA wants them to read in place."""
        size = rows * columns * 4
        if self._memory.size < size + 64:
            self._memory = np.empty(size + 64, np.uint8)
        first = -self._memory.ctypes.data % 64
        return (
            self._memory[first : first + size].view(np.float32).reshape(rows, columns)
        )


class Reply(NamedTuple):
    """What is kept of a usable reply, beside its row."""

    row: int
    examples: float  # What the client claims; 1 where nobody asked.
    metrics: dict[str, float]
    record: str  # What the client called the record of its metrics.


class Round:
    """Collects the replies of one round.

    Args:
      sent: the messages; their ids are read once replies come in.
      num_byzantine: f.
      enough: replies without which there is no aggregate.
      budget: how long to wait.
      model: what was sent, for a round of training; None for one of evaluation.
      rows: memory for the replies of training.
      examples_key: the metric that has the number of examples, if it counts.
      drawn: of how many nodes those asked are, if some were left to rest.
      refusal: why nobody was asked, though nodes are there.
      doubtful: nodes that were silent or refused lately.
      resting: nodes that rest, and are asked since there is none to spare without them.

    Attributes:
      doubtful: as given.
      num_rows: rows that programs see: who rests is absent, so that f and the number
        of rows go together.
      unreachable: nodes whose replies cannot come any more, as `exchange` knows.
      gone: those of them that were sent to, and left.
      late: nodes whose replies are used, though all but f others were in four graces
        and two seconds before: who is hostile could hold up every round so, where it is
        needed.
      busy: seconds so far in which the server was at replies that came, and waited for
        nobody.
    """

    def __init__(
        self,
        sent: Sequence[Message],
        num_byzantine: int,
        enough: int,
        budget: Budget,
        *,
        model: Model | None = None,
        rows: Rows | None = None,
        examples_key: str | None = None,
        drawn: int = 0,
        refusal: str = "",
        doubtful: frozenset[int] = frozenset(),
        resting: frozenset[int] = frozenset(),
    ) -> None:
        self.sent = sent
        self.refusal = refusal
        self.asked = [message.metadata.dst_node_id for message in sent]
        self._places = {node: place for place, node in enumerate(self.asked)}
        self.num_byzantine = num_byzantine
        self.enough = enough
        self.replies: dict[int, Reply] = {}
        self.rejected: dict[int, str] = {}
        self.strangers = 0
        self.unreachable: frozenset[int] = frozenset()
        self.gone: frozenset[int] = frozenset()
        self._given_up = self._held_up = False
        self._budget = budget
        self.model = model
        self._examples_key = examples_key
        self._free = set(self._places.values())
        self.late: set[int] = set()
        self.busy = 0.0
        self._others_after: float | None = None
        self.begin()
        self.doubtful, self._resting = doubtful, resting
        self._settled_after: float | None = None
        self.num_rows = rows_kept(max(drawn, len(sent)))
        if model is not None and rows is not None:
            self._rows = rows.of(self.num_rows, model.columns)

    def begin(self) -> None:
        """From now on there are so many seconds: to send is not the nodes' time."""
        self._began = time.monotonic()

    @property
    def _missing(self) -> list[int]:
        return [
            node
            for node in self.asked
            if node not in self.replies and node not in self.rejected
        ]

    @property
    def silent(self) -> list[int]:
        """The nodes that did not answer, though they had the time."""
        unheard = self.unheard
        return [node for node in self._missing if node not in unheard]

    @property
    def unheard(self) -> list[int]:
        """The nodes whose replies were not waited for, as they changed nothing."""
        if self._given_up:
            return self._missing
        return [n for n in self._missing if self.has_enough and n in self._resting]

    @property
    def hindering(self) -> list[int]:
        """Of the unheard, for whom all others waited until the round was lost.

        Who is hostile may lose a round at its end, by rubbish or by leaving, lest
        another is silent in it.
        """
        if not self._given_up or not self._few_missing:
            return []
        return [n for n in self._missing if self._held_up or n in self.gone]

    @property
    def _few_missing(self) -> bool:
        """Whether all that is missing may be hostile, with those that sent rubbish.

        More were cut off, or are slow, and honest.
        """
        of_no_use = len(self._missing) + len(self.rejected)
        return of_no_use <= self.num_byzantine

    @property
    def has_enough(self) -> bool:
        """Whether there are replies for an aggregate."""
        return len(self.replies) >= self.enough

    @property
    def is_settled(self) -> bool:
        """Whether only those are out that are not waited for as long as a round lasts.

        There is an aggregate without them, or they were of no use lately: a node that
        is needed would hold up every round, by silence or by coming late. Of these no
        more than f, with those that sent rubbish: others are honest.
        """
        doubted = self._few_missing and self.doubtful.issuperset(self._missing)
        return self.has_enough or doubted

    @property
    def is_lost(self) -> bool:
        """Whether the replies used and those that may still come are too few."""
        gone = self.unreachable - self.replies.keys() - self.rejected.keys()
        out = len(self.asked) - len(self.rejected) - len(gone)
        return out < self.enough

    def give_up(self) -> None:
        """Ends a round that is lost: who has not answered yet is not to blame.

        Unless all but f others had, long before.
        """
        self._given_up = True
        self._held_up = self._seconds_to_be_late() < 0

    def seconds_left_of_round(self) -> float:
        """How long to wait if too few have come."""
        return self._budget.round_seconds - (time.monotonic() - self._began)

    def seconds_left(self) -> float:
        """How long to wait for more; at most 0 if it is over."""
        missing = len(self.asked) - len(self.replies) - len(self.rejected)
        if not missing or self.is_lost:
            return 0.0
        if self.has_enough and self._resting.issuperset(self._missing):
            return 0.0  # These are to spare: their time comes when they have rested.
        left = self.seconds_left_of_round()
        if not self.is_settled:
            return left
        if not self.has_enough:  # As long as who is not doubted yet.
            return min(left, self._seconds_to_be_late())
        passed = self._budget.round_seconds - left
        if self._settled_after is None:
            self._settled_after = passed
        # f of them may be silent on purpose; more than f are probably slow. As long as
        # all but f others took: an accomplice could come late enough to double it.
        after = self._others_after
        grace = self._grace(self._settled_after if after is None else after)
        since = passed - self._settled_after
        return min(left, (grace if self._few_missing else 4 * grace) - since)

    def _grace(self, after: float) -> float:
        """Seconds for who is missing once the others are there, after so many."""
        grace = self._budget.grace_seconds
        return max(_TO_THE_RULE * after, _LEAST_GRACE) if grace is None else grace

    def _note_time(self, node: int) -> None:
        """Of an answer: when all but f have come, and who is needed long after."""
        needed = node in self.replies and len(self.replies) <= self.enough
        if needed and self._seconds_to_be_late() < 0:
            self.late.add(node)
        if self._few_missing and self._others_after is None:
            self._others_after = self._waited

    @property
    def _waited(self) -> float:
        """Seconds since it began that the server was not at replies."""
        return time.monotonic() - self._began - self.busy

    def _seconds_to_be_late(self) -> float:
        """Until all but f others have waited for longer than the slow would take."""
        after = self._others_after
        if after is None:
            return math.inf
        return after + 4 * self._grace(after) + _BUSY - self._waited

    def reopen(self) -> None:
        """Forgets all replies, for a caller that aggregates the same round again."""
        self.replies, self.rejected, self.strangers = {}, {}, 0
        self.unreachable = self.gone = frozenset()
        self._given_up = self._held_up = False
        self.late, self._others_after, self.busy = set(), None, 0.0
        self._free = set(self._places.values())

    def take(self, message: Message) -> None:
        """Screens one reply; nothing in it raises."""
        node = None
        try:
            node = self._sender(message)
            if node is None:
                self.strangers += 1
            elif node in self.replies or node in self.rejected:
                self._withdraw(node)
                raise Rejected("sent two replies")
            else:
                self.replies[node] = self._opened(node, message)
        except Rejected as reason:
            if node is not None:
                self.rejected[node] = str(reason)[:200]
        except Exception as error:  # Whatever a client has thought of.
            if node is None:
                self.strangers += 1
            else:
                self.rejected[node] = f"cannot be read: {type(error).__name__}"
        if node is not None:
            self._note_time(node)

    def places(self) -> tuple[dict[int, int], np.ndarray]:
        """The nodes that count, with their rows in all [num_rows, columns]."""
        return {node: reply.row for node, reply in self.replies.items()}, self._rows

    def stack(self) -> tuple[list[int], np.ndarray]:
        """The nodes that count, and their rows [m, columns] without gaps."""
        m = len(self.replies)
        gaps = sorted(row for row in self._free if row < m)
        for node, reply in sorted(self.replies.items()):
            if reply.row >= m:
                gap = gaps.pop(0)
                self._rows[gap] = self._rows[reply.row]
                self.replies[node] = reply._replace(row=gap)
        self._free = set(range(m, len(self.asked)))
        nodes = sorted(self.replies, key=lambda node: self.replies[node].row)
        return nodes, self._rows[:m]

    def _sender(self, message: Message) -> int | None:
        """The node that a message was sent to; who sent a reply is but a claim."""
        claims = message.metadata
        nodes = self._nodes_by_message.get(claims.reply_to_message_id, [])
        if message.has_error() and claims.src_node_id == _SUPERLINK:
            return nodes[0] if len(nodes) == 1 else None
        return claims.src_node_id if claims.src_node_id in nodes else None

    @functools.cached_property
    def _nodes_by_message(self) -> dict[str, list[int]]:
        """Asked for with the first reply: the grid writes ids when it sends."""
        nodes: dict[str, list[int]] = {}
        for message, node in zip(self.sent, self.asked, strict=True):
            nodes.setdefault(message.metadata.message_id, []).append(node)
        return nodes

    def _withdraw(self, node: int) -> None:
        reply = self.replies.pop(node, None)
        if reply is not None:
            self._free.add(reply.row)

    def _opened(self, node: int, message: Message) -> Reply:
        arrays, examples, metrics, record = contents.opened(message, self._examples_key)
        if self.model is None:
            return Reply(-1, examples, metrics, record)
        if len(arrays) != 1:
            raise Rejected(f"has {len(arrays)} array records, not one")
        # By the place of its node, so that the order of arrival changes no result.
        place = self._places[node]
        row = place if place in self._free else min(self._free)
        self.model.update(arrays[0], self._rows[row])
        self._free.remove(row)
        return Reply(row, examples, metrics, record)

"""What is known of each node: how often it was asked, and what came of it."""

import dataclasses
import random
from collections.abc import Iterable, Mapping
from typing import Any

from byzjax.integrations.flower.rounds import Round

_MOST_NODES = 10_000  # Histories kept; anybody can register nodes without end.
_MOST_REASONS = 16  # Kept of one node, which words some of them itself.
_LONGEST_REST = 8  # Rounds.
_MOST_DOUBT = 256


@dataclasses.dataclass
class NodeHistory:
    """What became of the training messages that were sent to one node.

    **Guarantee.** `asked == accepted + rejected + silent + unheard` after every round.

    Attributes:
      asked: rounds in which it was sent the model.
      accepted: replies of it that could be used.
      rejected: replies that were not used.
      silent: rounds in which nothing came in time.
      unheard: rounds that ended before it answered, as too many others were lost, or
        as it was asked though it rested, and there were enough without it.
      influence: sum over its accepted replies of its share in the aggregate, of which
        there is none in a round that kept the model; divided by `accepted`, its mean
        influence, about 1/m for an honest node if the rule remembers nothing.
      reasons: why replies were rejected → how often.
      resting_until: the last round in which it is not asked, since it was silent; or,
        where none could be spared without it, not waited for.
      doubt: grows by two for a first round in which it was of no use, by four for a
        second, then by eight and so on, to 256 at most; one less for a reply that was
        used. Above zero no round waits for it alone for long.
      useless: rounds in which it was of no use, or held up all others, those of
        evaluation too.

    Example:
      >>> from byzjax.integrations.flower import NodeHistory
      >>> NodeHistory(asked=3, accepted=2, silent=1).accepted
      2
    """

    asked: int = 0
    accepted: int = 0
    rejected: int = 0
    silent: int = 0
    influence: float = 0.0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    resting_until: int = 0
    silences: int = 0  # In a row, when it was to train.
    evaluating_silences: int = 0  # Likewise, when it was to evaluate.
    unheard: int = 0
    doubt: int = 0
    useless: int = 0

    def note_rejected(self, reason: str) -> None:
        """Counts a reply that was not used."""
        self.rejected += 1
        self.silences = 0
        self.note_useless()
        if reason in self.reasons or len(self.reasons) < _MOST_REASONS:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def note_accepted(self, influence: float, *, late: bool = False) -> None:
        """Counts a reply that was used, and for which all others may have waited."""
        self.accepted += 1
        self.silences = 0
        self.influence += influence
        if late:
            self.note_useless()
        else:
            self.doubt = max(self.doubt - 1, 0)

    def note_silence(self, server_round: int, *, evaluating: bool = False) -> None:
        """The node rests: one round after a first silence, then two, four, eight.

        Not counted here, since a node may also be silent when it is to evaluate.
        """
        self.note_useless()
        silences = self.evaluating_silences if evaluating else self.silences
        self.resting_until = server_round + min(2**silences, _LONGEST_REST)
        if evaluating:
            self.evaluating_silences = min(silences + 1, 10)
        else:
            self.silences = min(silences + 1, 10)

    def note_useless(self) -> None:
        """Doubts it more, of whatever kind of round.

        Doubled each time: who is silent now and then, as often as it is forgiven, holds
        up a few rounds and not one in three.
        """
        self.useless += 1
        more = 2 ** min(self.useless, 10)
        self.doubt = min(self.doubt + more, _MOST_DOUBT)


class Nodes:
    """All histories, and who is asked next."""

    def __init__(self) -> None:
        self.histories: dict[int, NodeHistory] = {}

    def of(self, node: int) -> NodeHistory:
        """A node's history, which becomes the youngest."""
        history = self.histories.pop(node, None) or NodeHistory()
        self.histories[node] = history
        while len(self.histories) > _MOST_NODES:
            del self.histories[next(iter(self.histories))]
        return history

    def choose(
        self, connected: Iterable[int], size: int, least: int, server_round: int
    ) -> list[int]:
        """Draws `size` of the nodes, and leaves those to rest that do.

        Where the others are fewer than `least`, resting ones are asked all the same,
        those first whose rest is over first. Drawn before they rest: hostile nodes
        answer in time, and would be a larger share of those awake.

        Args:
          connected: the nodes that are there.
          size: how many to ask.
          least: replies that it takes, and as many more as may fail to come.
          server_round: the round that they are asked in.
        """
        connected = sorted(set(connected))
        drawn = random.sample(connected, min(size, len(connected)))
        awake = [node for node in drawn if self._rest(node) < server_round]
        if len(awake) < least:
            resting = [n for n in drawn if self._rest(n) >= server_round]
            awake += sorted(resting, key=self._rest)[: least - len(awake)]
        return sorted(awake)

    def note_training(
        self, of: Round, influence: Mapping[int, float], server_round: int
    ) -> None:
        """What a round of training made of each node's reply."""
        silent, hindering = set(of.silent), set(of.hindering)
        for node in of.asked:
            history = self.of(node)
            history.asked += 1
            if node in of.replies:
                share = influence.get(node, 0.0)
                history.note_accepted(share, late=node in of.late)
            elif node in of.rejected:
                history.note_rejected(of.rejected[node])
            elif node in silent:
                history.silent += 1
                history.note_silence(server_round)
            else:
                history.unheard += 1
                if node in hindering:
                    history.note_useless()

    def note_evaluation(self, of: Round, server_round: int) -> None:
        """Who was of no use in a round of evaluation."""
        for node in of.silent:
            self.of(node).note_silence(server_round, evaluating=True)
        for node in {*of.replies, *of.rejected}:
            self.of(node).evaluating_silences = 0
        for node in {*of.rejected, *of.late, *of.hindering}:
            self.of(node).note_useless()

    def wake(self) -> None:
        """Rounds are counted from the beginning again: nobody rests."""
        for history in self.histories.values():
            history.resting_until = 0

    def resting(self, nodes: Iterable[int], server_round: int) -> frozenset[int]:
        """Those of these nodes that rest in a round, and were asked all the same."""
        return frozenset(node for node in nodes if self._rest(node) >= server_round)

    def doubtful(self, nodes: Iterable[int]) -> frozenset[int]:
        """Those of these nodes that lately were of no use."""
        known = self.histories
        return frozenset(n for n in nodes if n in known and known[n].doubt > 0)

    def _rest(self, node: int) -> int:
        history = self.histories.get(node)
        return history.resting_until if history else 0

    def saved(self) -> dict[str, Any]:
        """As JSON has it; ids are beyond the integers of some readers."""
        return {str(n): dataclasses.asdict(h) for n, h in self.histories.items()}

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `saved`."""
        self.histories = {int(n): NodeHistory(**h) for n, h in saved.items()}

"""Sends messages and hands on their replies, one by one, while there is time."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from byzjax.integrations.flower.contents import Refusal
from byzjax.integrations.flower.npy import Rejected
from byzjax.integrations.flower.pulling import Limits, Pull
from byzjax.integrations.flower.rounds import Round

_PATIENCE = 2.0  # Seconds that pulls without use, or unusual ones, may hold up others.
_USUAL = 4  # Times as long as most that a pull may take, and no more be unusual.
_GLANCE = 0.05  # Seconds that one more may.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # Seconds between looks for replies.
_TRIES = 3  # Of a pull that fails.
_GONE = 10.0  # Seconds after which a node that left is not expected back.


def send(grid: Grid, messages: Sequence[Message]) -> dict[str, Message]:
    """Sends messages; those that left, by the id that the grid gave them."""
    if not messages:
        return {}
    left = set(grid.push_messages(messages))
    return {
        message.metadata.message_id: message
        for message in messages
        if message.metadata.message_id in left
    }


class Pulls:
    """What rounds leave to the next: pulls that have not ended, and how long most took.

    Attributes:
      hanging: by node. No other is begun beside one that has not ended, so that there
        is one thread a node.
    """

    def __init__(self) -> None:
        self.hanging: dict[int, Pull] = {}
        self._usual: dict[bool, float] = {}  # Of training and of evaluation.

    def patience(self, of: Round) -> float:
        """Seconds that one pull is waited for before the next begins."""
        usual = self._usual.get(of.model is not None, math.inf)
        return min(_PATIENCE, max(_GLANCE, _USUAL * usual))

    def note(self, of: Round, took: list[float]) -> None:
        """How long pulls took that brought a reply: f of more than 2 f tell nothing."""
        if len(took) > 2 * of.num_byzantine:
            self._usual[of.model is not None] = statistics.median(took)

    def forget_ended(self) -> None:
        """Also those of nodes that are never asked again."""
        ended = [node for node, pull in self.hanging.items() if not pull.is_alive()]
        for node in ended:
            del self.hanging[node]


def replies(
    grid: Grid, sent: dict[str, Message], of: Round, limits: Limits, pulls: Pulls
) -> Iterator[Message]:
    """Pulls replies until all are there or the round's time is over.

    Or until too few can still come: those of nodes that left are not counted on.

    Each is looked for once more after those waited for have come, so that a server that
    was busy with these, and not with waiting, does not take the others for silent.

    Each is asked for by itself: if its body ends the pull, that is one reply lost. Who
    it is from and what it answers is written over what it claims. Pulls follow each
    other while they come, so that few bodies are on their way; those that do not come,
    or come far more slowly than most of the round before, have one patience together,
    not each its own, and then run side by side.

    Args:
      grid: where they come in.
      sent: what they answer, by message id.
      of: the round that takes them, which knows how long to wait.
      limits: how large one may be.
      pulls: what earlier rounds left.

    Yields:
      Messages, with an error for those that could not be pulled.
    """
    waiting: dict[str, Pull | None] = dict.fromkeys(sent)
    failures = dict.fromkeys(sent, 0)
    # Not looked for, or not for long, since those waited for were there.
    unseen = set(sent)
    held = 0.0  # Seconds that were waited for pulls that did not end meanwhile.
    pause = _FIRST_PAUSE
    pulls.forget_ended()
    hanging, usual, took = pulls.hanging, pulls.patience(of), []
    membership = _Membership(grid, sent, of)
    membership.look()
    while waiting and not of.is_lost:
        came = False
        for message_id in list(waiting):
            if of.is_lost:
                break
            node = sent[message_id].metadata.dst_node_id
            if node in hanging and hanging[node].is_alive():
                if of.is_settled:
                    unseen.discard(message_id)
                continue
            hanging.pop(node, None)
            left = of.seconds_left()
            if message_id in unseen:  # What is left may be too short to pull it in.
                left = max(left, min(usual, of.seconds_left_of_round()))
            if left <= 0:
                continue
            pull, waited = waiting[message_id], 0.0
            if pull is None:
                pull = waiting[message_id] = Pull(grid, message_id, limits)
                most = max(_GLANCE, min(usual, _PATIENCE - held))
                waited = pull.wait(min(left, most))
                held += waited
            if of.is_settled and (pull.age >= usual or not pull.is_alive()):
                unseen.discard(message_id)
            if pull.is_alive():
                continue
            waiting[message_id] = None
            try:
                reply = _signed(pull.result(), sent[message_id])
            except Rejected as reason:
                reply = _refusal(str(reason), sent[message_id])
            except Exception as error:
                failures[message_id] += 1
                if failures[message_id] < _TRIES:
                    continue
                reason = f"cannot be pulled: {type(error).__name__}"
                reply = _refusal(reason, sent[message_id])
            else:
                held -= waited
            if reply is None:
                continue
            came = True
            of.busy += waited
            took.append(pull.seconds)
            del waiting[message_id]
            yield reply
        if not of.has_enough:
            membership.look()
        left = of.seconds_left()
        if left <= 0:
            if of.is_lost:
                break
            if of.seconds_left_of_round() > 0 and unseen & waiting.keys():
                time.sleep(_GLANCE)
                continue
            break
        pause = _FIRST_PAUSE if came else min(1.5 * pause, _LONGEST_PAUSE)
        time.sleep(min(pause, left))
    pulls.note(of, took)
    if of.is_lost:
        of.give_up()
    for message_id, pull in waiting.items():
        if pull is not None:
            pull.stop()
            hanging[sent[message_id].metadata.dst_node_id] = pull


class _Membership:
    """Tells a round whose replies cannot come: never sent to, or gone for a while."""

    def __init__(self, grid: Grid, sent: dict[str, Message], of: Round) -> None:
        self._grid, self._of = grid, of
        self._reached = {x.metadata.dst_node_id for x in sent.values()}
        self._last_seen = dict.fromkeys(self._reached, time.monotonic())

    def look(self) -> None:
        """Asks the grid who is there."""
        try:
            here = set(self._grid.get_node_ids())
        except Exception:  # No news; the pulls go on.
            return
        now = time.monotonic()
        self._last_seen |= dict.fromkeys(here & self._reached, now)
        there = {n for n, seen in self._last_seen.items() if now - seen < _GONE}
        self._of.unreachable = frozenset(self._of.asked) - there
        self._of.gone = self._of.unreachable & self._reached


def _signed(found: list[Message], sent: Message) -> Message | None:
    """The reply, if there is one, under the name of the node that was asked."""
    message_id = sent.metadata.message_id
    if not all(isinstance(message, Message) for message in found):
        raise Rejected("is no message")
    if len(found) > 1:
        found = [x for x in found if x.metadata.reply_to_message_id == message_id]
        if len(found) != 1:
            raise Rejected("has several messages for one")
    if not found:
        return None
    claims = found[0].metadata.__dict__
    claims["_src_node_id"] = sent.metadata.dst_node_id
    claims["_reply_to_message_id"] = message_id
    return found[0]


def _refusal(reason: str, sent: Message) -> Message:
    return Message(Refusal(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=sent)

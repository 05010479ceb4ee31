"""Who is asked what, and what comes back: the rounds of one run."""

import time
from collections.abc import Callable, Iterable, Iterator
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from byzjax.integrations.flower import exchange, verdicts
from byzjax.integrations.flower.nodes import Nodes
from byzjax.integrations.flower.pulling import Limits
from byzjax.integrations.flower.rounds import Round
from byzjax.integrations.flower.settings import NAME, Quorum, Settings

_RECONNECT = 10.0  # Seconds that nodes which were here once are waited for.
Needs = Callable[[int, int], Quorum]  # f, nodes → what their round takes.


class Conversation:
    """The messages of a run, by kind: "train" and "evaluate"."""

    def __init__(self, settings: Settings, nodes: Nodes) -> None:
        self.timeout = 3600.0
        self.connected: list[int] = []
        self._settings, self._nodes = settings, nodes
        self._rounds: dict[str, Round] = {}
        self._met = False
        self._expected: int | None = None
        self._held_up: int | None = None
        self._pulls = exchange.Pulls()
        self.most_drawn: dict[str, int] = {}  # By kind.

    def messages(
        self,
        kind: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        needs: Needs,
    ) -> tuple[list[Message], Quorum]:
        """Draws the nodes of a round and makes their messages.

        No message if they are too few: they would work for nothing.
        """
        settings = self._settings
        if settings.wanted(kind, 0)[0] == 0:
            return [], Quorum(0, None)
        self._meet(kind, server_round, grid, needs)
        size = self._size(kind)
        # Of those drawn before some are left to rest: hostile nodes answer in time, and
        # among fewer they would be a larger share.
        f = self._f(kind, size, needs)
        least = needs(f, size).least
        # f of them may be silent: with those who rest as many may be missing as answer.
        least = size if least is None else min(least + f, size)
        self.most_drawn[kind] = max(size, self.most_drawn.get(kind, 0))
        asked = self._nodes.choose(self.connected, size, least, server_round)
        quorum = needs(f, len(asked))._replace(
            drawn=size,
            doubtful=self._nodes.doubtful(asked),
            resting=self._nodes.resting(asked, server_round),
        )
        if quorum.least is None:
            log(WARNING, "%s: %s nodes are too few: %s", kind, len(asked), quorum.why)
            return [], quorum
        log(INFO, "%s: asking %s of %s nodes", kind, len(asked), len(self.connected))
        spare = len(asked) - quorum.least
        if spare < quorum.num_byzantine:
            log(
                WARNING,
                "%s: this takes %s replies of %s nodes: the hostile, num_byzantine=%s, "
                "can end it by silence, after round_seconds=%s",
                kind,
                quorum.least,
                len(asked),
                quorum.num_byzantine,
                settings.budget(self.timeout).round_seconds,
            )
        config["server-round"] = server_round
        content = RecordDict(
            {settings.arrayrecord_key: arrays, settings.configrecord_key: config}
        )
        return [Message(content, node, kind) for node in asked], quorum

    def begin(self, kind: str, current: Round) -> None:
        """The round whose replies are taken from now on."""
        self._rounds[kind] = current

    def replies(
        self, kind: str, grid: Grid, messages: list[Message], arrays: ArrayRecord
    ) -> Iterator[Message]:
        """Sends the messages; the replies, which are to hold no more than `arrays`."""
        sent = exchange.send(grid, messages)
        self._rounds[kind].begin()
        return exchange.replies(
            grid, sent, self._rounds[kind], Limits(arrays), self._pulls
        )

    def collected(
        self, kind: str, server_round: int, replies: Iterable[Message]
    ) -> Round:
        """The round, once it has taken these replies."""
        if kind not in self._rounds:
            raise RuntimeError(
                f"{NAME} needs configure_{kind} before aggregate_{kind}: replies are "
                "compared with what was sent"
            )
        current = self._rounds[kind]
        current.reopen()
        for message in replies:
            current.take(message)
        if current.sent:
            verdicts.log_replies(kind, current, server_round)
        return current

    def _f(self, kind: str, size: int, needs: Needs) -> int:
        """How many of those drawn may be Byzantine: a share is rounded up.

        But down where the rule serves them only so: one node that comes is no reason to
        stop. Then of as many as were ever drawn: those that were lost may have been
        honest, and there are as many hostile ones as before. Never to none.
        """
        most = self._settings.f(size)[1]
        drawn = max(size, self.most_drawn.get(kind, 0))
        least = self._settings.f(drawn)[0]
        served = least > 0 and needs(least, size).least is not None
        return least if served and needs(most, size).least is None else most

    def _size(self, kind: str) -> int:
        """How many of those connected to ask."""
        here = len(self.connected)
        return min(self._settings.wanted(kind, here)[0], here)

    def _meet(self, kind: str, server_round: int, grid: Grid, needs: Needs) -> None:
        """Looks who is connected; waits for enough of them, but not for ever.

        The nodes that the user asked for are waited for as long as a round lasts, until
        they were here once. Then those that left hold up one round, and for seconds.
        Where too few are left for an aggregate, so does each round, once: it is lost
        without them, and waiting longer would leave the run to who stays away.
        """
        began = time.monotonic()
        round_seconds = self._settings.budget(self.timeout).round_seconds
        _, wanted = self._settings.wanted(kind, 0)
        least = wanted if self._expected is None else min(wanted, self._expected)
        while True:
            self.connected = list(grid.get_node_ids())
            here = len(self.connected)
            size = self._size(kind)
            f = self._f(kind, size, needs)
            too_few = not here or needs(f, size).least is None
            if here >= least and not too_few:
                break
            seconds = round_seconds
            if self._met or here >= least:
                seconds = min(seconds, _RECONNECT)
            if kind == MessageType.EVALUATE and self._held_up == server_round:
                seconds = 0.0  # The round of training waited for them.
            elif kind != MessageType.EVALUATE:
                self._held_up = server_round
            left = seconds - (time.monotonic() - began)
            if left <= 0:
                self._expected = min(least, here)
                break
            log(INFO, "Waiting for nodes: %s of %s are here", here, least)
            time.sleep(min(1.0, left))
        self._met = True

"""Who is asked what, and what comes back: the rounds of one run."""

import time
from collections.abc import Iterable, Iterator
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from byzjax.integrations.flower import exchange, verdicts
from byzjax.integrations.flower.nodes import Nodes
from byzjax.integrations.flower.pulling import Limits
from byzjax.integrations.flower.rounds import Round
from byzjax.integrations.flower.settings import NAME, Settings

_RECONNECT = 10.0  # Seconds that nodes which were here once are waited for.


class Conversation:
    """The messages of a run, by kind: "train" and "evaluate"."""

    def __init__(self, settings: Settings, nodes: Nodes) -> None:
        self.timeout = 3600.0
        self.connected: list[int] = []
        self._settings, self._nodes = settings, nodes
        self._rounds: dict[str, Round] = {}
        self._met = False
        self._expected: int | None = None

    def messages(
        self,
        kind: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """Draws the nodes of a round and makes their messages."""
        settings = self._settings
        size, least = settings.wanted(kind, 0)
        if size == 0:
            return []
        self._meet(grid, least)
        size, _ = settings.wanted(kind, len(self.connected))
        least = 2 * settings.f(size) + 1
        asked = self._nodes.choose(self.connected, size, least, server_round)
        log(INFO, "%s: asking %s of %s nodes", kind, len(asked), len(self.connected))
        config["server-round"] = server_round
        content = RecordDict(
            {settings.arrayrecord_key: arrays, settings.configrecord_key: config}
        )
        return [Message(content, node, kind) for node in asked]

    def begin(self, kind: str, current: Round) -> None:
        """The round whose replies are taken from now on."""
        self._rounds[kind] = current

    def replies(
        self, kind: str, grid: Grid, messages: list[Message], arrays: ArrayRecord
    ) -> Iterator[Message]:
        """Sends the messages; the replies, which are to hold no more than `arrays`."""
        size = sum(len(array.data) for array in arrays.values())
        sent = exchange.send(grid, messages)
        limits = Limits(size, len(arrays))
        return exchange.replies(grid, sent, self._rounds[kind], limits)

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

    def resume(self) -> None:
        """Goes on with nodes that were here before."""
        self._met = True

    def _meet(self, grid: Grid, least: int) -> None:
        """Looks who is connected; waits for enough of them, but not for ever.

        The nodes that the user asked for are waited for as long as a round lasts, until
        they were here once. Then those that left hold up one round, and for seconds,
        unless too few are left to outvote f: without these a round is lost anyway.
        """
        began = time.monotonic()
        round_seconds = self._settings.budget(self.timeout).round_seconds
        if self._expected is not None:
            least = min(least, self._expected)
        enough = 2 * self._settings.f(least) + 1
        needed = min(least, enough) if self._met else least
        while True:
            self.connected = list(grid.get_node_ids())
            here = len(self.connected)
            if here >= max(least, enough):
                break
            seconds = round_seconds
            if here >= needed:
                seconds = min(seconds, _RECONNECT)
            left = seconds - (time.monotonic() - began)
            if left <= 0:
                self._expected = max(here, needed)
                break
            log(INFO, "Waiting for nodes: %s of %s are here", here, least)
            time.sleep(min(1.0, left))
        self._met = True

"""One reply from the grid, screened before it is inflated where that is possible.

Flower hands out replies already inflated: whoever sends a body that cannot be, or one
small chunk named a million times, ends the server inside the grid. In a deployment the
parts of a reply are pulled here one by one, weighed, and only then put together.
"""

import json
import re
import threading
import time
from collections.abc import Iterator

import httpx
from flwr.app import ArrayRecord, Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.superlink.grid.http_grid import HttpGrid

from byzjax.integrations.flower.npy import Rejected

_CHUNK = b"ArrayChunk "  # How a part that holds numbers begins.
_CHUNK_HEAD = re.compile(rb"ArrayChunk  \d{1,20}\x00")  # All of it: it names none.
# What each kind of part may have below it. Flower itself takes an array in the place of
# a chunk as well: a few of them in each other, 250 bytes each, fill any memory.
_BELOW = {
    "Message": {"RecordDict"},
    "RecordDict": {"ArrayRecord", "MetricRecord", "ConfigRecord"},
    "ArrayRecord": {"Array"},
    "Array": {"ArrayChunk"},
    "ArrayChunk": set(),
    "MetricRecord": set(),
    "ConfigRecord": set(),
}
_OTHERS = 2**20  # Bytes of what a reply has beside arrays: metrics, configuration.
_LEAST_CHUNK = 2**16  # Bytes; Flower's own are 5 MiB.
_HEADER = 5120  # Bytes before the numbers of an array: npy's, and what Flower adds.
_ARRAY = 512  # Bytes to describe an array, beside its name and its chunks.
_MENTION = 256  # Bytes to name a part in the one above it: its id, twice, and marks.
_WITH_PARTS = "/pull-object", "/pull-messages"  # Paths of what nodes have put there.
_UPLOAD_PAUSE = 0.5  # Seconds between looks for a part that is still on its way.


class Limits:
    """How large a reply may be: what an honest one can need, from what was sent.

    Args:
      sent: arrays like those of an honest reply.

    Attributes:
      parts: how many it is made of: a chunk or more for each array, and a few.
      metadata: bytes of all parts without numbers: the names of the arrays, lists of
        their chunks, and `_OTHERS` for metrics and configuration.
      bytes: of all parts.
      answer: bytes of one answer of the SuperLink: a part, or the list of them.
    """

    def __init__(self, sent: ArrayRecord) -> None:
        numbers = sum(len(array.data) for array in sent.values())
        chunks = len(sent) + numbers // _LEAST_CHUNK
        # A name of other alphabets is six times as long in JSON.
        names = sum(len(json.dumps(name)) for name in sent)
        self.parts = 64 + len(sent) + chunks
        self.metadata = _OTHERS + names + _ARRAY * len(sent) + _MENTION * chunks
        self.bytes = numbers + _HEADER * len(sent) + self.metadata
        self.answer = self.bytes + _OTHERS + _MENTION * self.parts


class Pull(threading.Thread):
    """A pull of the reply to one message, which may take as long as it wants.

    A thread, so that a body that does not come holds up nobody else's.
    """

    def __init__(self, grid: Grid, message_id: str, limits: Limits) -> None:
        super().__init__(daemon=True, name="pull of a reply")
        self._grid, self._id, self._limits = grid, message_id, limits
        self._stopped = threading.Event()
        self._messages: list[Message] = []
        self._error: Exception | None = None
        self._began = self._ended = 0.0

    def wait(self, seconds: float) -> float:
        """Begins, and waits for the end so long; the seconds that it took."""
        self._began = time.monotonic()
        self.start()
        self.join(seconds)
        return self.age

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def run(self) -> None:
        """Pulls; called by `start`."""
        try:
            if isinstance(self._grid, HttpGrid):
                self._messages = list(self._screened(self._grid))
            else:
                self._messages = list(self._grid.pull_messages([self._id]))
        except Exception as error:
            self._error = error
        except BaseException as error:  # No wish of the user's, who is not in here.
            self._error = Rejected(f"cannot be pulled: {type(error).__name__}")
        self._ended = time.monotonic()
        if self._stopped.is_set():  # Nobody asks for what came too late.
            self._forget()

    @property
    def seconds(self) -> float:
        """How long it took, once it has ended."""
        return self._ended - self._began

    def result(self) -> list[Message]:
        """The messages, most often none or one; raises what the pull raised."""
        if self._error is not None:
            raise self._error
        return self._messages

    def stop(self) -> None:
        """Gives up on parts that are still on their way, and on what has come."""
        self._stopped.set()
        if not self.is_alive():
            self._forget()

    def _forget(self) -> None:
        # An error holds the parts that had come, by the frames that it was raised in.
        self._messages, self._error = [], None

    def _screened(self, grid: HttpGrid) -> Iterator[Message]:
        client = grid._runtime_client
        bound(client._client, self._limits.answer)
        request = PullAppMessagesRequest(message_ids=[self._id])
        found = client.PullMessages(request)
        for envelope, tree in zip(
            found.messages_list, found.message_object_trees, strict=True
        ):
            # The envelope was checked by the SuperLink, what is inside by nobody.
            reply_id = envelope.metadata.message_id
            try:
                if envelope.metadata.reply_to_message_id != self._id:
                    continue
                parts = self._parts(grid, tree)
                weigh(parts, self._limits)
                message = inflate_object_from_contents(reply_id, parts)
            except Rejected:
                raise
            except Exception as error:
                # No second try: the SuperLink hands out a reply once.
                name = type(error).__name__
                raise Rejected(f"cannot be put together: {name}") from error
            finally:
                # Else the SuperLink keeps the parts until the run ends.
                client.ConfirmMessageReceived(
                    ConfirmMessageReceivedRequest(
                        node=grid.node,
                        run_id=grid.run.run_id,
                        message_object_id=reply_id,
                    )
                )
            if not isinstance(message, Message):
                raise Rejected("is no message")
            yield message

    def _parts(self, grid: HttpGrid, tree: ObjectTree) -> dict[str, bytes]:
        pull = make_pull_object_fn_protobuf(
            grid._runtime_client.PullObject, grid.node, grid.run.run_id
        )
        parts: dict[str, bytes] = {}
        size, metadata, limits = 0, 0, self._limits
        for part in parts_of(tree, limits.parts):
            content = self._part(pull, part)
            size += len(content)
            if content.startswith(_CHUNK):
                # Flower would cut a head of commas into a million names first.
                if not _CHUNK_HEAD.match(content):
                    raise Rejected("cannot be put together: a chunk names parts")
            else:
                metadata += len(content)
            if metadata > limits.metadata:
                raise Rejected(f"has more than {limits.metadata} bytes without numbers")
            if size > limits.bytes:
                raise Rejected(f"is larger than {limits.bytes} bytes")
            parts[part] = content
        return parts

    def _part(self, pull, part: str) -> bytes:
        while True:
            try:
                return pull(part)
            except ObjectUnavailableError:
                if self._stopped.wait(_UPLOAD_PAUSE):
                    raise Rejected("was announced, and did not come in time") from None
            except ObjectPullError:
                raise Rejected("was announced, and is not there") from None


def bound(client: httpx.Client, most: int) -> None:
    """Has a client refuse answers with parts of more than so many bytes, unread.

    A part may be as large as Flower lets through, 2 GiB, and would be in memory before
    anybody could weigh it.
    """
    hooks = client.event_hooks["response"]
    others = [hook for hook in hooks if not isinstance(hook, _Bound)]
    hooks[:] = [*others, _Bound(most)]  # At once: pulls run side by side.


class _Bound:
    """A hook of httpx's, which calls it when it knows an answer's head alone."""

    def __init__(self, most: int) -> None:
        self._most = most

    def __call__(self, answer: httpx.Response) -> None:
        size = int(answer.headers.get("content-length", 0))
        if size > self._most and answer.url.path.endswith(_WITH_PARTS):
            raise Rejected(f"has a part of {size} bytes, larger than {self._most}")


def parts_of(tree: ObjectTree, most: int) -> list[str]:
    """The ids of a reply's parts, no more than an honest one has."""
    found: dict[str, None] = {}
    waiting, seen = [tree], 0
    while waiting:
        seen += 1
        if seen > most:
            raise Rejected(f"has more than {most} parts")
        branch = waiting.pop()
        found[branch.object_id] = None
        waiting.extend(branch.children)
    return list(found)


def weigh(parts: dict[str, bytes], limits: Limits) -> None:
    """Raises unless the parts fit when they are put together, each where it belongs."""
    heads = {
        part: get_object_head_values_from_object_content(content)[:2]
        for part, content in parts.items()
    }
    numbers = others = 0
    for part, (kind, children) in heads.items():
        content = parts[part]
        if kind not in _BELOW or not _BELOW[kind].issuperset(
            heads[child][0] for child in children
        ):
            raise Rejected("cannot be put together: a part is not where it belongs")
        if kind in ("MetricRecord", "ConfigRecord"):
            others += len(content)
        if kind == "Array":
            body = json.loads(content[content.index(b"\x00") + 1 :])
            for index in body["arraychunk_ids"]:
                numbers += len(parts[children[index]])
                if numbers > limits.bytes:
                    raise Rejected(
                        f"is larger than {limits.bytes} bytes when put together"
                    )
    if others > _OTHERS:
        raise Rejected(f"has more than {_OTHERS} bytes of metrics and configuration")

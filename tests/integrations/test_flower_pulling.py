"""A reply is weighed part by part before it is put together, as in a deployment."""

import hashlib
import json
import threading
import types
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("flwr")

import httpx
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.superlink.grid.http_grid import HttpGrid

import byzjax
from byzjax.integrations.flower import RobustStrategy
from byzjax.integrations.flower.npy import Rejected
from byzjax.integrations.flower.pulling import Limits, Pull, bound, parts_of, weigh
from tests.integrations import fake_grid
from tests.integrations.fake_grid import arrays, honest, model


class SuperLink:
    """What an HttpGrid asks for parts, of replies that nodes answer with."""

    def __init__(self, nodes):
        self._client = httpx.Client()  # Nothing is sent by it.
        self.grid = fake_grid.FakeGrid(nodes)
        self.parts, self.confirmed, self.nodes_of = {}, [], {}
        self.change = lambda node, parts, tree: (parts, tree)

    def PullMessages(self, request):
        envelopes, trees = [], []
        for message_id in request.message_ids:
            for reply in self.grid.pull_messages([message_id]):
                objects = get_all_nested_objects(reply)
                parts = {name: x.deflate() for name, x in objects.items()}
                tree = get_object_tree(reply)
                node = self.nodes_of[message_id]
                parts, tree = self.change(node, parts, tree)
                self.parts |= parts
                metadata = types.SimpleNamespace(
                    message_id=tree.object_id, reply_to_message_id=message_id
                )
                envelopes.append(types.SimpleNamespace(metadata=metadata))
                trees.append(tree)
        return types.SimpleNamespace(
            messages_list=envelopes, message_object_trees=trees
        )

    def PullObject(self, request):
        content = self.parts.get(request.object_id)
        return types.SimpleNamespace(
            object_found=content is not None,
            object_available=content != b"",
            object_content=content,
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


class Deployed(HttpGrid):
    """Flower's grid of a deployment, over that SuperLink."""

    def __init__(self, superlink):
        super().__init__(token="none")
        self._client = superlink
        self._run = types.SimpleNamespace(run_id=1)

    @property
    def run(self):
        return self._run

    def get_node_ids(self):
        return self._client.grid.get_node_ids()

    def push_messages(self, messages):
        ids = self._client.grid.push_messages(messages)
        nodes = [message.metadata.dst_node_id for message in messages]
        self._client.nodes_of = dict(zip(ids, nodes, strict=True))
        return ids


BAD = 5


def run(change, **options):
    superlink = SuperLink(dict.fromkeys(range(1, 6), honest))
    superlink.change = lambda node, *x: change(*x) if node == BAD else x
    # Long enough for a machine that is busy; nobody waits when all are in.
    options = {"grace_seconds": 10.0, "fraction_evaluate": 0.0, **options}
    robust = RobustStrategy(byzjax.median(), num_byzantine=1, **options)
    start = model()
    result = robust.start(Deployed(superlink), start, 1, timeout=30)
    moved = arrays(result.arrays)["big"] - arrays(start)["big"]
    np.testing.assert_allclose(moved, 1, atol=0.3)
    return result.train_metrics_clientapp[1], robust.histories[BAD], superlink


def of_kind(parts, kind):
    return next(n for n, x in parts.items() if x.startswith(kind.encode() + b" "))


def with_part(kind, make):
    """Another content of the first part of a kind, under the name that it had."""

    def change(parts, tree):
        name = of_kind(parts, kind)
        return {**parts, name: make(parts[name])}, tree

    return change


def repeated(content):
    """An array whose one chunk is named half a million times."""
    head, _, body = content.partition(b"\0")
    about = json.loads(body)
    about["arraychunk_ids"] = [0] * 300_000
    body = json.dumps(about, separators=(",", ":")).encode()
    kind, children, _ = head.decode().split(" ")
    return f"{kind} {children} {len(body)}".encode() + b"\0" + body


def part(kind, children, body):
    """An object as Flower deflates it: its id, its content."""
    body = json.dumps(body, separators=(",", ":")).encode()
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


def nested(parts, tree):
    """An array of arrays of arrays: of 250 bytes each, and a terabyte put together."""
    below, added = of_kind(parts, "ArrayChunk"), {}
    about = {"dtype": "float32", "shape": [50], "stype": "numpy.ndarray"}
    for times in (100, 10_000, 10_000):
        below, content = part(
            "Array", [below], {**about, "arraychunk_ids": [0] * times}
        )
        added[below] = content
    changed, tree = with_part(
        "ArrayRecord", lambda x: part("ArrayRecord", [below], {"big": below})[1]
    )(parts, tree)
    return changed | added, of_all(changed | added, tree)


def of_all(parts, tree):
    leaves = [ObjectTree(object_id=n) for n in parts if n != tree.object_id]
    return ObjectTree(object_id=tree.object_id, children=leaves)


def with_records(parts, tree):
    """Fifty records of metrics, 40 kB each: many times that as Python's numbers."""
    added = dict(part("MetricRecord", [], {str(i): [0.5] * 10_000}) for i in range(50))
    changed, tree = with_part(
        "RecordDict",
        lambda x: part("RecordDict", list(added), {n: n for n in added})[1],
    )(parts, tree)
    return changed | added, of_all(changed | added, tree)


def test_honest_replies_come_through():
    metrics, history, superlink = run(lambda parts, tree: (parts, tree))
    assert metrics["accepted"] == 5 and history.accepted == 1
    assert len(superlink.confirmed) == 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_part("Array", repeated), "bytes when put together"),
        (with_part("ArrayChunk", lambda x: x + bytes(10**8)), "is larger than"),
        (nested, "not where it belongs"),
        (with_records, "bytes without numbers"),
        (with_part("MetricRecord", lambda x: x + bytes(2**21)), "without numbers"),
        (with_part("MetricRecord", lambda x: x[:-3]), "cannot be put together"),
        (with_part("RecordDict", lambda x: x[:20] + b"\0garbage"), "cannot be put"),
        (with_part("ArrayRecord", lambda x: b"ArrayRecord  2\0[["), "cannot be put"),
        (with_part("Message", lambda x: b"Message  0\0"), "cannot be put together"),
        (with_part("Array", lambda x: b"Array  2\0{}"), "cannot be put together"),
        (with_part("Array", lambda x: b"no head"), "cannot be put together"),
        (
            with_part("ArrayChunk", lambda x: b"ArrayChunk " + b"," * 999 + b" 0\0"),
            "a chunk names parts",
        ),
        (with_part("Array", lambda x: b"Unknown  0\0"), "cannot be put together"),
        (with_part("Message", lambda x: b"RecordDict  2\0{}"), "is no message"),
        (
            with_part("Array", lambda x: b"Array  9999\0" + b"[" * 9999),
            "cannot be put together",
        ),
        (
            lambda parts, tree: (
                parts,
                ObjectTree(object_id=tree.object_id, children=[tree] * 2000),
            ),
            "has more than",
        ),
        (
            lambda parts, tree: (
                {k: v for k, v in parts.items() if k != of_kind(parts, "Array")},
                tree,
            ),
            "is not there",
        ),
    ],
)
def test_bodies_that_are_not_put_together(change, reason):
    metrics, history, superlink = run(change)
    assert metrics["accepted"] == 4 and metrics[f"rejected.{BAD}"] == 1
    assert reason in next(iter(history.reasons))
    # The SuperLink need not keep it, and no more is read than it may have.
    assert len(superlink.confirmed) == 5


def test_parts_that_never_come_are_not_waited_for():
    change = with_part("ArrayChunk", lambda x: b"")
    # A part of one reply only: equal chunks share a name.
    metrics, history, _ = run(change, grace_seconds=0.3, round_seconds=20.0)
    assert metrics["accepted"] == 4 and history.silent == 1
    assert not [t for t in threading.enumerate() if t.is_alive() and _stuck(t)]


def _stuck(thread):
    if isinstance(thread, Pull):
        thread.join(5)
        return thread.is_alive()
    return False


def test_parts_are_counted_once():
    leaf = ObjectTree(object_id="b")
    tree = ObjectTree(object_id="a", children=[leaf, leaf])
    assert sorted(parts_of(tree, 3)) == ["a", "b"]
    with pytest.raises(Rejected, match="more than 2 parts"):
        parts_of(tree, 2)


CHUNKS = {"Flower's": 5 * 2**20, "the smallest": 2**16}


def chunked(size, record):
    """An honest reply in parts, by id, and their tree, in chunks of a size."""
    with mock.patch("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", size):
        content = RecordDict({"arrays": record, "metrics": MetricRecord({"loss": 1.0})})
        reply = Message(content, 1, "train")
        objects = get_all_nested_objects(reply)
        parts = {name: x.deflate() for name, x in objects.items()}
        return parts, get_object_tree(reply)


@pytest.mark.parametrize("size", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(
    "record",
    [
        {"w": np.arange(3 * 10**6, dtype=np.float32)},
        {f"model.layers.{i}.attention": np.float32([i]) for i in range(8000)},
        {f"слой.{i}" * 20: np.float32([i]) for i in range(3000)},
        {"": np.zeros(0, np.float32)},
        {},
    ],
    ids=["one large", "many", "long names of another alphabet", "empty", "none"],
)
def test_limits_let_any_honest_reply_through(record, size):
    record = ArrayRecord({name: Array(value) for name, value in record.items()})
    limits = Limits(record)
    parts, tree = chunked(size, record)
    weigh(parts, limits)
    assert set(parts_of(tree, limits.parts)) == set(parts)
    assert sum(map(len, parts.values())) <= limits.bytes
    without = [x for x in parts.values() if not x.startswith(b"ArrayChunk ")]
    assert sum(map(len, without)) <= limits.metadata


def test_an_array_may_have_as_many_chunks_as_they_are_small():
    """4 GB in chunks of 64 KiB are named in 9 MB, of which no part is numbers."""
    array = mock.Mock(data=mock.MagicMock(__len__=lambda _: 2**32))
    limits = Limits({"w": array})
    chunks = 2**16
    # As Flower writes an Array: ids of 64 digits, and the place of each.
    named = len(",".join(["0" * 64] * chunks)) + len(json.dumps(list(range(chunks))))
    assert named < limits.metadata and chunks < limits.parts


def test_metrics_take_no_more_where_models_are_large():
    names = map(str, range(3000))
    limits = Limits(ArrayRecord({n: Array(np.zeros(1, np.float32)) for n in names}))
    parts = dict(part("MetricRecord", [], {str(i): [0.5] * 10_000}) for i in range(30))
    assert sum(map(len, parts.values())) < limits.metadata
    with pytest.raises(Rejected, match="bytes of metrics and configuration"):
        weigh(parts, limits)


def test_a_model_of_many_arrays_is_trained():
    """And of long names: more than a MiB of them."""
    names = [f"{i}.{'x' * 4000}" for i in range(300)]
    start = ArrayRecord({name: Array(np.zeros(1, np.float32)) for name in names})
    superlink = SuperLink(dict.fromkeys(range(1, 4), honest))
    robust = RobustStrategy(byzjax.median(), num_byzantine=1, fraction_evaluate=0.0)
    result = robust.start(Deployed(superlink), start, 1, timeout=300)
    assert result.train_metrics_clientapp[1]["accepted"] == 3


@pytest.mark.parametrize("path", ["/v1/runtime/pull-object", "/v1/runtime/get-nodes"])
def test_a_part_that_is_too_large_is_not_read(path):
    read = []

    def body():
        for _ in range(4):
            read.append(2**20)
            yield bytes(2**20)

    def answer(request):
        return httpx.Response(
            200, headers={"content-length": str(2**22)}, content=body()
        )

    client = httpx.Client(transport=httpx.MockTransport(answer))
    for most in (10, 2**20):  # Of a model and then of another: the last one counts.
        bound(client, most)
    assert len(client.event_hooks["response"]) == 1
    if path.endswith("get-nodes"):
        client.post("http://superlink" + path)
        assert len(read) == 4
        return
    with pytest.raises(Rejected, match="has a part of 4194304 bytes, larger than 1048"):
        client.post("http://superlink" + path)
    assert not read
    bound(client, 2**22)
    assert len(client.post("http://superlink" + path).content) == 2**22

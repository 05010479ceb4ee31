"""A network of Flower's without a network: nodes are functions, and may be hostile."""

import itertools
import time
from unittest import mock

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

import byzjax
from byzjax.integrations.flower import RobustStrategy

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

SHAPES = {"w": (3, 4), "b": (), "big": (50,)}


def model(seed=0, counter=True, dtype="float32"):
    """A record of floats, and of an integer counter as PyTorch's models have one."""
    draws = np.random.default_rng(seed)
    record = ArrayRecord()
    for name, shape in SHAPES.items():
        record[name] = Array(np.asarray(draws.normal(size=shape)).astype(dtype))
    if counter:
        record["count"] = Array(np.asarray(7, np.int64))
    return record


def arrays(record):
    return {name: array.numpy() for name, array in record.items()}


def sent_model(message):
    return message.content["arrays"]


def moved(record, by, noise=0.0, seed=0):
    """The record with `by` added to each float, as an honest client returns it."""
    draws = np.random.default_rng(seed)
    new = ArrayRecord()
    for name, value in arrays(record).items():
        if value.dtype.kind in "iu":
            new[name] = Array(np.asarray(value + 1, value.dtype))
            continue
        change = by + noise * draws.normal(size=value.shape)
        new[name] = Array(np.asarray(value + change).astype(value.dtype))
    return new


def reply(message, record, metrics=None):
    metrics = {"num-examples": 10, "loss": 1.0} if metrics is None else metrics
    content = RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


def honest(message, grid):
    """Moves the model by 1, more or less."""
    if message.metadata.message_type == "evaluate":
        content = RecordDict({"metrics": MetricRecord({"accuracy": 0.9})})
        return Message(content, reply_to=message)
    seed = message.metadata.dst_node_id % 1000
    return reply(message, moved(sent_model(message), 1.0, 0.1, seed))


def silent(message, grid):
    return None


def lost(message, grid):
    """An error in the place of a reply."""
    return Message(Error(2, "lost"), reply_to=message)


def late(seconds, answer=honest, kind="train"):
    """Answers so many seconds after it was first asked."""
    first = {}

    def answering(message, grid):
        if message.metadata.message_type != kind:
            return honest(message, grid)
        asked = first.setdefault(message.metadata.message_id, time.monotonic())
        passed = time.monotonic() - asked > seconds
        return answer(message, grid) if passed else None

    return answering


def strategy(**options):
    """A median that bears one, and trains only."""
    options = {"num_byzantine": 1, "fraction_evaluate": 0.0, **options}
    return RobustStrategy(byzjax.median(), **options)


class FakeGrid(Grid):
    """Nodes: id → function of a message and the grid → message, list, None, or raises.

    A reply is made when it is pulled; `pulled` counts the pulls of each node.
    """

    def __init__(self, nodes):
        self.nodes = dict(nodes)
        self.asked, self.pulled, self.messages = [], {}, {}
        self._ids = itertools.count()

    # What a strategy never asks a grid for: it is an error of the test if it does.
    set_run = create_message = mock.Mock(side_effect=AssertionError)
    run = property(set_run)

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message_id = f"message {next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.messages[message_id] = message
            self.asked.append(message.metadata.dst_node_id)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids):
        found = []
        for message_id in message_ids:
            if message_id not in self.messages:
                continue
            message = self.messages[message_id]
            node = message.metadata.dst_node_id
            self.pulled[node] = self.pulled.get(node, 0) + 1
            answer = self.nodes[node](message, self)
            if answer is None:
                continue
            del self.messages[message_id]
            found += answer if isinstance(answer, list) else [answer]
        return found

    def send_and_receive(self, messages, *, timeout=None):
        """Flower's own way: everything at once."""
        return self.pull_messages(self.push_messages(messages))

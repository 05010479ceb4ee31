"""Who is asked, and who is not waited for: silence, rests, lost nodes."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Message, RecordDict

import byzjax
from byzjax.integrations.flower import RobustStrategy, conversation, exchange, rounds
from byzjax.integrations.flower.nodes import Nodes
from tests.integrations.fake_grid import (
    FakeGrid,
    arrays,
    honest,
    lost,
    model,
    silent,
    strategy,
)


@pytest.fixture
def never_busy(monkeypatch):
    """Rounds of a second, which are all that a server has for others' replies."""
    monkeypatch.setattr(rounds, "_BUSY", 0.05)


def test_a_silent_node_costs_a_grace_and_then_rests():
    grid = FakeGrid({1: honest, 2: honest, 3: honest, 4: honest, 5: silent})
    robust = strategy(grace_seconds=0.3)
    start = time.monotonic()
    result = robust.start(grid, model(), num_rounds=8, timeout=60)
    assert time.monotonic() - start < 15
    asked = [5 in metrics_of_asked(m) for m in result.train_metrics_clientapp.values()]
    # It rests for one round, then for two, then for four.
    assert asked == [True, False, True, False, False, True, False, False]
    history = robust.histories[5]
    assert (history.asked, history.silent, history.accepted) == (3, 3, 0)
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["model-kept"] == 0 and metrics["accepted"] == 4


def metrics_of_asked(metrics):
    return {int(key.split(".")[1]) for key in metrics if "." in key}


def test_a_node_that_comes_back_is_used_again():
    present = threading.Event()

    def sometimes(message, grid):
        return honest(message, grid) if present.is_set() else None

    grid = FakeGrid({1: honest, 2: honest, 3: honest, 4: sometimes})
    robust = strategy(grace_seconds=0.1)
    robust.start(grid, model(), num_rounds=1, timeout=60)
    present.set()
    robust.start(grid, model(), num_rounds=6, timeout=60)
    assert robust.histories[4].accepted >= 3


def test_nodes_that_rest_are_asked_when_there_are_too_few_others():
    nodes = Nodes()
    for node in (1, 2, 3):
        nodes.of(node).note_silence(1)
    nodes.of(3).resting_until = 9
    assert nodes.choose([1, 2, 3, 4], 4, 3, 2) == [1, 2, 4]
    assert nodes.choose([1, 2, 3, 4], 4, 4, 2) == [1, 2, 3, 4]
    assert nodes.choose([1, 2, 3, 4], 4, 1, 2) == [4]
    assert nodes.choose([1, 2, 3, 4], 4, 1, 3) == [1, 2, 4]
    assert nodes.choose([], 4, 1, 3) == []


def test_more_silent_nodes_than_f_cost_a_longer_grace():
    grid = FakeGrid({1: honest, 2: honest, 3: honest, 4: silent, 5: silent})
    start = time.monotonic()
    result = strategy(grace_seconds=0.3).start(grid, model(), 1, timeout=60)
    assert 1.0 < time.monotonic() - start < 8
    assert result.train_metrics_clientapp[1]["model-kept"] == 0


def test_too_few_replies_keep_the_model_after_the_time_of_the_round():
    """These may still answer: the round is not lost before."""
    grid = FakeGrid({1: honest, 2: honest, 3: silent, 4: silent, 5: silent})
    start, began = model(), time.monotonic()
    result = strategy(round_seconds=1.0).start(grid, start, 1)
    assert 0.9 < time.monotonic() - began < 8
    metrics = result.train_metrics_clientapp[1]
    assert metrics["model-kept"] == 1 and metrics["silent"] == 3
    np.testing.assert_array_equal(arrays(result.arrays)["big"], arrays(start)["big"])


@pytest.mark.usefixtures("never_busy")
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_silent_node_that_is_needed_holds_up_one_round(kind):
    """Afterwards it is asked, as there are too few others, but not waited for long."""

    def mute(message, grid):
        silently = message.metadata.message_type == kind
        return (silent if silently else honest)(message, grid)

    grid = FakeGrid({1: honest, 2: honest, 3: mute})
    robust = strategy(
        round_seconds=3.0, grace_seconds=0.02, fraction_evaluate=float(kind != "train")
    )
    began = time.monotonic()
    result = robust.start(grid, model(), 5)
    assert 3 <= time.monotonic() - began < 6
    if kind == "train":
        for found in result.train_metrics_clientapp.values():
            assert found["silent"] == found["silent.3"] == 1
        assert robust.histories[3].silent == 5
    # It comes back as soon as it answers.
    grid.nodes[3] = honest
    metrics = robust.start(grid, model(), 1).train_metrics_clientapp[1]
    assert (metrics["accepted"], metrics["model-kept"]) == (3, 0)


def number(message):
    return message.content["config"]["server-round"]


@pytest.mark.usefixtures("never_busy")
@pytest.mark.parametrize(
    "nodes, f",
    [
        ((1, 2, 3, "even", "odd"), 2),
        ((1, 2, "odd"), 1),
        ((1, 2, 3, 4, "even", "odd"), 2),
        ((1, 2, "late"), 1),
    ],
    ids=str,
)
def test_taking_turns_at_being_of_no_use_holds_up_few_rounds(nodes, f):
    began = {}

    def behave(how):
        def node(message, grid):
            if how == "late":
                key = message.metadata.message_id
                since = began.setdefault(key, time.monotonic())
                out = time.monotonic() - since > 1.0
                return Message(RecordDict(), reply_to=message) if out else None
            mute = number(message) % 2 == (how == "odd")
            return None if mute else honest(message, grid)

        return node

    grid = FakeGrid(
        {i: honest if how == i else behave(how) for i, how in enumerate(nodes, 1)}
    )
    robust = strategy(num_byzantine=f, round_seconds=1.5, grace_seconds=0.01)
    start = time.monotonic()
    robust.start(grid, model(), 12)
    assert time.monotonic() - start < 12 * 0.4 + 2 * 1.5
    for history in robust.histories.values():
        parts = history.accepted, history.rejected, history.silent, history.unheard
        assert history.asked == sum(parts) and 0 <= history.doubt <= 256


@pytest.mark.usefixtures("never_busy")
def test_silence_as_often_as_it_is_forgiven_holds_up_few_rounds():
    """One of three nodes in each round, which has answered twice since."""

    def at(turn):
        return lambda message, grid: (
            None if (number(message) + turn) % 3 == 0 else honest(message, grid)
        )

    nodes = {i: at(i) if i <= 3 else honest for i in range(1, 8)}
    robust = strategy(num_byzantine=3, round_seconds=1.0, grace_seconds=0.01)
    start = time.monotonic()
    robust.start(FakeGrid(nodes), model(), 21)
    # Twice each: the second time is not forgiven within two rounds.
    assert time.monotonic() - start < 3 * 2 * 1.0 + 21 * 0.3
    assert all(robust.histories[i].doubt > 100 for i in (1, 2, 3))


def test_resting_nodes_are_asked_where_f_of_the_others_may_be_silent():
    nodes = {1: honest, 2: honest, 3: honest, 4: honest}
    robust = strategy(round_seconds=2.0, grace_seconds=0.02)
    for node in (3, 4):
        robust._nodes.of(node).note_silence(9)  # Rests for ten rounds.
    result = robust.start(FakeGrid(nodes), model(), 1)
    assert result.train_metrics_clientapp[1]["accepted"] == 4


def leaves(message, grid):
    grid.leave(message.metadata.dst_node_id)


class Leaving(FakeGrid):
    """Nodes can go, and then answer nothing."""

    def __init__(self, nodes):
        super().__init__(nodes)
        self.left = set()

    def leave(self, node):
        self.left.add(node)

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.left]


@pytest.mark.parametrize(
    ("rule", "nodes", "silent_at_first"),
    [
        # Three usable replies are needed: of five nodes three fail.
        (byzjax.median(), {1: silent, 2: honest, 3: lost, 4: lost, 5: lost}, [1]),
        (byzjax.median(), {1: silent, 2: silent, 3: lost}, [1, 2]),
        # Bulyan needs 4 f + 3 = 7.
        (byzjax.bulyan(1), dict.fromkeys(range(1, 8), silent) | {3: lost}, [1, 2]),
        (byzjax.median(), {1: silent, 2: honest, 3: leaves}, [1]),
    ],
    ids=["failed", "at 2 f + 1", "the rule's own minimum", "left"],
)
def test_a_round_that_is_lost_ends(rule, nodes, silent_at_first, monkeypatch):
    """And who was still at work is not to blame, nor rests."""
    monkeypatch.setattr(exchange, "_GONE", 0.5)
    grid, start, began = Leaving(nodes), model(), time.monotonic()
    robust = RobustStrategy(rule, num_byzantine=1, fraction_evaluate=0.0)
    result = robust.start(grid, start, 1, timeout=600)
    assert time.monotonic() - began < 20
    metrics = result.train_metrics_clientapp[1]
    assert metrics["model-kept"] == 1 and metrics["silent"] == 0
    np.testing.assert_array_equal(arrays(result.arrays)["big"], arrays(start)["big"])
    for node in silent_at_first:
        history = robust.histories[node]
        assert metrics[f"unheard.{node}"] == 1
        assert (history.asked, history.unheard, history.silent) == (1, 1, 0)
        assert history.resting_until == 0
    for history in robust.histories.values():
        parts = history.accepted, history.rejected, history.silent, history.unheard
        assert history.asked == sum(parts)


def test_an_evaluation_that_is_lost_ends():
    def answer(message, grid):
        evaluating = message.metadata.message_type == "evaluate"
        return silent(message, grid) if evaluating else honest(message, grid)

    def fails(message, grid):
        evaluating = message.metadata.message_type == "evaluate"
        return lost(message, grid) if evaluating else honest(message, grid)

    grid, began = FakeGrid({1: answer, 2: answer, 3: fails}), time.monotonic()
    robust = RobustStrategy(byzjax.median(), num_byzantine=1)
    result = robust.start(grid, model(), 2, timeout=600)
    assert time.monotonic() - began < 20
    # Who was not waited for is asked again in the next round.
    assert result.train_metrics_clientapp[2]["accepted"] == 3
    assert not result.evaluate_metrics_clientapp


def test_a_message_that_cannot_be_sent_is_no_reply_to_wait_for():
    class Losing(FakeGrid):
        def push_messages(self, messages):
            return [None, *super().push_messages(messages)[1:]]

    grid, began = Losing({1: honest, 2: silent, 3: silent}), time.monotonic()
    result = strategy().start(grid, model(), 1, timeout=600)
    assert time.monotonic() - began < 10
    assert result.train_metrics_clientapp[1]["model-kept"] == 1


def test_a_node_that_left_holds_up_rounds_for_seconds(monkeypatch):
    """At 2 f + 1, where all rounds are lost without it; it may come back."""
    monkeypatch.setattr(conversation, "_RECONNECT", 0.4)
    monkeypatch.setattr(exchange, "_GONE", 0.2)
    grid = Leaving({1: honest, 2: honest, 3: leaves})
    began = time.monotonic()
    robust = RobustStrategy(byzjax.median(), num_byzantine=1, min_available_nodes=3)
    result = robust.start(grid, model(), 5, timeout=600)
    assert time.monotonic() - began < 30
    found = result.train_metrics_clientapp
    assert [metrics["model-kept"] for metrics in found.values()] == [1] * 5
    # Those who are there do not work for nothing.
    assert len(grid.asked) == 3
    grid.left.clear()
    grid.nodes[3] = honest
    result = robust.start(grid, model(), 1, timeout=600)
    assert result.train_metrics_clientapp[1]["accepted"] == 3


def test_nodes_that_are_missing_are_waited_for_but_not_for_ever():
    grid = FakeGrid({1: honest})
    start, began = model(), time.monotonic()
    robust = strategy(min_available_nodes=5, round_seconds=1.0)
    result = robust.start(grid, start, 1)
    assert 0.9 < time.monotonic() - began < 5
    assert result.train_metrics_clientapp[1]["model-kept"] == 1


def test_nodes_that_left_are_waited_for_once(monkeypatch):
    monkeypatch.setattr(conversation, "_RECONNECT", 0.5)
    grid = FakeGrid(dict.fromkeys(range(1, 6), honest))

    def leaving(message, grid):
        grid.nodes.pop(5, None)
        return honest(message, grid)

    grid.nodes[1] = leaving
    began = time.monotonic()
    result = strategy(min_available_nodes=5).start(grid, model(), 6)
    assert time.monotonic() - began < 12
    accepted = [m["accepted"] for m in result.train_metrics_clientapp.values()]
    assert accepted[1:] == [4] * 5


def test_no_node_at_all():
    result = strategy(round_seconds=0.5).start(FakeGrid({}), model(), 2)
    assert not result.train_metrics_clientapp
    assert len(result.arrays) == 4


def test_messages_that_cannot_be_sent_are_silence():
    class Losing(FakeGrid):
        def push_messages(self, messages):
            sent = super().push_messages(messages)
            return [None if i == 2 else x for i, x in enumerate(sent)]

    grid = Losing(dict.fromkeys(range(1, 6), honest))
    result = strategy(grace_seconds=0.1).start(grid, model(), 1)
    metrics = result.train_metrics_clientapp[1]
    assert metrics["accepted"] == 4 and metrics["silent.3"] == 1

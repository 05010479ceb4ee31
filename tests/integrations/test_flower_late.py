"""What comes too slowly, or too late: no node holds up every round by what it sends."""

import time

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

import byzjax
from byzjax.integrations.flower import rounds
from byzjax.integrations.flower.nodes import Nodes
from tests.integrations.fake_grid import (
    FakeGrid,
    honest,
    late,
    model,
    moved,
    reply,
    sent_model,
    strategy,
)


def test_bodies_that_come_slowly_have_one_patience_together():
    """All are used: it is no silence. Each took its two seconds in every round."""

    def slowly(message, grid):
        time.sleep(0.9)
        return honest(message, grid)

    nodes = {i: slowly if i > 11 else honest for i in range(1, 17)}
    robust = strategy(num_byzantine=5, grace_seconds=0.2)
    began = time.monotonic()
    robust.start(FakeGrid(nodes), model(), 4)
    assert time.monotonic() - began < 5 * 0.9 + 3 * 3.5  # 18 seconds.
    assert robust.histories[1].accepted == 4


@pytest.mark.parametrize(
    ("rule", "n"), [(byzjax.median(), 3), (byzjax.bulyan(1), 7)], ids=["median", "all"]
)
def test_who_is_needed_and_late_holds_up_one_round(rule, n):
    """Not one in each, a moment before its end; it is waited for as the silent are."""
    robust = byzjax.integrations.flower.RobustStrategy(
        rule,
        num_byzantine=1,
        fraction_evaluate=0.0,
        round_seconds=4,
        grace_seconds=0.1,
    )
    nodes = dict.fromkeys(range(1, n), honest) | {n: late(3)}
    robust.start(FakeGrid(nodes), model(), 5)
    history = robust.histories[n]
    assert (history.accepted, history.silent, history.useless) == (1, 4, 5)


def test_who_is_slower_than_others_but_not_by_far_is_not_doubted():
    robust = strategy(grace_seconds=0.3)
    robust.start(FakeGrid({1: honest, 2: honest, 3: late(0.5)}), model(), 2)
    assert (robust.histories[3].accepted, robust.histories[3].doubt) == (2, 0)


def test_what_is_refused_late_in_evaluation_is_doubted():
    def two_records(message, grid):
        records = {name: MetricRecord({"x": 1.0}) for name in "ab"}
        return Message(RecordDict(records), reply_to=message)

    robust = strategy(fraction_evaluate=1.0, round_seconds=6, grace_seconds=0.1)
    nodes = {1: honest, 2: honest, 3: late(5, two_records, kind="evaluate")}
    began = time.monotonic()
    robust.start(FakeGrid(nodes), model(), 4)
    assert time.monotonic() - began < 15  # 20 seconds.
    assert robust.histories[3].useless == 4


def test_what_came_too_late_is_forgotten():
    """A node a round that leaves: its reply, or what it was of, stayed for ever."""
    record = ArrayRecord({"w": Array(np.zeros(100_000, np.float32))})
    now = [0]

    def leaves(message, grid):
        time.sleep(0.6)
        return reply(message, moved(sent_model(message), 1.0))

    class Churning(FakeGrid):
        def get_node_ids(self):
            return [1, 2, 3, 4, 100 + now[0]]

        def push_messages(self, messages):
            self.nodes[100 + now[0]] = leaves
            return super().push_messages(messages)

    robust = strategy(grace_seconds=0.05, min_train_nodes=4)
    kept = []

    def next_round(server_round, arrays):
        now[0] = server_round
        time.sleep(1)
        pulls = robust._talk._pulls.hanging.values()
        kept.append(sum(len(pull._messages) for pull in pulls))
        assert len(pulls) <= 1

    grid = Churning(dict.fromkeys([1, 2, 3, 4], honest))
    robust.start(grid, record, 4, evaluate_fn=next_round)
    assert not any(kept)


def test_to_send_is_not_the_nodes_time():
    class Slow(FakeGrid):
        def push_messages(self, messages):
            time.sleep(0.6)
            return super().push_messages(messages)

    grid = Slow(dict.fromkeys(range(1, 6), honest))
    result = strategy(round_seconds=0.5).start(grid, model(), 1)
    assert result.train_metrics_clientapp[1]["accepted"] == 5


def test_nodes_are_drawn_before_some_rest():
    """Else those that answer in time, as hostile ones do, are a larger share."""
    nodes = Nodes()
    for node in range(3, 11):
        nodes.of(node).note_silence(1)
    drawn = [nodes.choose(range(1, 11), 5, 1, 2) for _ in range(300)]
    counts = [sum(node in asked for asked in drawn) for node in (1, 2)]
    assert all(100 < count < 200 for count in counts)  # Half of the time, not always.
    assert {node for asked in drawn if len(asked) > 1 for node in asked} <= {1, 2}


@pytest.mark.parametrize("n", range(3, 11))
@pytest.mark.parametrize("share", [0.34, 0.4, 0.45])
def test_a_share_serves_every_number_of_nodes(share, n):
    """Rounded up, 0.4 of 8 were 4, and 9 were needed."""
    grid = FakeGrid(dict.fromkeys(range(1, n + 1), honest))
    result = strategy(num_byzantine=share).start(grid, model(), 1)
    found = result.train_metrics_clientapp[1]
    assert found["model-kept"] == 0
    assert share * n - 1 < found["byzantine-assumed"] < n / 2


def test_histories_are_copies():
    robust = strategy()
    robust.start(FakeGrid(dict.fromkeys([1, 2, 3], honest)), model(), 1)
    robust._nodes.of(1).note_rejected("why")
    robust.histories[1].reasons.clear()
    assert robust.histories[1].reasons == {"why": 1}


@pytest.mark.parametrize(
    ("share", "nodes", "left", "f"), [(0.34, 3, 2, 1), (0.4, 10, 8, 4)]
)
def test_a_share_is_not_rounded_down_when_honest_nodes_are_lost(share, nodes, left, f):
    """One hostile node of three is one of two when another is lost: half the model."""
    lost = []

    class Losing(FakeGrid):
        def get_node_ids(self):
            return [node for node in self.nodes if node not in lost]

    def far(message, grid):
        return reply(message, moved(sent_model(message), 1e6))

    def lose(server_round, arrays):
        if server_round == 1:
            lost.extend(range(1, nodes - left + 1))

    robust = strategy(num_byzantine=share, round_seconds=1, grace_seconds=0.1)
    grid = Losing({i: honest if i <= nodes - f else far for i in range(1, nodes + 1)})
    result = robust.start(grid, model(), 2, evaluate_fn=lose)
    kept = result.train_metrics_clientapp
    assert kept[1]["byzantine-assumed"] == f
    assert [kept[n]["model-kept"] for n in (1, 2)] == [0, 1]


def test_a_share_is_never_rounded_down_to_none():
    """Of two nodes it is less than one, and one of them may be hostile."""
    grid = FakeGrid({1: honest, 2: honest})
    robust = strategy(num_byzantine=0.34, round_seconds=0.2)
    found = robust.start(grid, model(), 1).train_metrics_clientapp
    assert found[1]["model-kept"] == 1


@pytest.mark.parametrize("n, f", [(4, 1), (7, 2)])
def test_honest_nodes_that_were_all_cut_off_are_waited_for_again(n, f):
    """Doubted, they had a grace after the one that answered at once, for ever."""
    slow = late(0.7)

    def once_cut_off(message, grid):
        cut_off = message.content["config"]["server-round"] == 1
        return None if cut_off else slow(message, grid)

    robust = strategy(num_byzantine=f, round_seconds=1.5, grace_seconds=0.1)
    grid = FakeGrid({1: honest} | dict.fromkeys(range(2, n + 1), once_cut_off))
    result = robust.start(grid, model(), 3)
    kept = [found["model-kept"] for found in result.train_metrics_clientapp.values()]
    assert kept == [1, 0, 0]


def test_a_node_that_was_silent_once_is_used_again_where_bodies_are_large():
    """Its turn comes when the grace has passed, with the server at the others."""

    def large(message, grid):
        time.sleep(0.15)
        return honest(message, grid)

    def silent_once(message, grid):
        first = message.content["config"]["server-round"] == 1
        return None if first else large(message, grid)

    robust = strategy(num_byzantine=3, grace_seconds=0.1)
    grid = FakeGrid(dict.fromkeys(range(1, 12), large) | {12: silent_once})
    robust.start(grid, model(), 4)
    history = robust.histories[12]
    assert (history.silent, history.accepted) == (1, history.asked - 1)


def test_who_is_needed_is_not_late_while_the_server_is_at_others():
    def large(message, grid):
        time.sleep(0.3)
        return honest(message, grid)

    robust = strategy(grace_seconds=0.05)
    robust.start(FakeGrid(dict.fromkeys([1, 2, 3], large)), model(), 2)
    assert not any(history.useless for history in robust.histories.values())


def test_who_is_not_needed_is_never_late(monkeypatch):
    monkeypatch.setattr(rounds, "_BUSY", 0.0)
    robust = strategy(grace_seconds=0.0)
    robust.start(FakeGrid(dict.fromkeys(range(1, 6), honest)), model(), 3)
    assert not any(history.useless for history in robust.histories.values())

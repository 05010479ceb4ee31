"""Nodes that lose a round at its end, lest another's silence is seen; spare ones."""

import itertools
import time

import pytest

pytest.importorskip("flwr")

from byzjax.integrations.flower import conversation, exchange, rounds
from byzjax.integrations.flower.nodes import Nodes
from byzjax.integrations.flower.rounds import Budget, Reply, Round
from tests.integrations.fake_grid import (
    FakeGrid,
    honest,
    late,
    lost,
    model,
    silent,
    strategy,
)

SECONDS = 3.0  # Of a round.
BURNT = 1.2  # Seconds after which it is lost.


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rounds, "_BUSY", 0.1)


def silent_in(kind):
    def answer(message, grid):
        if message.metadata.message_type == kind:
            return None
        return honest(message, grid)

    return answer


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("fuses", [1, 2])
def test_rubbish_at_the_end_hides_no_silence(kind, fuses):
    f = fuses + 1
    nodes = dict.fromkeys(range(1, 2 * f + 2), honest)
    burning = late(BURNT, lost, kind)
    nodes |= dict.fromkeys(range(1, fuses + 1), burning) | {f: silent_in(kind)}
    robust = strategy(
        num_byzantine=f,
        round_seconds=SECONDS,
        grace_seconds=0.02,
        fraction_evaluate=float(kind == "evaluate"),
    )
    start = time.monotonic()
    robust.start(FakeGrid(nodes), model(), 8)
    # A round or two until both are known, not each.
    assert time.monotonic() - start < 5 * BURNT
    assert robust.histories[f].doubt > 0


def test_whoever_leaves_before_the_end_was_silent(monkeypatch):
    monkeypatch.setattr(exchange, "_GONE", 0.3)

    class Leaving(FakeGrid):
        asked_at = 0.0

        def push_messages(self, messages):
            self.asked_at = time.monotonic()
            return super().push_messages(messages)

        def get_node_ids(self):
            leaves = 0.2 < time.monotonic() - self.asked_at < 1.5
            return [1, 2] if leaves else [1, 2, 3]

    robust = strategy(round_seconds=SECONDS, grace_seconds=0.02)
    start = time.monotonic()
    robust.start(Leaving({1: honest, 2: honest, 3: silent}), model(), 5)
    assert time.monotonic() - start < 5
    history = robust.histories[3]
    assert history.doubt > 0 and history.unheard + history.silent == 5
    # Before the slowest others would have come: it left all the same.
    robust = strategy(round_seconds=9.0, grace_seconds=2.0)
    robust.start(Leaving({1: honest, 2: honest, 3: silent}), model(), 1)
    assert (robust.histories[3].unheard, robust.histories[3].doubt) == (1, 2)


def test_who_was_cut_off_with_others_is_not_doubted(monkeypatch):
    """More than f at once are honest, though they leave when all others are there."""
    monkeypatch.setattr(exchange, "_GONE", 0.2)

    class Leaving(FakeGrid):
        pushed = False

        def push_messages(self, messages):
            self.pushed = True
            return super().push_messages(messages)

        def get_node_ids(self):
            return [1, 2] if self.pushed else [1, 2, 3, 4]

    nodes = {1: honest, 2: honest, 3: silent, 4: silent}
    robust = strategy(round_seconds=SECONDS, grace_seconds=0.02)
    robust.start(Leaving(nodes), model(), 1)
    assert [robust.histories[node].doubt for node in (3, 4)] == [0, 0]
    assert [robust.histories[node].unheard for node in (3, 4)] == [1, 1]


@pytest.mark.parametrize("n", [4, 5])
def test_a_silent_node_rests_where_none_can_be_spared(n, caplog):
    """Of 3 f + 1 nodes it is asked all the same, and not waited for."""
    grid = FakeGrid(dict.fromkeys(range(1, n), honest) | {n: silent})
    robust = strategy(grace_seconds=0.5)
    start = time.monotonic()
    result = robust.start(grid, model(), 8)
    # Three graces in eight rounds, and not eight.
    assert time.monotonic() - start < 8 * 0.5
    history = robust.histories[n]
    assert (history.silent, history.accepted) == (3, 0)
    assert history.asked == (8 if n == 4 else 3)
    assert history.unheard == history.asked - 3
    found = result.train_metrics_clientapp.values()
    assert all(metrics["accepted"] == n - 1 for metrics in found)
    said = "resting, and did not answer: 4"
    assert sum(said in line for line in caplog.messages) == history.unheard


def test_a_node_that_rests_and_answers_is_used(monkeypatch):
    monkeypatch.setattr(Nodes, "wake", lambda self: None)
    grid = FakeGrid(dict.fromkeys([1, 2, 3, 4], honest))
    robust = strategy(grace_seconds=0.1)
    robust._nodes.of(4).note_silence(9)  # Rests for ten rounds.
    result = robust.start(grid, model(), 3)
    found = result.train_metrics_clientapp.values()
    assert [metrics["accepted"] for metrics in found] == [4, 4, 4]


def test_rubbish_makes_nobody_late_or_doubted():
    """It is one of f, so that a slow node beside it is honest."""
    nodes = {1: lost, 2: honest, 3: honest, 4: late(0.6)}
    robust = strategy(round_seconds=5.0, grace_seconds=0.05)
    result = robust.start(FakeGrid(nodes), model(), 3)
    found = result.train_metrics_clientapp.values()
    assert [metrics["accepted"] for metrics in found] == [3, 3, 3]
    assert robust.histories[4].doubt == 0


def test_whoever_is_in_time_is_so_after_a_silence_too(monkeypatch):
    """Doubted it had four graces, and before two seconds more."""
    slow = late(0.7)

    def silent_once(message, grid):
        second = message.content["config"]["server-round"] == 2
        return None if second else slow(message, grid)

    nodes = {1: honest, 2: honest, 3: silent_once}
    monkeypatch.setattr(rounds, "_BUSY", 1.0)
    robust = strategy(round_seconds=2.0, grace_seconds=0.1)
    result = robust.start(FakeGrid(nodes), model(), 5)
    kept = [found["model-kept"] for found in result.train_metrics_clientapp.values()]
    assert kept == [0, 1, 0, 0, 0]


def test_an_accomplice_lengthens_no_grace(monkeypatch):
    monkeypatch.setattr(rounds, "_LEAST_GRACE", 0.1)
    nodes = {1: silent, 2: late(1.3)} | dict.fromkeys((3, 4, 5), late(0.6))
    robust = strategy(num_byzantine=2, round_seconds=9.0)
    times = []
    robust.start(
        FakeGrid(nodes), model(), 3, evaluate_fn=lambda *_: times.append(time.time())
    )
    # 0.6 s, four times half of that, and what is between two looks; not from 1.3 s on.
    assert all(b - a < 3.2 for a, b in itertools.pairwise(times[1:]))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_rests_grow_whatever_it_is_silent_in(kind):
    nodes = dict.fromkeys(range(1, 5), honest) | {5: silent_in(kind)}
    grid = FakeGrid(nodes)
    robust = strategy(grace_seconds=0.05, fraction_evaluate=1.0)
    robust.start(grid, model(), 16)
    # In rounds 1, 3, 6 and 11 it is asked, to train; to evaluate not in those it rests.
    assert robust.histories[5].useless == 4


def test_the_servers_time_is_not_the_nodes(monkeypatch):
    monkeypatch.setattr(rounds, "_BUSY", 0.5)

    def large(message, grid):
        time.sleep(0.3)
        return honest(message, grid)

    robust = strategy(num_byzantine=4, grace_seconds=0.05)
    robust.start(FakeGrid(dict.fromkeys(range(1, 10), large)), model(), 2)
    assert not any(history.useless for history in robust.histories.values())


def test_a_rest_is_short_again_after_an_answer():
    nodes = Nodes()
    for server_round in (1, 3):
        nodes.of(1).note_silence(server_round, evaluating=True)
    assert nodes.of(1).resting_until == 5
    answered = Round([], 1, 1, Budget(1.0, 1.0))
    answered.replies[1] = Reply(-1, 1.0, {}, "metrics")
    nodes.note_evaluation(answered, 6)
    nodes.of(1).note_silence(7, evaluating=True)
    assert nodes.of(1).resting_until == 8


def test_whom_training_waited_for_the_evaluation_does_not(monkeypatch):
    """Away, there while it is sent to, and away again."""
    monkeypatch.setattr(conversation, "_RECONNECT", 2.5)
    monkeypatch.setattr(exchange, "_GONE", 0.2)

    class Flapping(FakeGrid):
        looks = 0
        sent = False

        def get_node_ids(self):
            self.looks += 1
            return [1, 2, 3] if self.looks > 1 and not self.sent else [1, 2]

        def push_messages(self, messages):
            self.sent = True
            return super().push_messages(messages)

    robust = strategy(round_seconds=9.0, fraction_evaluate=1.0)
    start = time.monotonic()
    robust.start(Flapping({1: honest, 2: honest, 3: silent}), model(), 1)
    assert time.monotonic() - start < 2.4  # A second's look, and what it takes to go.

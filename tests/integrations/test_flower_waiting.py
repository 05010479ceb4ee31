"""How long pulls are waited for: those that hang, a busy server, slow nodes."""

import threading
import time

import pytest

pytest.importorskip("flwr")

from flwr.app import ConfigRecord

from byzjax.integrations.flower.rounds import Budget, Round
from tests.integrations.fake_grid import FakeGrid, honest, lost, model, strategy


@pytest.mark.parametrize("grace", [0.0, 0.1, 0.25, 0.35])
def test_what_is_left_of_a_grace_is_enough_to_pull_a_reply(grace):
    def tiring(message, grid):
        time.sleep(0.2)
        return honest(message, grid)

    grid = FakeGrid(dict.fromkeys(range(1, 6), tiring))
    result = strategy(grace_seconds=grace).start(grid, model(), 1)
    assert result.train_metrics_clientapp[1]["accepted"] == 5


def test_a_pull_that_hangs_holds_up_nobody():
    hanging = threading.Event()

    def hang(message, grid):
        hanging.wait(60)
        return honest(message, grid)

    grid = FakeGrid({1: honest, 2: honest, 3: honest, 4: honest, 5: hang})
    start = time.monotonic()
    result = strategy(grace_seconds=0.2).start(grid, model(), 1, timeout=50)
    hanging.set()
    assert time.monotonic() - start < 10
    metrics = result.train_metrics_clientapp[1]
    assert metrics["accepted"] == 4 and metrics["silent.5"] == 1


def test_many_pulls_that_hang_have_one_patience_together():
    """Each its own two seconds made a round as long as there are attackers."""
    hanging = threading.Event()

    def hang(message, grid):
        hanging.wait(200)
        return honest(message, grid)

    grid = FakeGrid({i: honest if i > 8 else hang for i in range(1, 26)})
    robust = strategy(num_byzantine=8, grace_seconds=0.2)
    start = time.monotonic()
    result = robust.start(grid, model(), 5, timeout=100)
    hanging.set()
    assert time.monotonic() - start < 15
    found = result.train_metrics_clientapp.values()
    assert [metrics["accepted"] for metrics in found] == [17] * 5


def test_a_node_whose_pull_hangs_has_one_thread():
    """It is asked in every round, as there are no others to spare."""
    hanging, asked = threading.Event(), []

    def hang(message, grid):
        asked.append(message)
        hanging.wait(60)
        return honest(message, grid)

    grid = FakeGrid({1: honest, 2: honest, 3: honest, 4: hang})
    robust = strategy(grace_seconds=0.05)
    result = robust.start(grid, model(), 6, timeout=20)
    pulled = len(asked)
    hanging.set()
    assert robust.histories[4].asked == 6 and pulled == 1
    found = result.train_metrics_clientapp.values()
    assert [metrics["accepted"] for metrics in found] == [3] * 6


def test_a_pull_that_would_end_the_server_is_one_reply_lost():
    def leaves(message, grid):
        raise SystemExit(1)

    grid = FakeGrid({1: leaves, 2: honest, 3: honest, 4: honest, 5: honest})
    result = strategy().start(grid, model(), 1)
    assert result.train_metrics_clientapp[1]["rejected.1"] == 1


@pytest.mark.parametrize("first", [1, 5])
def test_a_server_that_is_busy_takes_nobody_for_silent(first):
    """Its time with the others' replies, longer than the grace, is not theirs."""

    def tiring(message, grid):
        answer = honest(message, grid)
        time.sleep(0.2)
        return answer

    looks = []

    def once_others_are_there(message, grid):
        looks.append(message)
        return honest(message, grid) if first == 5 or len(looks) > 1 else None

    nodes = dict.fromkeys([1, 2, 3, 4, 5], tiring) | {first: once_others_are_there}
    result = strategy(grace_seconds=0.0).start(FakeGrid(nodes), model(), 1)
    assert result.train_metrics_clientapp[1]["accepted"] == 5


def test_slow_nodes_are_waited_for_as_long_as_the_others_took():
    began = time.monotonic()

    def after(seconds):
        def answer(message, grid):
            late = time.monotonic() - began > seconds
            return honest(message, grid) if late else None

        return answer

    grid = FakeGrid({i: after(0.5 * i) for i in range(1, 6)})
    result = strategy().start(grid, model(), 1, timeout=60)
    assert result.train_metrics_clientapp[1]["accepted"] == 5


def test_a_round_knows_how_long_to_wait(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    grid = FakeGrid(dict.fromkeys(range(1, 6), honest))
    robust = strategy()
    sent = robust.configure_train(1, model(), ConfigRecord(), grid)
    replies = grid.send_and_receive(sent)
    waiting = Round(sent, 1, 3, Budget(1000.0, None))
    assert waiting.seconds_left() == 1000
    now[0] += 10
    for one in replies[:3]:
        waiting.take(one)
    # Two are missing, one more than f: four times half of ten seconds.
    assert waiting.seconds_left() == 20
    waiting.take(replies[3])
    assert waiting.seconds_left() == 5
    now[0] += 4
    assert waiting.seconds_left() == 1
    waiting.take(replies[4])
    assert waiting.seconds_left() == 0


@pytest.mark.parametrize("rubbish, seconds", [(0, 5.0), (2, 20.0)])
def test_a_grace_is_of_the_time_of_all_but_f(rubbish, seconds, monkeypatch):
    """An accomplice who comes late has no part in it, and who sent rubbish is of f."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    nodes = dict.fromkeys(range(1, 7 + rubbish), honest)
    nodes |= dict.fromkeys(range(7, 7 + rubbish), lost)
    grid, robust = FakeGrid(nodes), strategy(num_byzantine=2)
    sent = robust.configure_train(1, model(), ConfigRecord(), grid)
    replies = grid.send_and_receive(sent)
    waiting = Round(sent, 2, 5, Budget(1000.0, None))
    for one in replies[6:]:
        waiting.take(one)
    now[0] += 10
    for one in replies[:4]:
        waiting.take(one)
    if not rubbish:
        now[0] += 20  # An accomplice's; two of those were out when others were in.
    waiting.take(replies[4])
    assert waiting.seconds_left() == seconds

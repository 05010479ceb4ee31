"""Everything that a client can send, against the strategy, without a network."""

import logging

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import ConfigRecord

import byzjax
from byzjax.integrations.flower import RobustStrategy
from tests.integrations import fake_grid, hostile
from tests.integrations.fake_grid import FakeGrid, arrays, honest, model

NODES = [2, 3, 2**63 + 4, 2**64 - 1, 77]
BAD = NODES[2]
# A grace that a busy machine keeps: only nodes that stay silent cost it.
OPTIONS = dict(num_byzantine=1, grace_seconds=5.0, round_seconds=60.0)


def strategy(rule=None, **options):
    rule = byzjax.median() if rule is None else rule
    return RobustStrategy(rule, **{**OPTIONS, **options})


def network(answer):
    return FakeGrid(dict.fromkeys(NODES, honest) | {BAD: answer})


def check_model(result, start, rounds):
    """Where the honest nodes went, in the arrays that were there."""
    new, old = arrays(result.arrays), arrays(start)
    assert list(new) == list(old)
    for name, value in new.items():
        assert value.dtype == old[name].dtype and value.shape == old[name].shape
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value - old[name], rounds, atol=0.35 * rounds)
        else:
            np.testing.assert_array_equal(value, old[name])


def check_round(metrics, accepted, rejected):
    assert metrics["accepted"] == accepted
    assert metrics["rejected"] == rejected
    assert metrics["model-kept"] == 0


@pytest.mark.parametrize("name", hostile.REJECTED | hostile.PULLED)
def test_a_reply_that_cannot_be_used_counts_as_absent(name, caplog):
    answer = (hostile.REJECTED | hostile.PULLED)[name]
    start = model()
    caplog.set_level(logging.INFO, "flwr")
    robust = strategy()
    result = robust.start(network(answer), start, num_rounds=2)
    check_model(result, start, 2)
    for metrics in result.train_metrics_clientapp.values():
        check_round(metrics, accepted=4, rejected=1)
        assert metrics[f"rejected.{BAD}"] == 1
    history = robust.histories[BAD]
    assert (history.asked, history.rejected) == (2, 2)
    assert sum(history.reasons.values()) == 2
    lines = [r.getMessage() for r in caplog.records if "counts as absent" in r.msg]
    assert lines
    for line in lines:
        assert (str(BAD) in line and line.isprintable()) or line.startswith("\t")
        assert "\n" not in line and "\x1b" not in line and len(line) < 300


@pytest.mark.parametrize("name", hostile.SEEN)
def test_a_reply_that_the_rule_sees_does_no_harm(name):
    start = model()
    robust = strategy()
    result = robust.start(network(hostile.SEEN[name]), start, num_rounds=2)
    check_model(result, start, 2)
    for metrics in result.train_metrics_clientapp.values():
        check_round(metrics, accepted=5, rejected=0)
        # A median's, whatever one client says.
        assert metrics.get("loss", 1.0) == 1.0
        assert metrics[f"influence.{NODES[0]}"] <= 1.0


@pytest.mark.parametrize("name", hostile.REJECTED)
def test_every_reply_bad_keeps_the_model(name):
    start = model()
    grid = FakeGrid(dict.fromkeys(NODES, hostile.REJECTED[name]))
    result = strategy(rule=byzjax.mean()).start(grid, start, num_rounds=1)
    for key, value in arrays(start).items():
        np.testing.assert_array_equal(arrays(result.arrays)[key], value)
    assert result.train_metrics_clientapp[1]["model-kept"] == 1


@pytest.mark.parametrize("name", hostile.REJECTED | hostile.SEEN)
def test_without_the_pulling_of_start(name):
    """As Flower's own `start` calls a strategy: all replies in a list, with claims."""
    answer = (hostile.REJECTED | hostile.SEEN)[name]
    start, robust = model(), strategy()
    grid = network(answer)
    sent = robust.configure_train(1, start, ConfigRecord(), grid)
    new, metrics = robust.aggregate_train(1, grid.send_and_receive(sent))
    assert new is not None
    moved = arrays(new)["big"] - arrays(start)["big"]
    np.testing.assert_allclose(moved, 1, atol=0.35)
    assert 3 <= metrics["accepted"] <= 5


@pytest.mark.parametrize("copies", [2, 3])
def test_a_node_that_answers_more_than_once_is_dropped(copies):
    robust, start = strategy(), model()
    grid = network(lambda m, g: [honest(m, g) for _ in range(copies)])
    sent = robust.configure_train(1, start, ConfigRecord(), grid)
    replies = grid.send_and_receive(sent)
    np.random.default_rng(0).shuffle(replies)
    _, metrics = robust.aggregate_train(1, replies)
    check_round(metrics, accepted=4, rejected=1)
    assert metrics[f"rejected.{BAD}"] == 1
    assert robust.histories[BAD].reasons == {"sent two replies": 1}


def test_a_repeated_message_is_one_node_dropped_and_a_replay_nobodys():
    robust, start = strategy(), model()
    grid = network(honest)
    config = ConfigRecord()
    old = grid.send_and_receive(robust.configure_train(1, start, config, grid))
    robust.aggregate_train(1, old)
    new = grid.send_and_receive(robust.configure_train(2, start, config, grid))
    _, metrics = robust.aggregate_train(2, [*old, *new, new[0], *old])
    check_round(metrics, accepted=4, rejected=1)


def test_a_forged_source_speaks_for_nobody():
    """The other node's reply stands, and the forger has sent none."""
    for node in (NODES[0], 1, 0, 12345):
        robust, start = strategy(), model()
        grid = network(hostile.claimed(src_node_id=node))
        sent = robust.configure_train(1, start, ConfigRecord(), grid)
        _, metrics = robust.aggregate_train(1, grid.send_and_receive(sent))
        check_round(metrics, accepted=4, rejected=0)
        assert metrics[f"silent.{BAD}"] == 1


def test_things_that_are_no_messages():
    robust, start = strategy(), model()
    grid = network(honest)
    sent = robust.configure_train(1, start, ConfigRecord(), grid)
    odd = [None, 3, "reply", hostile.Trap(), *grid.send_and_receive(sent)]
    _, metrics = robust.aggregate_train(1, odd)
    check_round(metrics, accepted=5, rejected=0)


@pytest.mark.parametrize(
    "claim",
    [-1, 0, float("nan"), float("inf"), [1, 2], 10**12, 2**63 - 1, 1e308, None],
    ids=str,
)
def test_numbers_of_examples_count_only_if_asked_for_and_are_capped(claim):
    def answer(message, grid):
        record = fake_grid.moved(fake_grid.sent_model(message), -2.0)
        return fake_grid.reply(
            message, record, {"num-examples": claim} if claim else {}
        )

    start = model()
    mean = strategy(byzjax.mean(), max_share=0.25)
    result = mean.start(network(answer), start, num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    moved = arrays(result.arrays)["big"] - arrays(start)["big"]
    if isinstance(claim, int) and claim > 0:
        assert metrics[f"influence.{BAD}"] == pytest.approx(0.25, abs=1e-6)
        np.testing.assert_allclose(moved, 0.75 - 0.5, atol=0.2)
    else:
        check_round(metrics, accepted=4, rejected=1)
        np.testing.assert_allclose(moved, 1, atol=0.2)
    ignoring = strategy(byzjax.mean())
    result = ignoring.start(network(answer), start, num_rounds=1)
    moved = arrays(result.arrays)["big"] - arrays(start)["big"]
    np.testing.assert_allclose(moved, (4 - 2) / 5, atol=0.2)

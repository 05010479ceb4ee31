"""What a strategy is told: shares, bad arguments, rules and their f, and bounds."""

import logging
import time

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("flwr")


import byzjax
from byzjax.integrations.flower import RobustStrategy
from byzjax.integrations.flower.nodes import Nodes
from tests.integrations.fake_grid import (
    FakeGrid,
    arrays,
    honest,
    model,
    moved,
    reply,
    sent_model,
    silent,
    strategy,
)


def test_shares_of_the_nodes_are_asked_and_f_is_a_share_of_these():
    grid = FakeGrid(dict.fromkeys(range(1, 41), honest))
    robust = strategy(num_byzantine=0.29, fraction_train=0.5, fraction_evaluate=0.25)
    result = robust.start(grid, model(), 1)
    assert len(grid.asked) == 20 + 10
    assert result.train_metrics_clientapp[1]["byzantine-assumed"] == 6


def test_a_lost_node_does_not_lower_f_below_the_hostile_one():
    def backwards(message, grid):
        return reply(message, moved(sent_model(message), -100.0))

    grid = FakeGrid({1: honest, 2: honest, 3: honest, 4: silent, 5: backwards})
    start = model()
    robust = RobustStrategy(
        byzjax.trimmed_mean,
        num_byzantine=0.2,
        fraction_evaluate=0.0,
        grace_seconds=0.1,
    )
    result = robust.start(grid, start, 4)
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["byzantine-assumed"] == 1 and metrics["model-kept"] == 0
    moved_by = arrays(result.arrays)["big"] - arrays(start)["big"]
    np.testing.assert_allclose(moved_by, 4, atol=1)


def test_the_number_of_histories_is_bounded():
    nodes = Nodes()
    for node in range(10_050):
        nodes.of(node)
    assert len(nodes.histories) == 10_000 and 0 not in nodes.histories
    history = nodes.of(10_049)
    for i in range(100):
        history.note_rejected(f"reason {i}")
    assert history.rejected == 100 and len(history.reasons) == 16


KEYED = optax.GradientTransformation(
    lambda params: jax.random.key(0),
    lambda updates, state, params=None: (updates, state),
)
SUMMED = optax.stateless(lambda updates, params: updates.sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_byzantine=-1), "num_byzantine >= 0, got num_byzantine=-1"),
        (dict(num_byzantine=0.5), "0 <= num_byzantine < 0.5"),
        (dict(num_byzantine=True), "to be an int, or a float"),
        (dict(num_byzantine="1"), "to be an int, or a float"),
        (dict(max_share=0.0), "0 < max_share <= 1, got max_share=0.0"),
        (dict(fraction_train=1.5), "0 <= fraction_train <= 1"),
        (dict(min_train_nodes=-2), "min_train_nodes >= 0"),
        (dict(min_evaluate_nodes=1.0), "min_evaluate_nodes to be a static int"),
        (dict(round_seconds=-1), "round_seconds > 0"),
        (dict(grace_seconds=float("nan")), "grace_seconds"),
        (dict(weighted_by_key=3), "weighted_by_key to be a string, got 3"),
        (dict(train_metrics_aggr_fn="mean"), "train_metrics_aggr_fn to be a function"),
        (dict(worker=0.9), "worker to be an optax transformation"),
        (dict(server="sgd"), "server to be an optax transformation"),
        (dict(key=3), "a key made by jax.random.key"),
        (dict(round_seconds=0), "round_seconds > 0, got round_seconds=0"),
        (dict(reference=5), "reference to be a function"),
        (dict(checkpoint=5), "checkpoint to be the path of a file, got 5"),
        (dict(checkpoint=""), "checkpoint to be a file's path, got that of the folder"),
        (dict(arrayrecord_key="config"), "an arrayrecord_key other than its configre"),
        (dict(worker=optax.add_decayed_weights(0.1)), "reads no params, such as byz"),
        (dict(worker=KEYED), "noise belongs into server="),
        (dict(worker=byzjax.median()), "a rule is the first argument, aggregator"),
        (dict(server=byzjax.median()), "a rule is the first argument, aggregator"),
        (dict(worker=SUMMED), "one vector of updates and reads no params"),
        (dict(reference=lambda record: record), "reference=None with a rule that re"),
        (dict(fraction_train=lambda n: 0.5), "fraction_train to be a number, got"),
        (dict(fraction_evaluate=int), "fraction_evaluate to be a number, got"),
        (dict(max_share=lambda n: 0.5), "max_share to be a number, got"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        strategy(**options)
    assert str(caught.value).startswith("RobustStrategy needs ")
    assert message in str(caught.value)


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(TypeError, match="needs an aggregator such as"):
        RobustStrategy("median", num_byzantine=1)
    with pytest.raises(TypeError, match="function from f to one, got one that retur"):
        RobustStrategy(lambda f: "median", num_byzantine=1)
    for f in (1, 0.2):
        with pytest.raises(
            TypeError, match=r"is a function, call it, median\(\.\.\.\)"
        ):
            RobustStrategy(byzjax.median, num_byzantine=f)
    with pytest.raises(
        ValueError, match="no round for its aggregator: fltrust needs a"
    ):
        RobustStrategy(byzjax.fltrust(), num_byzantine=1)


@pytest.mark.parametrize("f", [2, 0.2])
def test_a_rule_that_trusts_a_row_is_refused(f):
    """Which node's it is the order of answers says: a hostile one may be trusted."""
    told = 2 if f == 2 else 1
    for rule in (byzjax.monna(told), byzjax.nnm(byzjax.monna(told), told)):
        for given in (rule, lambda f, rule=rule: rule):
            with pytest.raises(ValueError, match="a rule that trusts no row, got "):
                RobustStrategy(given, num_byzantine=f)


def serving(holds, text):
    def check(m):
        if not holds(m):
            raise ValueError(text)

    def update(updates, state, params=None, **extra):
        return updates[0], state

    return byzjax.Aggregator(lambda params: (), update, check=check)


def test_a_rule_that_serves_some_numbers_is_taken():
    RobustStrategy(serving(lambda m: m <= 8, "at most 8"), num_byzantine=1)
    RobustStrategy(serving(lambda m: m == 5, "exactly so many"), num_byzantine=1)
    with pytest.raises(ValueError, match="has no round for its aggregator: never"):
        RobustStrategy(serving(lambda m: False, "never"), num_byzantine=1)


@pytest.mark.parametrize(
    "server", [optax.polyak_sgd(1.0), optax.contrib.momo(), optax.lbfgs()]
)
def test_a_server_that_wants_more_than_updates_is_refused(server):
    robust = RobustStrategy(byzjax.median(), num_byzantine=1, server=server)
    grid = FakeGrid(dict.fromkeys(range(1, 6), honest))
    with pytest.raises(ValueError, match="needs a server that steps this model by its"):
        robust.start(grid, model(), 1)
    assert not grid.asked


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 250, "file/a"])
def test_a_checkpoint_that_cannot_be_written(name, tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ValueError, match="needs checkpoint to be the path of a file"):
        RobustStrategy(
            byzjax.median(), num_byzantine=1, checkpoint=f"{tmp_path}/{name}"
        )


def test_the_reason_is_of_the_nodes_that_were_asked(caplog):
    grid = FakeGrid(dict.fromkeys((1, 2, 3), honest))
    robust = RobustStrategy(
        byzjax.krum(1), num_byzantine=1, fraction_evaluate=0, round_seconds=0.2
    )
    robust.start(grid, model(), 1)
    assert "num_workers >= 2 * num_byzantine + 3, got num_workers=3" in caplog.text


@pytest.mark.parametrize(
    "rule",
    [
        byzjax.foolsgold(num_workers=7),
        byzjax.bulyan(1),
        byzjax.trimmed_mean,
        lambda f: {1: byzjax.median()}[f],  # Of which a share of ten is no key.
    ],
    ids=["foolsgold", "bulyan", "trimmed_mean", "function"],
)
def test_a_rule_that_may_serve_is_taken(rule):
    RobustStrategy(rule, num_byzantine=0.2 if callable(rule) else 1)


def test_a_rule_told_a_smaller_f_is_refused_or_serves_no_round(caplog):
    with pytest.raises(ValueError, match=r"^RobustStrategy needs .*bears 1 at most"):
        RobustStrategy(byzjax.nnm(byzjax.trimmed_mean(1), 1), num_byzantine=2)
    grid = FakeGrid(dict.fromkeys(range(1, 11), honest))
    robust = RobustStrategy(
        byzjax.trimmed_mean(1), num_byzantine=0.2, fraction_evaluate=0
    )
    result = robust.start(grid, model(), 1)
    assert result.train_metrics_clientapp[1]["model-kept"] == 1
    assert "bears its num_byzantine=2, got" in caplog.text
    with pytest.raises(ValueError, match="bears its num_byzantine=2, got"):
        RobustStrategy(lambda f: byzjax.krum(1), num_byzantine=2)
    for rule in (byzjax.trimmed_mean(3), byzjax.median(), byzjax.mean()):
        robust = RobustStrategy(rule, num_byzantine=2, fraction_evaluate=0)
        result = robust.start(grid, model(), 1)
        assert result.train_metrics_clientapp[1]["model-kept"] == 0


def test_aggregating_what_was_never_asked_is_refused():
    with pytest.raises(RuntimeError, match="needs configure_train before"):
        strategy().aggregate_train(1, [])


def test_a_share_is_of_those_drawn_and_not_of_those_awake():
    """Else who makes honest nodes rest would be more than a share of the others."""

    def late(message, grid):
        since = first.setdefault(message.metadata.message_id, time.monotonic())
        return honest(message, grid) if time.monotonic() - since > 3 else None

    first = {}
    nodes = dict.fromkeys((1, 2, 3, 8, 9), honest) | dict.fromkeys(
        (4, 5, 6, 7, 10), late
    )
    robust = RobustStrategy(
        byzjax.trimmed_mean,
        num_byzantine=0.2,
        fraction_evaluate=0.0,
        grace_seconds=0.2,
        round_seconds=30,
    )
    result = robust.start(FakeGrid(nodes), model(), num_rounds=2, timeout=60)
    found = [m["byzantine-assumed"] for m in result.train_metrics_clientapp.values()]
    assert found == [2, 2]
    assert robust.compiled == 1  # Who rests is absent: the rows are as many.


@pytest.mark.parametrize(
    ("rule", "f", "share"),
    [
        (byzjax.median(), 4, 0.2),
        (byzjax.geometric_median(), 3, 0.2),
        (byzjax.trimmed_mean(1), 1, 0.5),
        (byzjax.ctma(byzjax.median(), 3), 3, 0.2),
    ],
    ids=["median", "geometric_median", "trimmed_mean", "ctma"],
)
def test_f_nodes_may_not_claim_more_than_the_rule_bears(rule, f, share):
    """Each capped for itself, four of twenty had four fifths of the weight."""
    with pytest.raises(ValueError, match=r"needs a max_share that its rule bears: num"):
        RobustStrategy(rule, num_byzantine=f, max_share=share)
    RobustStrategy(byzjax.median(), num_byzantine=2, max_share=0.2)


def test_a_rule_that_bears_nobody_knows_of_is_named(caplog):
    with caplog.at_level(logging.WARNING, logger="flwr"):
        RobustStrategy(byzjax.mean(), num_byzantine=3)
    assert "mean() does not say how many hostile nodes" in caplog.text

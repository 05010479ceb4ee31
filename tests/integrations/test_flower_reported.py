"""Metrics are claims too: what a few liars can make of them."""

import logging
import math

import pytest

pytest.importorskip("flwr")

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

import byzjax
from byzjax.integrations.flower import RobustStrategy
from tests.integrations import fake_grid
from tests.integrations.fake_grid import FakeGrid, model

VERDICTS = {"accepted", "rejected", "silent", "unheard"} | {
    "byzantine-assumed",
    "model-kept",
}


def reports(metrics, name="metrics"):
    """A node with these metrics, whatever it is asked for."""

    def answer(message, grid):
        record = MetricRecord(metrics)
        content = RecordDict({name: record})
        if message.metadata.message_type == "train":
            honest = fake_grid.honest(message, grid)
            content["arrays"] = honest.content["arrays"]
        return Message(content, reply_to=message)

    return answer


def run(nodes, f=1, **options):
    """The metrics of training and of evaluation, verdicts left out."""
    robust = RobustStrategy(byzjax.median(), num_byzantine=f, **options)
    grid = FakeGrid(dict(enumerate(map(reports_of, nodes), 1)))
    result = robust.start(grid, model(), 1, timeout=60)
    found = dict(result.train_metrics_clientapp[1])
    train = {k: v for k, v in found.items() if k not in VERDICTS and "." not in k}
    return train, dict(result.evaluate_metrics_clientapp.get(1, {}))


def reports_of(metrics):
    return metrics if callable(metrics) else reports(metrics)


@pytest.mark.parametrize("f", [1, 2, 3])
def test_a_metric_of_few_nodes_is_left_out(f, caplog):
    """Among 2 f that have it, f liars would choose the median."""
    caplog.set_level(logging.INFO, "flwr")
    lie, truth = {"accuracy": 0.9, "rare": 1e6}, {"accuracy": 0.9, "rare": 1.0}
    others = {"accuracy": 0.9}
    nodes = [lie] * f + [truth] * f + [others] * 2
    assert run(nodes, f) == ({"accuracy": 0.9},) * 2
    said = [r.getMessage() for r in caplog.records if "left out" in r.msg]
    assert len(said) == 2 and "'rare'" in said[0]
    nodes = [lie] * f + [truth] * (f + 1) + [others]
    assert run(nodes, f) == ({"accuracy": 0.9, "rare": 1.0},) * 2


def test_a_liars_own_metric_is_not_shown():
    liar = {"accuracy": 1e300, "mine": 1.0, "\x1b[2J\nforged line" * 9: 2.0}
    nodes = [liar] + [{"accuracy": 0.9}] * 4
    assert run(nodes) == ({"accuracy": 0.9},) * 2


LIES = [
    {"loss": 1e299, "num-examples": 1e299},
    {"loss": -1e299, "num-examples": 0},
    {"loss": 5.0, "num-examples": -1e299},
    {"loss": math.nan, "num-examples": math.inf},
    {"loss": [1.0, 2.0], "num-examples": [3]},
    {},
    {"other": 3.0},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_function_of_the_users_sees_honest_values_only(lie):
    """Flower's own weighted mean, in which each liar alone owns the result."""
    honest = [{"loss": x, "num-examples": 10 * i} for i, x in enumerate((2, 3, 4, 5))]
    seen = []

    def mean(records, key):
        seen.append(records)
        return aggregate_metricrecords(records, key)

    options = {"train_metrics_aggr_fn": mean, "evaluate_metrics_aggr_fn": mean}
    for found in run([lie, *honest], **options):
        assert 2 <= found["loss"] <= 5
    for records in seen:
        assert len(records) == 5
        for record in records:
            assert record["metrics"].keys() == {"loss", "num-examples"}
            assert 2 <= record["metrics"]["loss"] <= 5
            assert 0 <= record["metrics"]["num-examples"] <= 30


def test_honest_metrics_reach_the_function_as_they_are():
    honest = [{"loss": float(i), "num-examples": 7} for i in range(3)]
    seen = []

    def first(records, key):
        seen.extend((record["mine"]["loss"], key) for record in records)
        return MetricRecord({"best": min(record["mine"]["loss"] for record in records)})

    nodes = [reports(metrics, "mine") for metrics in honest]
    options = {"weighted_by_key": "n", "evaluate_metrics_aggr_fn": first}
    train, evaluated = run(nodes, f=0, **options)
    assert evaluated == {"best": 0.0} and train["loss"] == 1.0
    assert seen == [(0.0, "n"), (1.0, "n"), (2.0, "n")]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda records, key: MetricRecord({"x": records[0]["m"]["no such"]}), "Key"),
        (lambda records, key: 3, "to return a MetricRecord, got int"),
    ],
)
def test_a_function_that_fails_ends_no_run(function, reason, caplog):
    """It may fail since clients, honest or not, left a metric out."""
    nodes = [{"loss": 1.0}] * 4
    _, evaluated = run(nodes, evaluate_metrics_aggr_fn=function)
    assert evaluated == {"loss": 1.0}
    assert any(reason in r.getMessage() for r in caplog.records)


def test_nothing_is_asked_of_the_function_where_nothing_can_be_trusted():
    def never(records, key):
        raise AssertionError

    nodes = [{str(i): 1.0} for i in range(5)]
    assert run(nodes, evaluate_metrics_aggr_fn=never) == ({}, {})

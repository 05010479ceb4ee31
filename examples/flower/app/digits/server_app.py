"""The server: the strategy is all that differs."""

import json
import pathlib
from typing import Any

from flwr.app import Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedMedian

import byzjax
from byzjax.integrations.flower import RobustStrategy
from digits import task

app = ServerApp()


def rule(f: int) -> byzjax.Aggregator:
    return byzjax.nnm(byzjax.median(), num_byzantine=f)


def strategy_of(config):
    common: dict[str, Any] = dict(
        fraction_evaluate=0.0, min_train_nodes=4, min_available_nodes=5
    )
    if config["strategy"] == "fedavg":
        return FedAvg(**common)
    if config["strategy"] == "fedmedian":
        return FedMedian(**common)
    checkpoint = config["checkpoint"] or None
    return RobustStrategy(rule, num_byzantine=0.2, checkpoint=checkpoint, **common)


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    found: dict[str, Any] = {"accuracy": {}, "finished": False}

    def write():
        if config["result"]:
            pathlib.Path(str(config["result"])).write_text(json.dumps(found))

    def evaluate(server_round, arrays):
        accuracy = task.accuracy(task.from_record(arrays))
        found["accuracy"][server_round] = accuracy
        write()  # What a run that is ended has reached.
        return MetricRecord({"accuracy": accuracy})

    strategy = strategy_of(config)
    result = strategy.start(
        grid=grid,
        initial_arrays=task.to_record(task.initial_model()),
        num_rounds=int(config["num-rounds"]),
        timeout=float(config["timeout"]),
        evaluate_fn=evaluate,
    )
    found["finished"] = True
    found["verdicts"] = {
        server_round: dict(metrics)
        for server_round, metrics in result.train_metrics_clientapp.items()
    }
    write()

"""What a round costs the server: RobustStrategy beside Flower's own strategies.

python -m benchmarks.flower_strategy                # 20 replies of 10^6 floats
python -m benchmarks.flower_strategy --replies 50 --dim 100000 --rounds 9

Needs the `flower` extra. Times `aggregate_train`, deserialisation included, in turn,
from the second round on, and reading the replies' bytes into one array.
"""

import argparse
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedMedian
from flwr.supercore.task_identity import TaskIdentity

import byzjax
from benchmarks import timing
from byzjax.integrations.flower import RobustStrategy

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

RULES: dict[str, Callable[[int], byzjax.Aggregator]] = {
    "trimmed_mean": byzjax.trimmed_mean,
    "ctma(nnm(median))": lambda f: byzjax.ctma(byzjax.nnm(byzjax.median(), f), f),
}


def nodes(count: int) -> Grid:
    """As many nodes as are wanted, which never answer."""
    grid = mock.create_autospec(Grid, instance=True)
    grid.get_node_ids.return_value = list(range(1, count + 1))
    return grid


def record(draws: np.random.Generator, dim: int) -> ArrayRecord:
    """A model of d floats: a matrix, and a vector for what is left."""
    shapes = {"weights": (dim // 1000, 999), "bias": (dim - dim // 1000 * 999,)}
    return ArrayRecord(
        {k: Array(draws.normal(size=s).astype(np.float32)) for k, s in shapes.items()}
    )


def replies(sent: list[Message], records: list[ArrayRecord]) -> list[Message]:
    """Answers with these arrays: new messages, since FedMedian empties them."""
    return [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord(dict(arrays)),
                    "metrics": MetricRecord({"num-examples": 10}),
                }
            ),
            reply_to=message,
        )
        for message, arrays in zip(sent, records, strict=True)
    ]


def read(into: np.ndarray | None, messages: list[Message]) -> np.ndarray:
    """The numbers of all replies in one array, unchecked."""
    contents: list[Any] = [m.content for m in messages]
    rows = [
        [
            np.frombuffer(a.data, np.float32, offset=128)
            for a in content["arrays"].values()
        ]
        for content in contents
    ]
    if into is None:
        into = np.empty((len(rows), sum(part.size for part in rows[0])), np.float32)
    for out, row in zip(into, rows, strict=True):
        np.concatenate(row, out=out)
    return into


def cases(m: int, dim: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """Name → a round, and how many seconds of it the server spent aggregating."""
    draws = np.random.default_rng(0)
    model, records = record(draws, dim), [record(draws, dim) for _ in range(m)]
    grid, rounds = nodes(m), itertools.count(1)
    into = np.zeros((m, dim), np.float32)
    f = m // 5

    def timed(strategy: Any):
        def call() -> float:
            server_round = next(rounds)
            sent = strategy.configure_train(server_round, model, ConfigRecord(), grid)
            for message in sent:
                node = message.metadata.dst_node_id
                message.metadata.__dict__["_message_id"] = f"{server_round} {node}"
            came = replies(sent, records)
            start = time.perf_counter()
            arrays, _ = strategy.aggregate_train(server_round, came)
            seconds = time.perf_counter() - start
            assert arrays is not None
            return seconds

        return call

    def reading(target):
        def call() -> float:
            sent = list(FedAvg().configure_train(1, model, ConfigRecord(), grid))
            came = replies(sent, records)
            start = time.perf_counter()
            read(target, came)
            return time.perf_counter() - start

        return call

    yield "reading into a new array", reading(None)
    yield "reading into one that is there", reading(into)
    for strategy in (FedAvg, FedMedian):
        yield strategy.__name__, timed(strategy(min_available_nodes=m))
    for name, rule in RULES.items():
        yield name, timed(RobustStrategy(rule(f), num_byzantine=f))


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flower_strategy",
        description="Seconds of aggregate_train, deserialisation included.",
    )
    parser.add_argument("--replies", type=int, default=20)
    parser.add_argument("--dim", type=int, default=10**6)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(timing.machine())
    turns = dict(cases(arguments.replies, arguments.dim))
    times: dict[str, list[float]] = {name: [] for name in turns}
    first = {}
    for each in range(arguments.rounds + 1):
        for name, turn in turns.items():
            seconds = turn()
            if each:
                times[name].append(seconds)
            else:
                first[name] = seconds
    middle = {name: float(np.median(found)) for name, found in times.items()}
    print("| | ms, median | first round s | FedMedian takes | of reading |")
    print("|---|---|---|---|---|")
    reading = middle["reading into a new array"]
    for name, seconds in middle.items():
        print(
            f"| {name} | {1e3 * seconds:.1f} | {first[name]:.2f} "
            f"| {middle['FedMedian'] / seconds:.1f}× | {seconds / reading:.1f} |"
        )


if __name__ == "__main__":
    main()

"""What a run begins with: the model, the rounds, a strategy that ran before."""

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord

from tests.integrations.fake_grid import FakeGrid, honest, model, strategy


def test_a_second_start_asks_all_again_and_knows_its_model():
    robust = strategy()
    silent = FakeGrid(
        {1: lambda message, grid: None} | dict.fromkeys([2, 3, 4, 5], honest)
    )
    robust.start(silent, model(), 6, timeout=60)
    result = robust.start(FakeGrid(dict.fromkeys(range(1, 6), honest)), model(), 1)
    assert result.train_metrics_clientapp[1]["accepted"] == 5
    other = ArrayRecord([np.zeros(4, np.float32)])
    for _ in range(2):
        with pytest.raises(ValueError, match="another model is for another strategy"):
            robust.start(FakeGrid({1: honest}), other, 1)


@pytest.mark.parametrize(
    "arrays, options, match",
    [
        ([np.zeros(3)], {}, "initial_arrays to be a flwr.app.ArrayRecord, got list"),
        (None, {"num_rounds": "3"}, "num_rounds"),
        (None, {"timeout": float("nan")}, "timeout"),
        (
            ArrayRecord({"w": Array("nosuch", (1,), "numpy.ndarray", b"")}),
            {},
            "'w': has the dtype 'nosuch', which is unknown",
        ),
        (None, {"train_config": {"lr": 0.1}}, "train_config to be a flwr.app.ConfigR"),
        (None, {"evaluate_config": 5}, "evaluate_config to be a flwr.app.ConfigRecor"),
        (None, {"evaluate_fn": 5}, "evaluate_fn to be a function of the round and"),
        (None, {"grid": None}, "needs the grid that a ServerApp is given, got None"),
    ],
    ids=[
        *("arrays", "rounds", "timeout", "dtype"),
        *("config", "other config", "function", "grid"),
    ],
)
def test_what_a_run_cannot_be_of(arrays, options, match):
    grid = FakeGrid(dict.fromkeys(range(1, 6), honest))
    arrays = model() if arrays is None else arrays
    given = {"grid": grid, "initial_arrays": arrays, "num_rounds": 1} | options
    with pytest.raises((TypeError, ValueError), match=match):
        strategy().start(**given)

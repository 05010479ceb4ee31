"""What the strategy computes: the rule's aggregate, memories, optimizers, programs."""

import io

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message

import byzjax
from byzjax.integrations.flower import RobustStrategy, conversation, npy, server
from byzjax.integrations.flower.model import Model
from byzjax.integrations.flower.programs import Programs
from tests import rules
from tests.integrations import fake_grid
from tests.integrations.fake_grid import FakeGrid, arrays, honest, model, silent


def flat(record):
    floats = [x for x in arrays(record).values() if x.dtype.kind == "f"]
    return np.concatenate([x.astype(np.float64).ravel() for x in floats])


def updates(start, nodes):
    """What `honest` nodes of these ids send, [m, d]."""
    rows = [flat(fake_grid.moved(start, 1.0, 0.1, node % 1000)) for node in nodes]
    return np.stack(rows) - flat(start)


def run(rule, nodes=range(1, 10), rounds=1, start=None, **options):
    options = {"num_byzantine": 2, "fraction_evaluate": 0.0, **options}
    robust = RobustStrategy(rule, **options)
    grid = FakeGrid(dict.fromkeys(nodes, honest))
    result = robust.start(grid, model() if start is None else start, rounds)
    return result, robust


@pytest.mark.parametrize(
    "rule",
    [
        byzjax.mean(),
        byzjax.median(),
        byzjax.trimmed_mean(2),
        byzjax.krum(2),
        byzjax.geometric_median(),
        byzjax.ctma(byzjax.nnm(byzjax.median(), 2), 2),
        byzjax.centered_clipping(1.0),
    ],
    ids=lambda rule: "",
)
def test_the_step_is_the_rules_aggregate(rule):
    start = model()
    result, _ = run(rule, start=start)
    wanted = rule.aggregate(jnp.asarray(updates(start, range(1, 10)), jnp.float32))
    np.testing.assert_allclose(flat(result.arrays) - flat(start), wanted, atol=2e-6)


SERVED = [row for row in rules.RULES if row.honest_row is None]


@pytest.mark.parametrize("row", SERVED, ids=lambda row: row.name)
def test_every_rule_runs_and_has_an_influence(row):
    def trusted(record):
        return fake_grid.moved(record, 1.0, 0.1)

    options = {"reference": trusted} if row.name.startswith("fltrust") else {}
    result, robust = run(row.make(13, 2), nodes=range(1, 14), rounds=2, **options)
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["model-kept"] == 0, row.name
        shares = [v for k, v in metrics.items() if k.startswith("influence.")]
        assert len(shares) == 13 and np.isfinite(shares).all()
    assert robust.compiled == 1


def test_influence_is_the_weight_of_a_node():
    metrics = run(byzjax.mean())[0].train_metrics_clientapp[1]
    for node in range(1, 10):
        assert metrics[f"influence.{node}"] == pytest.approx(1 / 9, abs=1e-4)
    metrics = run(byzjax.krum(2))[0].train_metrics_clientapp[1]
    shares = sorted(metrics[f"influence.{node}"] for node in range(1, 10))
    assert shares == [0.0] * 8 + [1.0]
    metrics = run(byzjax.trimmed_mean(2))[0].train_metrics_clientapp[1]
    total = sum(metrics[f"influence.{node}"] for node in range(1, 10))
    assert total == pytest.approx(1, abs=0.02)


def test_momentum_is_kept_of_each_node():
    """A node that was absent goes on where it was; a new one starts anew."""
    there = {1: True, 2: True, 3: True}

    def at(node):
        def answer(message, grid):
            if not there[node]:
                return Message(Error(2, "lost"), reply_to=message)
            by = float(node * message.content["config"]["server-round"])
            record = fake_grid.moved(fake_grid.sent_model(message), by)
            return fake_grid.reply(message, record)

        return answer

    robust = RobustStrategy(
        byzjax.mean(), num_byzantine=0, worker=byzjax.momentum(0.5), fraction_evaluate=0
    )
    grid = FakeGrid({node: at(node) for node in there})
    model_now, moves = model(), []
    for server_round, present in ((1, {1, 2}), (2, {2, 3}), (3, {1, 2, 3})):
        for node in there:
            there[node] = node in present
        sent = robust.configure_train(server_round, model_now, ConfigRecord(), grid)
        replies = []
        for message in sent:
            grid.push_messages([message])
            node = message.metadata.dst_node_id
            replies.append(grid.nodes[node](message, grid))
        new, _ = robust.aggregate_train(server_round, replies)
        moves.append(float(np.mean(flat(new) - flat(model_now))))
        model_now = new
    first = {1: 1.0, 2: 2.0}
    second = {2: 0.5 * 2 + 0.5 * 4, 3: 6.0}
    third = {1: 0.5 * 1 + 0.5 * 3, 2: 0.5 * 3 + 0.5 * 6, 3: 0.5 * 6 + 0.5 * 9}
    wanted = [np.mean(list(x.values())) for x in (first, second, third)]
    np.testing.assert_allclose(moves, wanted, atol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_any_server_optimizer():
    start = model()
    result, _ = run(byzjax.mean(), start=start, server=optax.adam(0.1))
    np.testing.assert_allclose(flat(result.arrays) - flat(start), 0.1, atol=1e-4)
    # By names: an optimizer sees the model as a tree.
    only_big = {"w": False, "b": False, "big": True}
    server = optax.chain(
        optax.masked(optax.scale(0.0), {k: not v for k, v in only_big.items()}),
        optax.sgd(1.0),
    )
    result, _ = run(byzjax.mean(), start=start, server=server)
    moved = {k: v - arrays(start)[k] for k, v in arrays(result.arrays).items()}
    assert not moved["w"].any() and not moved["b"].any()
    np.testing.assert_allclose(moved["big"], 1, atol=0.2)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("optimizer", [optax.sgd(1.0), optax.adam(0.1)], ids=["", ""])
def test_an_optimizer_of_many_arrays_need_not_be_compiled(optimizer, monkeypatch):
    start, ends = model(), []
    for most in (server._MOST_COMPILED, 0):
        monkeypatch.setattr(server, "_MOST_COMPILED", most)
        result, _ = run(byzjax.median(), rounds=3, start=start, server=optimizer)
        ends.append(flat(result.arrays))
    np.testing.assert_allclose(*ends, rtol=1e-6)


def test_no_optimizer_adds_the_aggregate():
    start = model(dtype="float16")
    ends = [
        flat(run(byzjax.median(), rounds=3, start=start, server=one)[0].arrays)
        for one in (None, optax.sgd(1.0))
    ]
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", ">f4"])
def test_dtypes_stay(dtype):
    start = model(dtype=getattr(ml_dtypes, dtype, dtype))
    robust = RobustStrategy(byzjax.median(), num_byzantine=1, fraction_evaluate=0.0)

    def answer(message, grid):
        record = ArrayRecord()
        for name, array in fake_grid.sent_model(message).items():
            value = array.numpy()
            if array.dtype == "bfloat16":
                value = value.view(ml_dtypes.bfloat16)
            kind = value.dtype
            record[name] = Array(np.asarray(value.astype("f8") + 1).astype(kind))
        return fake_grid.reply(message, record)

    result = robust.start(FakeGrid(dict.fromkeys(range(3), answer)), start, 2)
    assert result.train_metrics_clientapp[2]["accepted"] == 3
    for name, array in result.arrays.items():
        assert array.dtype == start[name].dtype and array.shape == start[name].shape
        assert len(array.data) == len(start[name].data)
    assert result.arrays["count"].numpy() == 7
    new, old = result.arrays["big"].numpy(), start["big"].numpy()
    if dtype == "bfloat16":
        new, old = new.view(ml_dtypes.bfloat16), old.view(ml_dtypes.bfloat16)
    moved = new.astype("f8") - old.astype("f8")
    np.testing.assert_allclose(moved, 2, atol=0.05)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("mask", np.float32([0, -np.inf]), "got NaN or infinity in 'mask'"),
        ("phase", np.complex64([1]), "got complex64 in 'phase'"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(name, array, message):
    record = ArrayRecord({**model(), name: Array(array)})
    with pytest.raises(ValueError, match=message):
        run(byzjax.mean(), start=record)
    with pytest.raises(ValueError, match="floating-point arrays, got the arrays"):
        run(byzjax.mean(), start=ArrayRecord({"count": model()["count"]}))


@pytest.mark.parametrize(
    "array",
    [
        np.float32(3.0).reshape(()),
        np.ones((2, 0), np.float32),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.ones((3, 2), ml_dtypes.bfloat16),
        np.float16([1, 2]),
    ],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_arrays_are_written_as_numpy_does(array):
    file = io.BytesIO()
    np.save(file, array)
    assert npy.written(array) == file.getvalue()


def test_large_arrays_are_opened_in_parts():
    """In threads, whatever the order in memory; a number that is none is seen."""
    draws = np.random.default_rng(0)
    mine, sent = draws.normal(size=(2, 1000, 1001)).astype(np.float32)
    for like in (np.ascontiguousarray, np.asfortranarray):
        opened = Model(ArrayRecord({"w": Array(mine), "b": Array(np.ones(3))}))
        row = np.empty(opened.columns, np.float32)
        reply = ArrayRecord({"w": Array(like(sent)), "b": Array(np.zeros(3))})
        opened.update(reply, row)
        np.testing.assert_array_equal(row[:-3], (sent - mine).ravel())
        np.testing.assert_array_equal(row[-3:], -1)
    for bad, why in ((np.nan, "has NaN"), (1.5e19, "is huge")):
        spoiled = sent.copy()
        spoiled[0, 0] = spoiled[-1, -1] = bad
        reply["w"] = Array(spoiled)
        opened = Model(ArrayRecord({"w": Array(mine), "b": Array(np.ones(3))}))
        with pytest.raises(npy.Rejected, match=why):
            opened.update(reply, row)
    reply["w"] = Array(np.where(spoiled > 1e18, 1e18, sent).astype(np.float32))
    opened.update(reply, row)


def test_weights_for_a_rule_that_takes_none_are_refused():
    with pytest.raises(ValueError, match="krum has no weighted form"):
        run(byzjax.krum(2), max_share=0.5)


@pytest.mark.parametrize("rounds_seen", [1, 2])
def test_a_rule_that_serves_one_number_keeps_the_model_with_another(rounds_seen):
    start = model()
    nodes = {**dict.fromkeys(range(1, 7), honest), 7: silent}
    robust = RobustStrategy(
        byzjax.foolsgold(num_workers=7),
        num_byzantine=1,
        fraction_evaluate=0.0,
        round_seconds=1.0,
    )
    result = robust.start(FakeGrid(nodes), start, rounds_seen)
    np.testing.assert_array_equal(flat(result.arrays), flat(start))


def test_a_fault_of_the_strategy_itself_is_no_refusal(monkeypatch):
    def broken(*args):
        raise ValueError("a fault")

    monkeypatch.setattr(Programs, "aggregate", broken)
    with pytest.raises(ValueError, match="a fault"):
        run(byzjax.median())


def test_a_rule_that_needs_more_nodes_keeps_the_model(monkeypatch):
    monkeypatch.setattr(conversation, "_RECONNECT", 0.1)
    start = model()
    result, _ = run(byzjax.krum(4), start=start, rounds=2)
    np.testing.assert_array_equal(flat(result.arrays), flat(start))
    assert result.train_metrics_clientapp[2]["model-kept"] == 1


def test_a_step_that_is_not_finite_keeps_the_model():
    start = model(dtype="float16")
    result, _ = run(byzjax.mean(), start=start, server=optax.sgd(1e6))
    np.testing.assert_array_equal(flat(result.arrays), flat(start))
    assert result.train_metrics_clientapp[1]["model-kept"] == 1


def test_f_as_a_share_makes_the_rule():
    made = []

    def rule(f):
        made.append(f)
        return byzjax.trimmed_mean(f)

    _, robust = run(rule, nodes=range(1, 21), num_byzantine=0.2, rounds=3)
    assert set(made) == {1, 4} and made.count(4) == 1  # Tried once with 1.
    assert robust.compiled == 1


def test_the_same_number_of_replies_is_one_program():
    _, robust = run(byzjax.median(), rounds=4)
    assert robust.compiled == 1

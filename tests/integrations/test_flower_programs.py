"""How many programs are compiled, and that who is absent changes no result."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, Message

import byzjax
from byzjax.integrations.flower import RobustStrategy
from byzjax.integrations.flower.programs import rows_kept, rows_used
from byzjax.integrations.flower.settings import Settings
from tests.integrations import hostile
from tests.integrations.fake_grid import FakeGrid, honest, lost, model, moved
from tests.integrations.test_flower_learning import flat, run, updates


def network(absent, nodes, answer=lost):
    return FakeGrid(dict.fromkeys(nodes, honest) | dict.fromkeys(absent, answer))


def compiled(rule, f, sizes):
    """Programs after rounds of 7 nodes in which so many are absent."""
    robust = RobustStrategy(rule, num_byzantine=f, fraction_evaluate=0.0)
    for count in sizes:
        grid = network(range(1, 1 + count), range(1, 8))
        result = robust.start(grid, model(), 1)
        metrics = result.train_metrics_clientapp[1]
        assert metrics["accepted"] == 7 - count and metrics["model-kept"] == 0
        assert sum(key.startswith("influence.") for key in metrics) == 7 - count
    return robust.compiled


def test_any_number_of_replies_is_two_programs():
    """One with all of them, and one with any others."""
    assert compiled(byzjax.median(), 1, (0, 1, 2, 3, 4, 2, 1, 0, 3, 4)) == 2
    assert compiled(byzjax.krum(1), 1, (0, 0, 1, 2)) == 2
    # Rules over subsets are not written for rows that are absent.
    assert compiled(byzjax.mda(1), 1, (0, 1, 2, 1, 0)) == 3


HUGE = hostile.values(1e15)  # Finite: it counts, and stays in its row.


NAN = hostile.values(np.nan)


@pytest.mark.parametrize(
    ("rule", "answer", "worker"),
    [
        (byzjax.trimmed_mean(2), NAN, None),
        (byzjax.krum(2), NAN, byzjax.momentum(0.5)),
        (byzjax.nnm(byzjax.median(), 2), lost, None),
        (byzjax.mda(2), NAN, None),
    ],
    ids=["coordinates", "geometric, momentum", "mixed", "no form for absent rows"],
)
def test_who_is_absent_changes_no_result(rule, answer, worker):
    """Whatever a refused reply left in its row, in this round or in the one before."""
    nodes, absent, start = range(1, 13), (3, 8, 12), model()
    robust = RobustStrategy(
        rule,
        num_byzantine=2,
        fraction_evaluate=0.0,
        worker=worker,
        key=jax.random.key(0),
    )
    if worker is None:
        first = robust.start(network(nodes, nodes, HUGE), start, 1)
        assert first.train_metrics_clientapp[1]["accepted"] == 12
    result = robust.start(network(absent, nodes, answer), start, 1)
    rows = updates(start, [node for node in nodes if node not in absent])
    wanted = rule.aggregate(jnp.asarray(rows, jnp.float32))
    step = flat(result.arrays) - flat(start)
    np.testing.assert_allclose(step, wanted, atol=3e-6)
    metrics = result.train_metrics_clientapp[1]
    shares = {k: v for k, v in metrics.items() if k.startswith("influence.")}
    assert len(shares) == 9
    # Where it is measured, then on coordinates that are drawn.
    assert sum(shares.values()) == pytest.approx(1, abs=0.15)


def test_shares_are_capped_of_those_that_are_present():
    def claims(message, grid):
        return honest_with(message, 10**12)

    def honest_with(message, examples):
        record = moved(message.content["arrays"], 1.0, 0.1)
        content = honest(message, None).content
        content["arrays"], content["metrics"]["num-examples"] = record, examples
        return Message(content, reply_to=message)

    robust = RobustStrategy(
        byzjax.mean(), num_byzantine=1, fraction_evaluate=0.0, max_share=0.3
    )
    grid = network([2, 3], range(1, 7))
    grid.nodes[1] = claims
    metrics = robust.start(grid, model(), 1).train_metrics_clientapp[1]
    assert metrics["influence.1"] == pytest.approx(0.3, abs=1e-3)
    assert "influence.2" not in metrics


def test_nobody_is_left_out_of_many_replies():
    result, robust = run(byzjax.median(), nodes=range(1, 36), num_byzantine=4)
    metrics = result.train_metrics_clientapp[1]
    shares = [v for k, v in metrics.items() if k.startswith("influence.")]
    assert metrics["accepted"] == len(shares) == 35
    assert sum(shares) == pytest.approx(1, abs=0.15)
    assert robust.compiled == 1


def test_rules_without_a_form_for_absent_rows_thin_many_replies_at_random():
    """Who is left out has no influence, and is told so."""
    result, robust = run(byzjax.mda(1), nodes=range(1, 36), num_byzantine=1)
    metrics = result.train_metrics_clientapp[1]
    shares = [v for k, v in metrics.items() if k.startswith("influence.")]
    assert metrics["accepted"] == len(shares) == 35
    assert robust.compiled == 1


def test_programs_are_bounded_by_the_numbers_of_rows():
    assert len({rows_used(m, 3) for m in range(1, 1025)}) == 32 + 80
    assert len({rows_kept(n) for n in range(1, 1025)}) == 32 + 80
    for m in range(1, 5000):
        n = rows_used(m, 3)
        assert m * 16 / 17 <= n <= m and rows_used(n, 3) == n
        n = rows_kept(m)
        assert m <= n <= m * 17 / 16 and rows_kept(n) == n
    assert rows_used(33, 33) == 33 and rows_used(39, 33) == 38


def test_programs_are_bounded_where_f_is_a_share():
    """f is decided by how many are drawn, and so is the number of rows."""
    settings = mock.Mock(num_byzantine=0.2)
    sizes = {(Settings.f(settings, n)[1], rows_kept(n)) for n in range(1, 1025)}
    assert len(sizes) == 295
    assert len({size for size in sizes if size[1] <= 32}) == 32

    sizes = (5, 6, 7, 8, 9, 10)
    robust = RobustStrategy(
        byzjax.trimmed_mean, num_byzantine=0.2, fraction_evaluate=0.0
    )
    for size in sizes:
        for absent in ((), (1,), (1, 2)):
            robust.start(network(absent, range(1, size + 1)), model(), 1)
    assert robust.compiled <= 2 * len(sizes)


def test_a_model_of_one_number():
    record = model()
    for name in ("w", "big", "count"):
        del record[name]
    record["b"] = Array(np.asarray(1, np.float32))
    result, _ = run(byzjax.median(), start=record, nodes=range(1, 5), num_byzantine=1)
    assert result.train_metrics_clientapp[1]["accepted"] == 4

"""A run goes on where it was when its server was killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("flwr")

import byzjax
from byzjax.integrations.flower import RobustStrategy, checkpoint, conversation
from tests.integrations import fake_grid
from tests.integrations.fake_grid import FakeGrid, arrays, honest, model

NODES = range(1, 6)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def strategy(path, rule=None, server=None):
    return RobustStrategy(
        byzjax.centered_clipping(1.0) if rule is None else rule,
        num_byzantine=1,
        worker=byzjax.momentum(0.5),
        server=optax.adam(0.1) if server is None else server,
        fraction_evaluate=0.0,
        checkpoint=path,
    )


def start(robust, rounds, **options):
    grid = FakeGrid(dict.fromkeys(NODES, honest))
    return robust.start(grid, model(**options), rounds), grid


def same(a, b):
    for name, value in arrays(a).items():
        np.testing.assert_array_equal(value, arrays(b)[name])


def test_resumed_is_as_if_never_stopped(tmp_path):
    whole, _ = start(strategy(tmp_path / "a"), 5)
    start(strategy(tmp_path / "b"), 2)
    robust = strategy(tmp_path / "b")
    rest, grid = start(robust, 5)
    same(whole.arrays, rest.arrays)
    assert len(grid.asked) == 3 * 5
    assert list(rest.train_metrics_clientapp) == [3, 4, 5]
    assert robust.histories[1].asked == 5


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"server": optax.sgd(0.1, momentum=0.9)}, {"server": optax.rmsprop(0.1)}),
        ({"worker": optax.trace(0.9)}, {"worker": optax.scale_by_rms()}),
    ],
    ids=["server", "worker"],
)
def test_states_of_one_shape_are_not_taken_for_each_other(tmp_path, first, then):
    """A velocity as a second moment makes steps that are no numbers."""
    start(fake_grid.strategy(checkpoint=tmp_path / "a", **first), 1)
    with pytest.raises(ValueError, match="with, got another: give the same argu"):
        start(fake_grid.strategy(checkpoint=tmp_path / "a", **then), 2)


def test_a_run_that_goes_on_waits_for_its_nodes(tmp_path, monkeypatch):
    """Clients take longer to find a server anew than nodes that left are waited for."""
    monkeypatch.setattr(conversation, "_RECONNECT", 0.1)
    start(strategy(tmp_path / "a"), 1)
    began = time.monotonic()

    class Returning(FakeGrid):
        def get_node_ids(self):
            return super().get_node_ids() if time.monotonic() - began > 1.5 else []

    grid = Returning(dict.fromkeys(NODES, honest))
    rest = strategy(tmp_path / "a").start(grid, model(), 3)
    assert [x["model-kept"] for x in rest.train_metrics_clientapp.values()] == [0, 0]


def test_a_run_that_is_done_asks_nobody(tmp_path):
    done, _ = start(strategy(tmp_path / "a"), 2)
    again, grid = start(strategy(tmp_path / "a"), 2)
    same(done.arrays, again.arrays)
    assert not grid.asked


KILLED = """
import os, signal, sys
import optax
import byzjax
from tests.integrations import fake_grid
from tests.integrations.test_flower_checkpoint import NODES, strategy

def answer(message, grid):
    if message.content["config"]["server-round"] == 3 and len(grid.asked) > 2:
        if sum(grid.pulled.values()) > 12:
            os.kill(os.getpid(), signal.SIGKILL)
    return fake_grid.honest(message, grid)

grid = fake_grid.FakeGrid(dict.fromkeys(NODES, answer))
strategy(sys.argv[1]).start(grid, fake_grid.model(), 5)
"""


def test_killed_in_the_middle_of_a_round(tmp_path):
    whole, _ = start(strategy(tmp_path / "a"), 5)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "b")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    rest, grid = start(strategy(tmp_path / "b"), 5)
    assert len(grid.asked) == 3 * 5
    same(whole.arrays, rest.arrays)


def test_a_link_stays_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere" / "b")
    done, _ = start(strategy(tmp_path / "a"), 1)
    assert (tmp_path / "a").is_symlink()
    again, grid = start(strategy(tmp_path / "elsewhere" / "b"), 1)
    same(done.arrays, again.arrays)
    assert not grid.asked


def test_another_run_that_writes_the_same_file_is_named(tmp_path, monkeypatch):
    def takes_it_away(self, target):
        raise FileNotFoundError(self)

    monkeypatch.setattr(pathlib.Path, "replace", takes_it_away)
    with pytest.raises(RuntimeError, match="which another run writes as well"):
        start(strategy(tmp_path / "a"), 1)


def test_an_unfinished_file_is_nobodys(tmp_path):
    done, _ = start(strategy(tmp_path / "a"), 1)
    (tmp_path / ".a.unfinished").write_bytes(b"half")
    again, _ = start(strategy(tmp_path / "a"), 1)
    same(done.arrays, again.arrays)
    start(strategy(tmp_path / "a"), 2)
    assert [x.name for x in tmp_path.iterdir()] == ["a"]


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "a"
    start(strategy(path), 1)
    with pytest.raises(ValueError, match="checkpoint of the model it is given"):
        start(strategy(path), 1, counter=False)
    with pytest.raises(ValueError, match="server that its checkpoint was written"):
        start(strategy(path, server=optax.adagrad(0.1)), 1)
    with pytest.raises(ValueError, match="rule that its checkpoint was written with"):
        start(strategy(path, rule=byzjax.median()), 1)
    for bad in (b"", b"garbage", path.read_bytes()[:100]):
        path.write_bytes(bad)
        # Not NumPy's own words, which advise to unpickle it.
        with pytest.raises(ValueError, match=r"needs a checkpoint .*it is no archive"):
            start(strategy(path), 1)
    checkpoint.write(path, {}, {})
    arrays, facts = checkpoint.read(path)
    assert not arrays and facts == {"version": 4, "arrays": [], "viewed": {}}


@pytest.mark.parametrize("first", ["kept", "learnt"])
@pytest.mark.parametrize(
    "options",
    [
        dict(server=optax.adam(0.1, mu_dtype=jnp.bfloat16)),
        dict(worker=optax.trace(0.9, accumulator_dtype=jnp.bfloat16)),
        dict(
            server=optax.GradientTransformation(
                lambda params: 0, lambda g, state, params=None: (g, state + 1)
            )
        ),
    ],
    ids=["bfloat16 server", "bfloat16 worker", "python int"],
)
def test_states_of_every_kind_come_back(options, first, tmp_path):
    def of():
        return RobustStrategy(
            byzjax.median(),
            num_byzantine=1,
            fraction_evaluate=0.0,
            round_seconds=1.0,
            checkpoint=tmp_path / "a",
            **options,
        )

    few = dict.fromkeys(NODES, lambda message, grid: None) if first == "kept" else {}
    of().start(FakeGrid(dict.fromkeys(NODES, honest) | few), model(), 1)
    result = of().start(FakeGrid(dict.fromkeys(NODES, honest)), model(), 2)
    assert result.train_metrics_clientapp[2]["model-kept"] == 0


def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path):
    path = tmp_path / "a"
    start(strategy(path), 1)
    whole = path.read_bytes()
    before, facts = checkpoint.read(path)
    draws = np.random.default_rng(0)
    refused = 0
    for place in [*draws.integers(0, len(whole), 300), *range(-700, 0)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draws.integers(8)
        path.write_bytes(damaged)
        try:
            arrays, found = checkpoint.read(path)
        except ValueError as error:
            assert str(error).startswith("RobustStrategy needs a checkpoint of its own")
            refused += 1
            continue
        assert found == facts and arrays.keys() == before.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, before[name])
    assert refused > 500


def test_what_another_worker_remembers_is_refused(tmp_path):
    def of(worker):
        return RobustStrategy(
            byzjax.median(),
            num_byzantine=1,
            worker=worker,
            fraction_evaluate=0.0,
            checkpoint=tmp_path / "a",
        )

    start(of(byzjax.momentum(0.9)), 2)
    with pytest.raises(ValueError, match="worker that its checkpoint was written with"):
        start(of(optax.trace(0.9)), 3)


def test_a_run_without_an_aggregate_so_far_goes_on(tmp_path):
    def rule(f):
        assert f > 0  # No round had none.
        return byzjax.median()

    def of():
        return RobustStrategy(
            rule, num_byzantine=0.2, fraction_evaluate=0.0, checkpoint=tmp_path / "a"
        )

    grid = FakeGrid(dict.fromkeys(NODES, lambda message, grid: None))
    of().start(grid, model(), 1, timeout=3)
    rest, _ = start(of(), 2)
    assert rest.train_metrics_clientapp[2]["model-kept"] == 0

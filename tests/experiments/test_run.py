"""The runner and the command line: killed runs, figures in their quick form."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import __main__ as command_line
from experiments import parallel, store, table
from experiments.config import Config, grid
from experiments.figures import FIGURES, THEORY
from experiments.plan import plan
from experiments.run import run

ROOT = pathlib.Path(__file__).parents[2]
SMALL = Config(
    dataset="digits",
    model="mlp",
    num_workers=3,
    num_byzantine=1,
    batch_size=2,
    steps=120,
    eval_every=3,
    rule="median",
    optimizer="mu2sgd",
)
FAST = {"compiler_options": command_line.UNOPTIMISED}


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


def all_there(folder):
    """A checkpoint, and rows after it."""
    path = folder / "seed-0.jsonl"
    steps = [int(p.name) for p in folder.glob("checkpoint-0/*") if p.name.isdecimal()]
    return steps and path.is_file() and path.read_text().count("\n") * 3 > max(steps)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    code = (
        "from tests.experiments.test_run import *\n"
        f"run([SMALL], 1, out={str(killed)!r}, checkpoint_seconds=0.0, **FAST)"
    )
    folder = store.folder(killed, SMALL)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while not all_there(folder):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    path = folder / "seed-0.jsonl"
    assert 0 < path.read_text().count("\n") < 40
    assert not store.is_finished(killed, SMALL, 0)
    with path.open("a") as file:
        file.write('{"step": 99, "lo')  # As a kill in the middle of a write leaves it.

    (resumed,) = run([SMALL], 1, out=killed, **FAST)
    run([SMALL], 1, out=whole, **FAST)
    assert path.read_bytes() == (store.folder(whole, SMALL) / path.name).read_bytes()
    assert resumed.steps.tolist() == list(range(3, 121, 3))
    assert not list(folder.glob("checkpoint*"))
    # It went on from a checkpoint instead of starting again.
    (first,), (second,) = (store.timings(out, SMALL) for out in (killed, whole))
    assert first["from_step"] > 0 and second["from_step"] == 0


def test_finished_seeds_are_skipped_and_seeds_may_be_together(tmp_path, capsys):
    config = dataclasses.replace(
        *(SMALL,), steps=4, eval_every=2, learning_rate=1e30, max_grad_norm=None
    )
    (result,) = run([config, config], 2, out=tmp_path, together=True, **FAST)
    assert result.seeds == (0, 1) and result.accuracy.shape == (2, 2)
    said = " ".join(capsys.readouterr().out.split())
    assert "seed 1: the loss became non-finite between steps 0 and 2" in said
    text = (store.folder(tmp_path, config) / "seed-1.jsonl").read_text()
    assert all(json.loads(line)["loss"] is None for line in text.splitlines()[1:])
    assert json.loads((store.folder(tmp_path, config) / "config.json").read_text()) == (
        dataclasses.asdict(config)
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}
    assert run([config], 1, out=tmp_path)[0].seeds == (0,)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}
    assert before == after


@pytest.mark.slow
def test_every_figure_in_its_quick_form(tmp_path, capsys):
    common = ["all", "--quick", "--seeds", "1", "--out", str(tmp_path)]
    assert command_line.main(["run", *common, "--tensorboard"]) == 0
    for name in [*FIGURES, *THEORY]:
        for suffix in (".png", ".csv", ".md"):
            path = tmp_path / "figures" / f"{name}-quick{suffix}"
            assert path.stat().st_size > 100
    assert list((tmp_path / "tensorboard").rglob("events*"))
    shared = {path.name for path in (tmp_path / "runs").iterdir()}
    assert len(shared) < 2 * len(FIGURES)
    capsys.readouterr()
    assert command_line.main(["plan", *common]) == 0
    assert capsys.readouterr().out.count(" 0 to do") == 2
    assert command_line.main(["table", "fig3", *common[1:]]) == 0
    assert "ctma(nnm(geometric_median))" in capsys.readouterr().out


def test_a_plan_times_what_was_never_run(tmp_path):
    said = plan([SMALL, SMALL], 2, out=tmp_path)
    assert "timed just now" in said
    assert "1 configurations × 2 seeds: 0 runs finished, 2 to do, about" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "fig3"], ["--data-dir", "--download", "dataset=digits"]),
        (["run", "fig3", "--set", "rule=crum"], ["'crum'", "ctma"]),
        (["run", "fig3", "--set", "f=3"], ["f=3", "num_byzantine"]),
        (["plot", "fig3"], ["no finished runs", "run fig3"]),
    ],
)
def test_errors_are_one_message(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BYZJAX_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert command_line.main(arguments) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and "Traceback" not in said


def test_the_list_names_every_figure(capsys):
    assert command_line.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in [*FIGURES, *THEORY])


def test_tables_of_known_numbers():
    steps = [1, 2]
    results = [
        store.Result(
            Config(rule=rule, optimizer=optimizer),
            (0, 1),
            store.np.array(steps),
            {"test_accuracy": store.np.array([[0.0, last], [0.0, last + 0.1]])},
        )
        for rule in ("median", "mean")
        for optimizer, last in (("momentum", 0.5), ("mu2sgd", 0.7))
    ]
    assert table.cells(results[:3]) == [
        ["rule", "momentum", "mu2sgd"],
        ["median", "0.550 ± 0.071", "0.750 ± 0.071"],
        ["mean", "0.550 ± 0.071", ""],
    ]
    assert table.markdown(results).startswith("| rule | momentum | mu2sgd |\n| --- |")
    assert table.missing(results, 5, 2) == "2 of 10 runs are not finished"
    assert len(table.as_csv(results).splitlines()) == 1 + 4 * 2 * 2


@pytest.mark.slow
def test_processes_side_by_side_give_the_numbers_of_one(tmp_path, capsys):
    alone, together = tmp_path / "alone", tmp_path / "together"
    start = dataclasses.replace(SMALL, steps=6)
    configs = grid(start, rule=["median", "mean", "krum(num_byzantine=0)"])
    configs.append(dataclasses.replace(start, learning_rate=1e30, max_grad_norm=None))
    run(configs, 1, out=alone, **FAST)
    capsys.readouterr()
    run(configs, 1, out=together, jobs=2, **FAST)
    for config in configs:
        first, second = (store.rows(out, config, 0) for out in (alone, together))
        # XLA divides some sums by the number of cores, which is another here.
        for one, other in zip(first, second, strict=True):
            assert one == pytest.approx(other, rel=1e-5, nan_ok=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "24/24" in said and "seed 0: the loss became non-finite" in said


def fails(item, advance, say):
    advance(1)
    raise OSError(f"no room for {item}")


def dies(item, advance, say):
    os._exit(3)


@pytest.mark.parametrize("work, words", [(fails, "no room for 7"), (dies, "status 3")])
def test_what_goes_wrong_in_a_process_is_said(work, words):
    with pytest.raises(RuntimeError, match=words):
        parallel.spread(work, [7], 2, lambda steps: None, print)

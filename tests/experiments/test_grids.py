"""Grids from the command line and from a file of one's own, parts of them, progress."""

import dataclasses
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import __main__ as command_line
from experiments import choice, compilation, data, names, own, store, table
from experiments.config import Config, grid
from experiments.progress import Progress
from tests.test_pages import blocks

ROOT = pathlib.Path(__file__).parents[2]
TINY = Config(
    dataset="digits",
    model="mlp",
    num_workers=5,
    num_byzantine=1,
    batch_size=2,
    steps=4,
    eval_every=2,
)


@pytest.fixture(scope="module")
def my_grid(tmp_path_factory):
    """The file in experiments/README.md, read."""
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("own") / "my_grid.py"
    path.write_text(blocks(text)[0], encoding="utf-8")
    own.load(path)
    return path


@pytest.fixture
def _no_compilation_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


# --- a file of one's own --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("_no_compilation_cache")
def test_a_grid_of_ones_own_ends_with_the_same_bits_when_killed(my_grid, tmp_path):
    """Two processes that train what only the file knows; killed, begun again."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    configs = own.load(my_grid).configs()[:3]
    arguments = ["run", "--config", str(my_grid), "--first", "3", "--seeds", "1"]
    arguments += ["--out"]
    start = [sys.executable, "-m", "experiments", *arguments, str(killed)]
    start += ["--jobs", "2", "--checkpoint-seconds", "0"]
    paths = [store.metrics_path(killed, config, 0) for config in configs]

    def rows():
        return [len(path.read_bytes().splitlines()) for path in paths if path.is_file()]

    with subprocess.Popen(start, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while max(rows(), default=0) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not all(store.is_finished(killed, config, 0) for config in configs)
    assert command_line.main([*arguments, str(killed), "--jobs", "1"]) == 0
    assert command_line.main([*arguments, str(whole), "--jobs", "1"]) == 0
    for config, path in zip(configs, paths, strict=True):
        assert path.read_bytes() == store.metrics_path(whole, config, 0).read_bytes()
    results = store.load(whole, configs)
    accuracy = {(r.config.rule, r.config.attack): r.final[0] for r in results}
    assert accuracy["mean", "shout"] < 0.5 < 0.8 < accuracy["ctma(midrange)", "shout"]
    for suffix in (".png", ".md", ".csv"):
        assert (whole / "figures" / f"my_grid{suffix}").stat().st_size > 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("configs = 3", ["configs()"]),
        ("1 / 0", ["division by zero"]),
        (
            "from experiments.names import register\nregister(rules={'median': abs})",
            ["'median'", "free"],
        ),
        (None, ["Python file"]),
    ],
)
def test_a_file_that_is_none_says_why(text, words, tmp_path, capsys):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    assert command_line.main(["run", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in [*words, str(path)]), said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_images": np.zeros((3, 2), np.int64)}, "uint8 or floats"),
        ({"test_images": np.zeros((2, 5))}, "one shape"),
        ({"train_labels": np.zeros(2, int)}, r"\(3, 2\) and \(2,\)"),
        ({"test_labels": np.array([0, -1])}, "labels"),
        ({"train_images": np.full((3, 2), np.nan)}, "finite"),
    ],
)
def test_data_that_are_none_are_refused(change, words):
    good = data.Dataset(
        "", np.zeros((3, 2)), np.array([0, 1, 2]), np.zeros((2, 2)), np.array([0, 1])
    )
    read = data.named("mine", good)()
    assert (read.name, read.classes, read.train_images.dtype) == ("mine", 3, np.float32)
    with pytest.raises(data.DataError, match=words):
        data.named("mine", good._replace(**change))()


@pytest.mark.parametrize("given", [{"rules": {"a b": abs}}, {"models": {"x": 3}}])
def test_what_cannot_be_registered(given):
    with pytest.raises((ValueError, TypeError), match="register needs"):
        names.register(**given)


# --- grids and parts of them ----------------------------------------------------------


def chosen(*arguments):
    return choice.chosen(command_line._parser().parse_args(["run", *arguments]))


def test_a_grid_from_the_command_line():
    options = ["--grid", "attack=mimic(worker=1, warmup=2),little"]
    options += ["--grid", "rule=median", "--grid", "rule=ctma(nnm(median))"]
    options += ["--grid", "learning_rate=0.1,1", "--set", "num_byzantine=2"]
    (configs,) = chosen(*options).figures.values()
    want = grid(
        Config(num_byzantine=2),
        attack=["mimic(worker=1, warmup=2)", "little"],
        rule=["median", "ctma(nnm(median))"],
        learning_rate=[0.1, 1.0],
    )
    assert set(configs) == set(want) and len(configs) == 8
    assert chosen("fig1", "--first", "2").figures.keys() == {"fig1"}
    assert len(chosen("fig1", "--grid", "batch_size=2,4").figures["fig1"]) == 2 * 34


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs a FIGURE"),
        (["figure3"], "figure3"),
        (["--grid", "rules=median"], "rules=median"),
        (["--grid", "rule=median,,mean"], "median,,mean"),
        (["--grid", "rule=medium"], "'medium'"),
    ],
)
def test_what_is_no_grid(arguments, words):
    with pytest.raises(ValueError, match=words):
        chosen(*arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_compilation_cache")
def test_shards_are_the_whole(tmp_path, capsys):
    grid_of = ["--grid", "rule=median,mean", "--quick", "--seeds", "1"]
    grid_of += ["--out", str(tmp_path), "--name", "mine", "--set", "dataset=digits"]
    for part, finished in ((1, 1), (2, 2)):
        assert command_line.main(["run", *grid_of, "--shard", f"{part}/2"]) == 0
        assert len(list(tmp_path.glob("runs/*/seed-0.jsonl"))) == finished
        assert f"Part {part} of 2" in capsys.readouterr().out
    assert not (tmp_path / "figures").exists()
    assert command_line.main(["table", *grid_of]) == 0
    said = capsys.readouterr().out
    assert "not finished" not in said and "‖A − honest mean‖" in said
    for bad in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(SystemExit):
            command_line.main(["run", "fig1", "--shard", bad])


# --- what can be seen of it -----------------------------------------------------------


def test_progress_is_lines_where_there_is_no_terminal():
    file = io.StringIO()
    with Progress(Console(file=file), 10, "two things", seconds=0.0) as progress:
        progress.describe("the first [median]")
        progress.advance(4)
        progress.say("something is wrong")
        progress.advance(6)
    lines = file.getvalue().splitlines()
    assert lines[0] == "0/10 steps, 0 s: two things"
    assert re.fullmatch(
        r"4/10 steps, 0 s, about 0 s left: the first .median.", lines[1]
    )
    assert lines[2:] == ["something is wrong", "10/10 steps, 0 s: the first [median]"]
    file = io.StringIO()
    with Progress(Console(file=file), 10, "rarely", seconds=1e9) as progress:
        for _ in range(5):
            progress.advance(1)
    assert len(file.getvalue().splitlines()) == 2


def test_files_of_results_are_read_as_they_were_written():
    results = [
        store.Result(
            dataclasses.replace(TINY, rule=rule, max_grad_norm=None),
            (0, 2),
            np.array([2, 4]),
            {
                "test_accuracy": np.array([[0.1, 0.25], [0.5, 0.75]]),
                "test_loss": np.array([[3.0, np.nan], [2.5, 1.25]]),
                "honest_distance": np.array([[1e-7, 2.0], [3.0, 4.0]]),
            },
        )
        for rule in ("median", "ctma(nnm(median))")
    ]
    read = table.read_csv(table.as_csv(results))
    for got, want in zip(read, results, strict=True):
        assert got[:2] == want[:2] and got.steps.tolist() == want.steps.tolist()
        jax.tree.map(np.testing.assert_array_equal, got.metrics, want.metrics)
    head, first, _ = table.details(results)
    assert head == ["rule", "test accuracy", "test loss", "‖A − honest mean‖"]
    assert first == ["median", "0.500 ± 0.354", "nan ± nan", "3 ± 1.41"]
    with pytest.raises(ValueError, match="columns"):
        table.read_csv("step,loss\n1,2\n")


def test_compiled_programs_are_kept(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    for name in names:
        monkeypatch.setenv(name, "before")  # So that they are put back.
        monkeypatch.delenv(name)
    try:
        assert compilation.keep(tmp_path) == tmp_path / "xla"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")
        assert os.environ[names[0]] == str(tmp_path / "xla")
        monkeypatch.setenv(names[0], "elsewhere")
        assert compilation.keep(tmp_path) == pathlib.Path("elsewhere")
        monkeypatch.setenv(names[0], "")
        assert compilation.keep(tmp_path) is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)

"""Where runs live: `OUT/runs/<digest>/` with config.json, seed-0.jsonl.

A file of metrics has one row of JSON an evaluation, and nothing of time or place, so
that equal runs give equal files. What finished when, and how fast, is in timing.jsonl.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments.config import Config

Row = dict[str, Any]


class Result(NamedTuple):
    """The finished seeds of a configuration."""

    config: Config
    seeds: tuple[int, ...]
    steps: np.ndarray  # [evaluations]
    metrics: dict[str, np.ndarray]  # Each [seeds, evaluations]; NaN where not finite.

    @property
    def accuracy(self) -> np.ndarray:
        """Of the test set, [seeds, evaluations]."""
        return self.metrics["test_accuracy"]

    @property
    def final(self) -> np.ndarray:
        """Test accuracy after the last step, [seeds]."""
        return self.accuracy[:, -1]


def folder(out: pathlib.Path, config: Config) -> pathlib.Path:
    """Where a configuration's runs are; the same for every figure that has it."""
    return out / "runs" / config.digest()


def metrics_path(out: pathlib.Path, config: Config, seed: int) -> pathlib.Path:
    return folder(out, config) / f"seed-{seed}.jsonl"


@contextlib.contextmanager
def opened(out: pathlib.Path, config: Config) -> Iterator[pathlib.Path]:
    """A configuration's folder, for one process at a time; others wait."""
    path = folder(out, config)
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    replace(path / "config.json", text)
    with (path / "lock").open("w") as lock:
        # A lock dies with its process. Windows has none: one process there, please.
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def rows(out: pathlib.Path, config: Config, seed: int) -> list[Row]:
    """The whole rows of a file; a last one cut short by a kill is not one."""
    path = metrics_path(out, config, seed)
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def is_finished(out: pathlib.Path, config: Config, seed: int) -> bool:
    found = rows(out, config, seed)
    return bool(found) and found[-1]["step"] == config.steps


def append(path: pathlib.Path, row: Row) -> None:
    """Adds a row, on the disk when this returns."""
    row = {name: _plain(value) for name, value in row.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """For JSON: float32 in as few digits as tell it apart, None for NaN and ±Inf."""
    if isinstance(value, np.floating):
        value = float(str(value))
    elif isinstance(value, np.integer):
        value = int(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def truncate(out: pathlib.Path, config: Config, seed: int, step: int) -> bool:
    """Drops the rows after a step; False if those before it are not all there."""
    kept = [row for row in rows(out, config, seed) if row["step"] <= step]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    replace(metrics_path(out, config, seed), text)
    return len(kept) == step // config.eval_every


def timings(out: pathlib.Path, config: Config) -> list[Row]:
    path = folder(out, config) / "timing.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def load(
    out: str | os.PathLike[str], configs: Iterable[Config], seeds: int | None = None
) -> list[Result]:
    """What is finished of some configurations, in their order; of the first seeds."""
    results, out = [], pathlib.Path(out)
    for config in configs:
        found = sorted(
            int(path.stem.removeprefix("seed-"))
            for path in folder(out, config).glob("seed-*.jsonl")
        )
        done = [
            seed
            for seed in found
            if (seeds is None or seed < seeds) and is_finished(out, config, seed)
        ]
        if not done:
            continue
        table = [rows(out, config, seed) for seed in done]
        metrics = {
            name: np.array([[row[name] for row in each] for each in table], float)
            for name in table[0][0]
            if name != "step"
        }
        steps = np.array([row["step"] for row in table[0]])
        results.append(Result(config, tuple(done), steps, metrics))
    return results

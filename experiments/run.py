"""Runs configurations: `run(configs, seeds=3)`, which a kill at any moment only delays.

Finished seeds are skipped. A run saves its state now and then, and starts from there
the next time; it ends with the bits of a run that was never stopped.
"""

import functools
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
from rich.console import Console

from experiments import data, parallel, store, train
from experiments import own as own_files
from experiments.config import Config
from experiments.progress import Progress
from experiments.store import Result


def run(
    configs: Iterable[Config],
    seeds: int = 3,
    *,
    out: str | os.PathLike[str] = "out",
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    together: bool | None = None,
    jobs: int = 1,
    checkpoint_seconds: float = 30.0,
    tensorboard: bool = False,
    compiler_options: dict[str, Any] | None = None,
    console: Console | None = None,
    own: str | os.PathLike[str] | None = None,
) -> list[Result]:
    """Trains what is not finished yet, and returns all results.

    Args:
      configs: what to run; the same one twice is run once.
      seeds: how many; they are 0, 1, ….
      out: folder of everything that is written.
      data_dir: of tensorflow-datasets, see `experiments.data.load`.
      cache_dir: of arrays once read.
      download: whether TFDS may download what is missing.
      together: whether the seeds of a configuration are one vmapped program. None:
        on accelerators; on a CPU they would be slower than one after another.
      jobs: how many processes train at once, each on a share of the cores; what calls
        this with more than one must be importable, as multiprocessing asks.
      checkpoint_seconds: how long a run goes before its state is saved.
      tensorboard: whether metrics are also written for TensorBoard.
      compiler_options: see `jax.jit`.
      console: of the progress bar, or of a line now and then.
      own: the file that registers the names in `configs` that are not the project's,
        if processes are to read it too; see `jobs`.

    Raises:
      DataError: if a data set is not there.
    """
    out, console = pathlib.Path(out), console or Console()
    configs = list(dict.fromkeys(configs))
    on_cpu = jax.default_backend() == "cpu"
    together = not on_cpu if together is None else together
    todo = [
        (config, [s for s in range(seeds) if not store.is_finished(out, config, s)])
        for config in configs
    ]
    todo = [(config, missing) for config, missing in todo if missing]
    sets = {
        name: data.load(name, data_dir, cache_dir=cache_dir, download=download)
        for name in {config.dataset for config, _ in todo}
    }
    work = functools.partial(
        _train_all,
        out=out,
        sets=sets,
        together=together,
        checkpoint_seconds=checkpoint_seconds,
        compiler_options=compiler_options,
        own=None if own is None else pathlib.Path(own).resolve(),
    )
    total = sum(config.steps * len(missing) for config, missing in todo)
    what = f"{len(todo)} configurations"
    with Progress(console, total, what) as progress:
        if min(jobs, len(todo)) > 1:
            count = min(jobs, len(todo))
            parallel.spread(work, todo, count, progress.advance, progress.say)
        else:
            for number, item in enumerate(todo, 1):
                config, _ = item
                name = f"{config.attack} {config.rule} {config.optimizer}"
                progress.describe(f"{number}/{len(todo)} {name}")
                work(item, progress.advance, progress.say)
    if tensorboard:
        for config in configs:
            for seed in range(seeds):
                _to_tensorboard(out, config, seed)
    return store.load(out, configs, seeds)


def _train_all(
    item: tuple[Config, list[int]],
    advance: Callable[[int], object],
    say: Callable[[str], object],
    *,
    out: pathlib.Path,
    sets: dict[str, data.Dataset],
    together: bool,
    checkpoint_seconds: float,
    compiler_options: Any,
    own: pathlib.Path | None,
) -> None:
    """Trains some seeds of a configuration, in a program compiled once."""
    if own is not None:
        own_files.load(own)  # Its names, in a process that has not read it yet.
    config, seeds = item
    groups = [seeds] if together else [[seed] for seed in seeds]
    with store.opened(out, config):
        program = _Program(config, sets[config.dataset], compiler_options)
        for group in groups:
            for problem in _train(program, group, out, checkpoint_seconds, advance):
                say(f"{config}: {problem}")
    jax.clear_caches()  # Each configuration is a program of its own.


class _Program:
    """A configuration's functions of several keys, compiled once for all groups."""

    def __init__(
        self, config: Config, dataset: data.Dataset, compiler_options: Any = None
    ) -> None:
        self.config = config
        pieces = train.make_run(config, dataset)
        self.data = pieces.data
        jit = functools.partial(jax.jit, compiler_options=compiler_options)
        self._init = jit(jax.vmap(pieces.init))
        segment = jax.vmap(pieces.segment, in_axes=(None, 0, 0))
        self._segment = jit(segment, donate_argnums=1)

    def init(self, keys: jax.Array):
        return self._init(keys)

    def segment(self, states, keys: jax.Array):
        return self._segment(self.data, states, keys)


def _train(
    program: _Program,
    seeds: Sequence[int],
    out: pathlib.Path,
    checkpoint_seconds: float,
    advance: Callable[[int], object],
) -> list[str]:
    """Trains some seeds together, from their checkpoint if there is one."""
    config = program.config
    folder = store.folder(out, config)
    name = "-".join(str(seed) for seed in seeds)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    paths = [store.metrics_path(out, config, seed) for seed in seeds]
    if all(store.is_finished(out, config, seed) for seed in seeds):
        advance(config.steps * len(seeds))  # By another process, while this one waited.
        return []
    problems: list[str] = []
    checkpoints = (folder / f"checkpoint-{name}").resolve()
    step, states = _restored(checkpoints, program.init(keys))
    # Rows reach the disk before the state does: those up to its step are there, unless
    # the seeds were also trained in other groups in between.
    whole = [store.truncate(out, config, seed, step) for seed in seeds]
    if not all(whole):
        _discard(checkpoints)
        step, states = 0, program.init(keys)
        for seed in seeds:
            store.truncate(out, config, seed, 0)
    with _checkpointer(checkpoints) as checkpointer:
        advance(step * len(seeds))
        timing = {"seeds": list(seeds), "from_step": step}
        begun = compiled = saved = time.monotonic()
        while step < config.steps:
            states, rows = program.segment(states, keys)
            rows = jax.device_get(rows)
            for index, path in enumerate(paths):
                row = {name: value[index] for name, value in rows.items()}
                store.append(path, {"step": row.pop("step")} | row)
            problems += _not_finite(config, seeds, rows, step, problems)
            if step == timing["from_step"]:
                compiled = time.monotonic()
            step += config.eval_every
            advance(config.eval_every * len(seeds))
            if step < config.steps and time.monotonic() - saved >= checkpoint_seconds:
                checkpointer.save(step, jax.tree.leaves(states))
                saved = time.monotonic()
    _discard(checkpoints)
    # A step's time leaves out the first segment, which was mostly compilation.
    timed = (config.steps - timing["from_step"] - config.eval_every) * len(seeds)
    if timed > 0:
        timing["seconds_per_step"] = round((time.monotonic() - compiled) / timed, 6)
    timing["seconds"] = round(time.monotonic() - begun, 3)
    timing |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    store.append(folder / "timing.jsonl", timing)
    return problems


def _checkpointer(folder: pathlib.Path) -> Any:
    """Of the latest state only; one that a kill cut short is not seen."""
    policy: Any = ocp.training.preservation_policies.LatestN(1)
    return ocp.training.Checkpointer(str(folder), preservation_policy=policy)


def _restored(folder: pathlib.Path, states: Any) -> tuple[int, Any]:
    """The latest checkpoint and its step, or else the states given."""
    for partial in folder.glob("*-tmp"):  # What a kill cut short.
        shutil.rmtree(partial)
    leaves, structure = jax.tree.flatten(states)
    with _checkpointer(folder) as checkpointer:
        if checkpointer.latest is None:
            return 0, states
        leaves = checkpointer.load(abstract_state=leaves)
        return checkpointer.latest.step, structure.unflatten(leaves)


def _discard(folder: pathlib.Path) -> None:
    """Deletes checkpoints; a kill leaves them whole or out of the way."""
    away = folder.with_name("discarded")
    shutil.rmtree(away, ignore_errors=True)
    folder.replace(away)
    shutil.rmtree(away)


def _not_finite(config, seeds, rows, step, known) -> list[str]:
    """Says of a seed, once, between which steps its loss was no longer finite."""
    found = []
    for index, seed in enumerate(seeds):
        start = f"seed {seed}: "
        bad = not np.isfinite(rows["loss"][index] + rows["test_loss"][index])
        if bad and not any(problem.startswith(start) for problem in known):
            found.append(
                f"{start}the loss became non-finite between steps {step} and "
                f"{step + config.eval_every}"
            )
    return found


def _to_tensorboard(out: pathlib.Path, config: Config, seed: int) -> None:
    """Writes the rows of a run as events, unless that was done before."""
    from tensorboardX import SummaryWriter

    logs = out / "tensorboard" / f"{config.digest()}-seed-{seed}"
    if logs.is_dir():
        return
    with SummaryWriter(str(logs)) as writer:
        writer.add_text("config", str(config))
        for row in store.rows(out, config, seed):
            for name, value in row.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, row["step"])

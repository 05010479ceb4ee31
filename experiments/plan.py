"""How long a list of configurations would take: `plan`."""

import collections
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from experiments import data, store, train
from experiments.config import Config

TIMED_CALLS = 4


def plan(
    configs: Iterable[Config],
    seeds: int,
    *,
    out: str | os.PathLike[str] = "out",
    jobs: int = 1,
    **data_options: Any,
) -> str:
    """What is to do, and an estimate of the time, in a few lines of text.

    The time of a step comes from finished runs with the same network, optimizer and
    workers, or else from a few steps of the first such configuration, timed now. `jobs`
    processes share the work.
    """
    out, configs = pathlib.Path(out), list(dict.fromkeys(configs))
    todo = {
        config: sum(not store.is_finished(out, config, seed) for seed in range(seeds))
        for config in configs
    }
    kinds = collections.defaultdict(list)
    for config in configs:
        kinds[_kind(config)].append(config)
    lines, total = [], 0.0
    for kind, alike in kinds.items():
        runs = sum(todo[config] for config in alike)
        line = f"{' '.join(map(str, kind))}: {len(alike)} configurations, {runs} runs"
        if runs:
            first = next(config for config in alike if todo[config])
            step, beside, source = _measured(out, alike) or _timed(
                first, todo[first], data_options
            )
            steps = sum(config.steps * todo[config] for config in alike)
            seconds = steps * step + runs * beside
            line += (
                f" to do, about {_duration(seconds)} ({step:.3g} s a step, {source})"
            )
            total += seconds
        lines.append(line)
    finished = len(configs) * seeds - sum(todo.values())
    lines.append(
        f"{len(configs)} configurations × {seeds} seeds: {finished} runs finished, "
        f"{sum(todo.values())} to do, about {_duration(total / jobs)} on this machine"
        + (f" in {jobs} processes" if jobs > 1 else "")
    )
    return "\n".join(lines)


def _kind(config: Config) -> tuple[Any, ...]:
    """What decides the time of a step, more or less."""
    attack = config.parts().attack
    forged = 0 if attack is None or attack.needs_own else config.num_byzantine
    computed = config.num_workers - forged
    return (
        *(config.dataset, config.model, config.optimizer.partition("(")[0]),
        f"{computed}×{config.batch_size}",
    )


def _measured(out: pathlib.Path, alike: list[Config]):
    """From finished runs: seconds a step, seconds a run beside its steps."""
    found = [
        (row["seconds_per_step"], row["seconds"] / len(row["seeds"]), config.steps)
        for config in alike
        for row in store.timings(out, config)
        if "seconds_per_step" in row and row["from_step"] == 0
    ]
    if not found:
        return None
    step = sum(row[0] for row in found) / len(found)
    beside = sum(max(row[1] - row[0] * row[2], 0) for row in found) / len(found)
    return step, beside, "from finished runs"


def _timed(config: Config, runs: int, data_options: dict[str, Any]):
    """A step and an evaluation, compiled and timed."""
    run = train.make_run(config, data.load(config.dataset, **data_options))
    key = jax.random.key(0)
    state = jax.jit(run.init)(key)
    start = time.perf_counter()
    step = jax.jit(run.step).lower(run.data, state, key).compile()
    evaluate = jax.jit(run.evaluate).lower(run.data, state).compile()
    compilation = time.perf_counter() - start
    of_step = _fastest(lambda: step(run.data, state, key))
    of_evaluation = _fastest(lambda: evaluate(run.data, state))
    seconds = of_step + of_evaluation / config.eval_every
    return seconds, compilation / runs, "timed just now"


def _fastest(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"

"""Interleaved timing: every case once a round, so that all meet the same machine."""

import functools
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax

from benchmarks.apart import QUEUED, Call, Process, turn


class Spread(NamedTuple):
    """Seconds a call, over the rounds."""

    median: float
    low: float  # First quartile.
    high: float  # Third quartile.
    rounds: int


class Compiled(NamedTuple):
    """A compiled program and what the compiler says of it."""

    call: Callable[..., Any]
    compile_seconds: float
    temp_bytes: int | None  # Memory beside arguments and results.
    program_lines: int  # Of the lowered program.


def compile_for(function: Callable[..., Any], *args: Any) -> Compiled:
    """Traces, lowers and compiles `function` for these arguments, timed."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temp = None if memory is None else int(memory.temp_size_in_bytes)
    return Compiled(compiled, seconds, temp, lowered.as_text().count("\n"))


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    *,
    apart: Mapping[str, Process] | None = None,
    rounds: int = 15,
    case_seconds: float = 3.0,
) -> dict[str, Spread]:
    """Times every case once a round, after one round of warm-up.

    Args:
      cases: name → what to time; a JAX result is waited for.
      apart: name → the process of another library's call.
      rounds: how many times each.
      case_seconds: a case that has used this much is left out of later rounds, but
        no case is timed fewer than three times.
    """
    queued = 1 if jax.default_backend() == "cpu" else QUEUED

    def here(call):
        case = Call(call, wait=jax.block_until_ready, queued=queued)
        return functools.partial(turn, case)

    turns = {name: here(call) for name, call in cases.items()}
    turns |= {name: process.turn for name, process in (apart or {}).items()}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for each in range(rounds + 1):
        for name, spent in times.items():
            if len(spent) >= 3 and sum(spent) > case_seconds:
                continue
            seconds = turns[name]()
            if each:
                spent.append(seconds)
    return {name: _spread(spent) for name, spent in times.items()}


def _spread(times: list[float]) -> Spread:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Spread(middle, low, high, len(times))


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    device = jax.devices()[0]
    versions = {}
    for name in ("byzjax", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "byzfl"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_model() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""Several processes that train at once, each on a core of its own.

A step of these small networks keeps one core busy and makes little use of a second, so
on a CPU two runs side by side take little longer than one.
"""

import collections
import contextlib
import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

# A process that trains one item; told how to report steps, and problems in words.
Work = Callable[[Any, Callable[[int], None], Callable[[str], None]], None]


def cores() -> list[int]:
    """Those that this process may use; none where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return []


def spread(
    work: Work,
    items: Sequence[Any],
    jobs: int,
    advance: Callable[[int], object],
    say: Callable[[str], object],
) -> None:
    """`work` on every item, in `jobs` processes that take the next one when free.

    Args:
      work: importable by name, as are the items picklable.
      items: in the order in which they are begun.
      jobs: how many processes, one at least.
      advance: told of steps made, in this process.
      say: told of problems, in this process.

    Raises:
      RuntimeError: what went wrong in one of them; the others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    todo, reports = context.Queue(), context.Queue()
    for item in [*items, *[None] * jobs]:
        todo.put(item)
    allowed = cores()
    mine = [allowed[job::jobs] for job in range(jobs)]
    processes = [
        context.Process(target=_serve, args=(work, todo, reports, share), daemon=True)
        for share in mine
    ]
    for process in processes:
        process.start()
    try:
        _listen(processes, reports, {"advance": advance, "say": say})
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _listen(processes, reports, heard):
    done = 0
    while done < len(processes):
        try:
            kind, value = reports.get(timeout=1.0)
        except queue.Empty:
            codes = collections.Counter(p.exitcode for p in processes)
            for code in codes.keys() - {None, 0}:
                raise RuntimeError(
                    f"a process that was training ended with exit status {code}; "
                    "finished runs are kept, and the same command goes on"
                ) from None
            continue
        if kind == "done":
            done += 1
        elif kind == "failed":
            raise RuntimeError(f"training failed in another process:\n{value}")
        else:
            heard[kind](value)


def _serve(work, todo, reports, share):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent is told, and stops this.
    if share and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)  # Before XLA counts the cores.
    parent = multiprocessing.parent_process()

    def advance(steps):
        if parent is not None and not parent.is_alive():
            os._exit(1)  # It was killed: nobody would stop this one.
        reports.put(("advance", steps))

    try:
        while (item := todo.get()) is not None:
            work(item, advance, lambda text: reports.put(("say", text)))
    except Exception:
        reports.put(("failed", traceback.format_exc()))
        return
    with contextlib.suppress(ValueError):
        reports.put(("done", None))

"""Processes and all that they start, so that nothing is left running."""

import contextlib
import os
import pathlib
import signal
import time


def _status(folder: pathlib.Path) -> tuple[int, str] | None:
    """Parent and start time of a process that has not ended, from /proc/<pid>/stat."""
    try:
        # The name in parentheses may hold anything, the rest are numbers.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] == "Z" else (int(fields[1]), fields[19])


def family(pid: int) -> dict[int, str]:
    """A process and its descendants, each with its start time, which pids lack."""
    started, parents = {}, {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        status = _status(folder)
        if status is not None:
            parents[int(folder.name)], started[int(folder.name)] = status
    found = {pid: started[pid]} if pid in started else {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child, its in parents.items():
            if its == parent and child not in found:
                found[child] = started[child]
                waiting.append(child)
    return found


def command(pid: int) -> str:
    """The command line of a process; empty if there is none."""
    try:
        line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return line.replace(b"\0", b" ").decode("utf-8", "replace")


def running(members: dict[int, str]) -> list[int]:
    """Those of a family that have not ended, whoever has their pid by now."""
    here = []
    for pid, start in members.items():
        status = _status(pathlib.Path(f"/proc/{pid}"))
        if status is not None and status[1] == start:
            here.append(pid)
    return here


def end(members: dict[int, str], seconds: float) -> None:
    """Waits for a family to end by itself, then kills who is left of it."""
    limit = time.monotonic() + seconds
    while running(members) and time.monotonic() < limit:
        time.sleep(0.1)
    for pid in running(members):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

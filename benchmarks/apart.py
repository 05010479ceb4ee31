"""Another library's call in a process of its own, as pyperf and asv time every case.

What a call finds on the heap is part of its time, and is what other calls left there:
ByzFL's MoNNA, which copies forty megabytes, takes 19 ms by itself, and 8 where calls of
other rules before it happened to leave as much free memory.
"""

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

QUEUED = 10  # Calls on a GPU.


class Call(NamedTuple):
    """What to time, and what to call before it, untimed."""

    call: Callable[[], Any]
    before: Callable[[], Any] = lambda: None
    wait: Callable[[Any], Any] = lambda result: None  # Until the result is there.
    queued: int = 1  # How many are started before the first is waited for.


def turn(case: Call) -> float:
    """Seconds of a call, after a tenth of a second of untimed ones.

    In a loop of training steps the calls before are not another case's, whose threads
    still spin and whose memory has to be mapped anew. Of queued calls it is the mean:
    to start one takes as long as many a rule on a GPU, and is done meanwhile.
    """

    def seconds():
        case.before()
        start = time.perf_counter()
        results = [case.call() for _ in range(case.queued)]
        case.wait(results)
        return (time.perf_counter() - start) / case.queued

    start = time.perf_counter()
    while time.perf_counter() - start < 0.1:
        seconds()
    return seconds()


class Process:
    """A process that makes a call, and takes a turn of it when asked to.

    Args:
      make: of `args`, the call; a module's function, run over there.
      args: what can be sent to another process.
    """

    def __init__(self, make: Callable[..., Call], *args: Any):
        # A fork would take JAX and its threads along.
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, args))
        self._process.start()
        there.close()

    def turn(self) -> float:
        """Seconds of a call over there, as `turn` says."""
        with contextlib.suppress(BrokenPipeError):  # What it said last can be read.
            self._pipe.send(None)
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(
                f"the process of a timed call ended by itself, exit code {code}"
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(f"in the process of a timed call:\n{answer}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()  # Its end: the process sees it and leaves.
        self._process.join()


def _serve(pipe, make, args):
    try:
        case = make(*args)
        while True:
            pipe.recv()
            pipe.send(turn(case))
    except EOFError:
        return
    except Exception:
        pipe.send(traceback.format_exc())

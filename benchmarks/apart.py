"""Another library's calls in a process of its own, as its users have them.

In one process each library leaves the other a heap that it would not have: ByzFL's
MoNNA, which copies forty megabytes, takes 8 ms beside JAX in some runs and 19 in
others, and 19 by itself.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self


class Call(NamedTuple):
    """What to time, and what to call before it, untimed."""

    call: Callable[[], Any]
    before: Callable[[], Any] = lambda: None


def turn(case: Call) -> float:
    """Seconds of a call, after a tenth of a second of untimed ones."""

    def seconds():
        case.before()
        start = time.perf_counter()
        case.call()
        return time.perf_counter() - start

    start = time.perf_counter()
    while time.perf_counter() - start < 0.1:
        seconds()
    return seconds()


class Process:
    """A process that makes some calls and takes their turns when asked to.

    Args:
      make: of `args`, the calls by name; a module's function, run over there.
      args: what can be sent to another process.
    """

    def __init__(self, make: Callable[..., Mapping[str, Call]], *args: Any):
        # A fork would take JAX and its threads along.
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, args))
        self._process.start()
        there.close()

    def __enter__(self) -> Self:
        self._names = self._answer()
        return self

    def turns(self) -> dict[str, Callable[[], float]]:
        """Name → a function that takes a turn over there and returns its seconds."""

        def ask(name):
            self._pipe.send(name)
            return self._answer()

        return {name: lambda name=name: ask(name) for name in self._names}

    def _answer(self):
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(
                f"the process of the other libraries ended by itself, exit code {code}"
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(f"in the process of the other libraries:\n{answer}")
        return answer

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
        cases = make(*args)
        pipe.send(list(cases))
        while True:
            pipe.send(turn(cases[pipe.recv()]))
    except EOFError:
        return
    except Exception:
        pipe.send(traceback.format_exc())

"""Progress that can be seen: a bar on a terminal, elsewhere a line now and then."""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)

SECONDS = 30.0  # Between two lines where there is no terminal.


class Progress:
    """Counts steps towards a total, as a context.

    Args:
      console: where to.
      total: how many steps there are.
      what: what is being done, until `describe` says more.
      seconds: between two lines where the console is no terminal.
    """

    def __init__(
        self, console: Console, total: int, what: str, *, seconds: float = SECONDS
    ) -> None:
        self._console, self._total, self._seconds = console, total, seconds
        self._what, self._done, self._seen, self._shown = what, 0, -1, 0.0
        self._begun = self._last = time.monotonic()
        self._bar: Any = None
        if console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}", style="dim", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        else:
            self._line()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._seen != self._done:
            self._line()

    def describe(self, what: str) -> None:
        """Says what is being done now."""
        self._what = what
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def advance(self, steps: int) -> None:
        """Counts so many steps more."""
        self._done += steps
        if self._bar is not None:
            self._bar.advance(self._task, steps)
        elif time.monotonic() - self._last >= self._seconds:
            self._line()

    def say(self, text: str) -> None:
        """A line of its own, such as a problem."""
        self._console.print(text, style="yellow", markup=False, soft_wrap=True)

    def _line(self) -> None:
        self._last, self._seen = time.monotonic(), self._done
        elapsed = self._last - self._begun
        line = f"{self._done}/{self._total} steps, {duration(elapsed)}"
        if 0 < self._done < self._total:
            left = elapsed * (self._total - self._done) / self._done
            line += f", about {duration(left)} left"
        self._console.print(
            f"{line}: {self._what}",
            style="dim",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def duration(seconds: float) -> str:
    """In words, to about a hundredth."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"

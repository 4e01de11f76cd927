"""How far long work is: a bar on a terminal, now and then a line elsewhere, nothing for short work.

Everything goes to standard error.  No thread redraws the bar: it would take time from what is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from sparsec.progress import Progress

#: seconds before anything is shown
PATIENCE = 2.0
#: seconds between two drawings of a bar, and between two lines
REDRAW, REPEAT = 0.1, 5.0


class Watcher(Protocol):
    """A ``Progress`` that has an end."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Hear how far a stage is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


@contextmanager
def watched(quiet: bool = False, patience: float = PATIENCE, out: TextIO | None = None) -> Iterator[Progress]:
    """An observer for ``sparsec.compile(progress=...)`` and its like.

    Args:
        quiet: show nothing.
        patience: seconds before anything is shown.
        out: where to; standard error when None.
    """
    stream = sys.stderr if out is None else out
    watcher: Watcher = (
        _Nothing() if quiet else _Bar(stream, patience) if stream.isatty() else _Lines(stream, patience)
    )
    try:
        yield watcher
    finally:
        watcher.close()


class _Nothing:
    def __call__(self, stage: str, done: int, total: int) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    """``kernels: 12 of 40``, without control characters."""

    def __init__(self, out: TextIO, patience: float) -> None:
        self._out, self._patience = out, patience
        self._next: float | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._next is None:
            self._next = now + self._patience
        if done and now >= self._next:
            self._next = now + REPEAT
            print(f"{stage}: {done} of {total}", file=self._out, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """One bar, of the stage that runs; it disappears at the end."""

    def __init__(self, out: TextIO, patience: float) -> None:
        self._out, self._patience = out, patience
        self._next: float | None = None
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._next is None:
            self._next = now + self._patience
        if now < self._next and not (self._bars and done == total):
            return
        self._next = now + REDRAW
        bars = self._bars = self._bars or self._started()
        if self._task is None or stage != self._stage:
            if self._task is not None:
                bars.remove_task(self._task)
            self._task, self._stage = bars.add_task(stage), stage
        bars.update(self._task, completed=done, total=max(total, 1))
        bars.refresh()

    def _started(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bars = Progress(*columns, console=Console(file=self._out), auto_refresh=False, transient=True)
        bars.start()
        return bars

    def close(self) -> None:
        if self._bars:
            self._bars.stop()

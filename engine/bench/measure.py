"""Timing of several engines side by side, so that a change of the machine's speed meets them all.

Engines take turns (A B C A B C ...).  A turn begins with a pause, in which the other engines'
waiting threads go to sleep, and one call that is not timed; then calls are repeated until the
turn is long enough for the clock.  What is reported is the median over the turns.

Where other processes want the same core, a scheduler favours short turns over long ones, and the
faster engine looks faster than it is.  A turn that got less processor time than it lasted is
therefore repeated a few times, and the share of turns that stayed disturbed is reported.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Protocol, TypeAlias, runtime_checkable

from sparsec.progress import Progress, counted

Call: TypeAlias = Callable[[], Any]

#: a turn that computed for less than this share of the time it took was interrupted
_BUSY = 0.97
#: how often an interrupted turn is tried
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a call: the median over all turns, and the quartiles beside it.

    ``disturbed`` is the share of turns in which the process had to wait for its core.
    """

    median: float
    low: float
    high: float
    disturbed: float = 0.0

    @classmethod
    def of(cls, turns: list[Turn]) -> Timing:
        """From every turn."""
        samples = [turn.seconds for turn in turns]
        disturbed = sum(turn.disturbed for turn in turns) / len(turns)
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0], disturbed)
        low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(median(samples), low, high, disturbed)


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds a call in one turn, and whether the process had to wait for its core."""

    seconds: float
    disturbed: bool

    @classmethod
    def of(cls, elapsed: float, busy: float, count: int) -> Turn:
        """From the seconds that passed, and those computed, in ``count`` calls."""
        return cls(elapsed / count, busy < _BUSY * elapsed)


@runtime_checkable
class Remote(Protocol):
    """A call that another process makes, and times there."""

    def turn(self, count: int) -> Turn:
        """Call ``count`` times."""


def interleaved(
    calls: Mapping[str, Call], rounds: int = 30, turn: float = 0.010, pause: float = 0.002,
    progress: Progress | None = None,
) -> dict[str, Timing]:  # fmt: skip
    """Time calls in turns.

    Args:
        calls: what to time, by name.
        rounds: turns each of them gets.
        turn: seconds a turn lasts at least.
        pause: seconds of sleep before each turn; 0.002 suits engines on one thread, 0.06 several.
        progress: hears of every round, between two turns.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in calls}
    with _no_garbage_collection():
        repeats = {name: _repeats(call, turn) for name, call in calls.items()}
        for _ in counted(range(rounds), "rounds", progress):
            for name, call in calls.items():
                turns[name].append(_quiet_turn(call, repeats[name], pause))
    return {name: Timing.of(found) for name, found in turns.items()}


def _quiet_turn(call: Call, count: int, pause: float) -> Turn:
    """A turn, taken again while other processes disturb it."""
    for _ in range(_ATTEMPTS):
        time.sleep(pause)
        call()
        turn = _turn(call, count)
        if not turn.disturbed:
            break
    return turn


def _repeats(call: Call, turn: float) -> int:
    """How many calls fill a turn; doubled until the clock sees enough to tell."""
    count = 1
    call()
    while True:
        elapsed = _turn(call, count).seconds * count
        if elapsed >= turn / 4:
            return max(1, round(turn / elapsed * count))
        count *= 2


def _turn(call: Call, count: int) -> Turn:
    if isinstance(call, Remote):
        return call.turn(count)
    busy, start = time.process_time(), time.perf_counter()
    for _ in range(count):
        call()
    elapsed = time.perf_counter() - start
    return Turn.of(elapsed, time.process_time() - busy, count)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def pin_to_one_core() -> None:
    """Keep this process, and the threads it starts from now on, on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def spelled(seconds: float) -> str:
    """A duration with three digits: ``12.3 us``, ``4.56 ms``, ``1.23 s``."""
    for factor, unit in ((1e6, "us"), (1e3, "ms"), (1.0, "s")):
        value = seconds * factor
        if value < 1000 or unit == "s":
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError("unreachable")

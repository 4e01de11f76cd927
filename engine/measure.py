"""Timing of several engines side by side, so that a change of the machine's speed meets them all.

Engines take turns (A B C A B C ...).  A turn begins with a pause, in which the other engines'
waiting threads go to sleep, and one call that is not timed; then calls are repeated until the
turn is long enough for the clock.  What is reported is the median over the turns.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a call: the median over all turns, and the quartiles beside it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        """From one number a turn."""
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0])
        low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(median(samples), low, high)


def interleaved(
    calls: Mapping[str, Call], rounds: int = 30, turn: float = 0.010, pause: float = 0.002
) -> dict[str, Timing]:
    """Time calls in turns.

    Args:
        calls: what to time, by name.
        rounds: turns each of them gets.
        turn: seconds a turn lasts at least.
        pause: seconds of sleep before each turn; 0.002 suits engines on one thread, 0.06 several.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with _no_garbage_collection():
        repeats = {name: _repeats(call, turn) for name, call in calls.items()}
        for _ in range(rounds):
            for name, call in calls.items():
                time.sleep(pause)
                call()
                samples[name].append(_seconds(call, repeats[name]))
    return {name: Timing.of(found) for name, found in samples.items()}


def _repeats(call: Call, turn: float) -> int:
    """How many calls fill a turn; doubled until the clock sees enough to tell."""
    count = 1
    call()
    while True:
        elapsed = _seconds(call, count) * count
        if elapsed >= turn / 4:
            return max(1, round(turn / elapsed * count))
        count *= 2


def _seconds(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


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

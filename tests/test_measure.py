"""Timing in turns."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sparsec.bench.measure import Timing, Turn, interleaved, spelled


def busy(seconds: float) -> Callable[[], None]:
    """A call that computes for a while."""

    def call() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return call


def test_engines_take_turns() -> None:
    seen: list[str] = []
    calls = {name: lambda name=name: (seen.append(name), time.sleep(2e-3)) for name in "ab"}
    found = interleaved(calls, rounds=3, turn=1e-3, pause=0.0)
    order = "".join(seen).lstrip("a").lstrip("b")  # after finding how many calls fill a turn
    assert order.replace("aa", "a").replace("bb", "b").startswith("a") and set(found) == {"a", "b"}
    assert all(t.low <= t.median <= t.high and t.median >= 2e-3 for t in found.values())


def test_times_are_those_of_a_call() -> None:
    found = interleaved({"one": busy(2e-4), "four": busy(8e-4)}, rounds=5, turn=2e-3, pause=0.0)
    assert 2e-4 <= found["one"].median < 8e-4 <= found["four"].median


def test_waiting_is_noticed() -> None:
    found = interleaved({"asleep": lambda: time.sleep(1e-3)}, rounds=2, turn=1e-3, pause=0.0)
    assert found["asleep"].disturbed == 1.0


def test_median_and_quartiles() -> None:
    turns = [Turn(float(t), t == 5) for t in (5, 1, 4, 2, 3)]
    assert Timing.of(turns) == Timing(3.0, 2.0, 4.0, 0.2)
    assert Timing.of(turns[:1]) == Timing(5.0, 5.0, 5.0, 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.234e-6, "1.23 us"),
        (12.34e-6, "12.3 us"),
        (123.4e-6, "123 us"),
        (4.561e-3, "4.56 ms"),
        (75.0, "75.0 s"),
    ],
)
def test_durations_are_spelled(seconds: float, text: str) -> None:
    assert spelled(seconds) == text

"""Energy per call, from the processor's own counters where Linux lets this user read them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec.bench.measure import Remote

POWERCAP = Path("/sys/class/powercap")
#: seconds an engine computes for each figure; counters move every millisecond
SECONDS = 0.5
UNREADABLE = "not readable here"


@dataclass(frozen=True)
class Counter:
    """The packages' energy counters, in microjoules; each starts anew after its range."""

    zones: tuple[tuple[Path, int], ...]

    def read(self) -> list[int]:
        """Every package's counter."""
        return [int((zone / "energy_uj").read_text()) for zone, _ in self.zones]

    def spent(self, before: list[int], after: list[int]) -> int:
        """Microjoules between two readings."""
        pairs = zip(self.zones, before, after, strict=True)
        return sum((end - start) % (top + 1) for (_, top), start, end in pairs)

    def per_call(self, call: Callable[[], Any], seconds: float = SECONDS) -> float:
        """Microjoules a call, all that the packages spend meanwhile included."""
        repeat = call.turn if isinstance(call, Remote) else lambda n: [call() for _ in range(n)]
        count, done = 1, 0
        before, end = self.read(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            repeat(count)
            done += count
            if time.perf_counter() - start < seconds / 20:
                count *= 2
        return self.spent(before, self.read()) / done


def counter(root: Path = POWERCAP) -> Counter | None:
    """The packages' counters (parts of packages left out), or None where there are none to read."""
    zones = []
    for zone in sorted(root.glob("*-rapl:*")):
        if zone.name.count(":") > 1:
            continue
        try:
            int((zone / "energy_uj").read_text())
            zones.append((zone, int((zone / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            return None
    return Counter(tuple(zones)) if zones else None

"""The figures of the machine at hand: measured once and kept, else those that ship.

Measuring is never implicit: ``sparsec machine --measure`` and tuning do it, and compiling uses what
they kept.  One JSON file for each processor and vector width lies in the folder of SPARSEC_CACHE; one
that is missing, damaged or cannot be written costs only time.  ``SPARSEC_FACTS=shipped`` leaves it
aside, so that compiling gives the same artifact on every machine of a kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparsec.config import settings
from sparsec.progress import Progress, counted
from sparsec.runtime.files import whole
from sparsec.targets.facts import NAMES, Facts, known_as, of_target, shipped
from sparsec.targets.processor import Processor, cache_sizes, this_processor
from sparsec.targets.target import Target

#: part of the file's name: change it when what is measured changes
VERSION = 1
#: seconds all probes take together, once they are built
SECONDS = 3.0

MEASURED, SYSTEM = "measured", "read from the system"
_SIZES = ("l1", "l2", "l3")
#: no core is or was beyond these; a file that says so is damaged
_LEAST, _MOST = 1e-3, 1e12


@dataclass(frozen=True, slots=True)
class Figures:
    """Facts, and where each of them comes from."""

    facts: Facts
    origins: Mapping[str, str]


def facts_of(target: Target, measure: bool = False, progress: Progress | None = None) -> Facts:
    """What is known of the machine a target describes.

    Args:
        target: this machine's native target, or a level it can run; of others, only what the target
            itself says is known.
        measure: measure now, in a few seconds, if nobody has on this machine; without effect where
            SPARSEC_FACTS says ``shipped``.
        progress: told how far measuring is.

    Raises:
        BuildError: measuring needs a C compiler, and there is none.
    """
    if not (measure and _measurable(target) and kept(target) is None):
        return figures(target).facts
    found = measure_facts(target, progress)
    keep(target, found)
    return found


def figures(target: Target) -> Figures:
    """What :func:`facts_of` answers without measuring, and where it comes from."""
    processor = this_processor()
    if not _runs_here(target, processor):
        return Figures(of_target(target), dict.fromkeys(NAMES, f"shipped for {target.name}"))
    found = kept(target) if settings().facts == MEASURED else None
    if found is not None:
        return measured_figures(found)
    known = known_as(processor)
    return _with_sizes(shipped(processor, target), f"shipped for {known.name if known else target.name}")


def measured_figures(facts: Facts) -> Figures:
    """What was measured on this machine, as figures; cache sizes are never measured."""
    return _with_sizes(facts, MEASURED)


def _with_sizes(facts: Facts, origin: str) -> Figures:
    sizes = _system_sizes()
    return Figures(replace(facts, **sizes), {name: SYSTEM if name in sizes else origin for name in NAMES})


def _measurable(target: Target) -> bool:
    return settings().facts == MEASURED and _runs_here(target, this_processor())


def _runs_here(target: Target, processor: Processor) -> bool:
    return set(target.features) <= processor.flags


def _system_sizes() -> dict[str, int]:
    return {f"l{level}": size for level, size in cache_sizes().items() if f"l{level}" in _SIZES and size > 0}


def measure_facts(target: Target, progress: Progress | None = None, seconds: float = SECONDS) -> Facts:
    """Measure this machine, for vectors as wide as the target's; keeps nothing.

    Args:
        target: what the probes are compiled for; this machine must run it.
        progress: told how far it is.
        seconds: how long the probes take turns; building them comes before that.

    Raises:
        BuildError: the probes cannot be built, for want of a C compiler.
    """
    from sparsec.targets import limits

    now = replace(of_target(target), **_system_sizes())
    makers: dict[str, Callable[[], limits.Probe]] = {
        "peak": lambda: limits.multiply_adds(target),
        "clock": lambda: limits.clock(target),
        "l1": lambda: limits.reads(target, now.l1 // 2, passes=64),
        # three quarters: what is used of L2 shares it with what streams by
        "l2": lambda: limits.reads(target, now.l2 // 4 * 3, passes=8),
        "l3": lambda: limits.reads(target, _l3_bytes(now)),
        "dram": lambda: limits.reads_in_parts(target, _dram_bytes(now)),
        "gathers": lambda: limits.gathers(target),
        "random": lambda: limits.loop_ends(target, shuffled=True),
        "sorted": lambda: limits.loop_ends(target, shuffled=False),
    }
    probes = {name: makers[name]() for name in counted(tuple(makers), "probes", progress)}
    return _facts(limits.best_rates(probes, seconds, progress), target.lanes, now)


def _facts(rates: Mapping[str, float], lanes: int, now: Facts) -> Facts:
    """From units of work a second; rounded to what two measurements agree in."""
    flops = 2.0 * lanes
    fmas = float(max(1, round(rates["peak"] / flops / rates["clock"])))
    hertz = rates["peak"] / (flops * fmas)
    lost = (1 / rates["random"] - 1 / rates["sorted"]) * hertz
    l1, l2, l3, dram = (round(rates[level] / hertz, 1) for level in ("l1", "l2", "l3", "dram"))
    return replace(
        now,
        gigahertz=round(hertz / 1e9, 2),
        fmas=fmas,
        l1_bytes=l1,
        l2_bytes=l2,
        l3_bytes=l3,
        dram_bytes=dram,
        gathers=round(rates["gathers"] / hertz, 2),
        mispredict=round(max(lost, 1.0), 1),
    )


def _l3_bytes(now: Facts) -> int:
    """A part of L3 that does not fit L2, and that neighbours on the same L3 leave to us."""
    return min(max(4 * now.l2, now.l3 // 4), max(now.l3 // 2, 2 * now.l2), 16 << 20)


def _dram_bytes(now: Facts) -> int:
    """More than L3 holds, without taking more than a quarter of the memory there is."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(64 << 20, min(4 * now.l3, 512 << 20, free // 4))


def path_of(target: Target) -> Path | None:
    """Where the measured figures of this machine lie; None without a cache."""
    folder = settings().cache
    name = f"machine-{this_processor().key}-{target.lanes}-v{VERSION}.json"
    return None if folder is None else folder / name


def kept(target: Target) -> Facts | None:
    """What was measured on this machine before; None if nothing was, or the file is damaged."""
    path = path_of(target)
    if path is None:
        return None
    try:
        return _checked(json.loads(path.read_bytes())["facts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _checked(found: Any) -> Facts:
    """Facts from JSON, or a ValueError."""
    if not isinstance(found, dict) or set(found) != set(NAMES):
        raise ValueError("not the figures of a machine")
    for name, value in found.items():
        number = isinstance(value, int if name in _SIZES else int | float) and not isinstance(value, bool)
        if not number or not _LEAST <= value <= _MOST:
            raise ValueError(f"{name} is {value!r}")
    return Facts(**found)


def keep(target: Target, facts: Facts) -> bool:
    """Write figures for later; False where there is no place that can be written."""
    path, processor = path_of(target), this_processor()
    if path is None:
        return False
    about = {"name": processor.name, "vendor": processor.vendor, "family": processor.family,
             "model": processor.model, "lanes": target.lanes}  # fmt: skip
    text = json.dumps({"processor": about, "facts": asdict(facts)}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(text.encode())
    except OSError:
        return False
    return True

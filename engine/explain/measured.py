"""A report with the time every step took, beside the same model with dense kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsec.bench.measure import Turn
from sparsec.explain.summary import OPEN

if TYPE_CHECKING:
    from sparsec.runtime import Program

#: runs a turn times, and how often a turn is tried
_REPEATS, _ATTEMPTS = 3, 5


def measured(
    program: Program,
    feeds: Mapping[str, Any],
    dense: Program | None = None,
    rounds: int = 10,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The program's report, with ``measured_microseconds`` on steps, layers and candidates.

    Args:
        program: what is timed; the two programs take turns.  A step's time is the median of a
            turn's runs, the least of all turns: others can only make it longer.
        feeds: an array for every input.
        dense: the same model compiled with dense kernels only; its layers' times become those of
            the dense candidates.
        rounds: turns each of them gets.
        progress: called with ``("rounds", 3, 10)``.

    Returns:
        A report whose ``measured`` holds the sum of all steps, that of the dense program, how many
        turns of how many runs each had, and what sizes left open were.
    """
    if dense is not None and _runs_alike(program, dense):
        dense = program
    programs = [program] if dense is None or dense is program else [program, dense]
    turns: list[list[list[float]]] = [[] for _ in programs]
    for number in range(rounds):
        if progress:
            progress("rounds", number, rounds)
        for one, found in zip(programs, turns, strict=True):
            found.append(_turn(one, feeds))
    if progress:
        progress("rounds", rounds, rounds)
    times = [[min(step) for step in zip(*found, strict=True)] for found in turns]
    sizes = _sizes(program, feeds)
    report = with_times(_without_records(program.report, sizes), times[0])
    about: dict[str, Any] = {
        "microseconds": round(sum(times[0]), 2), "turns": rounds, "runs": _REPEATS,
        "threads": program.threads, "sizes": sizes,
    }  # fmt: skip
    if dense is not None:
        about["dense_microseconds"] = round(sum(times[-1]), 2)
        _add_dense(report, with_times(dense.report, times[-1]))
    report["measured"] = about
    return report


def _without_records(report: Mapping[str, Any], sizes: Mapping[str, int]) -> Mapping[str, Any]:
    """The report less what a tuner measured at other sizes than these."""
    if all(size == OPEN for size in sizes.values()):
        return report
    layers = [_without_times(n) if isinstance(n.get("tokens"), str) else n for n in report["layers"]]
    return {**report, "layers": layers}


def _without_times(layer: Mapping[str, Any]) -> dict[str, Any]:
    kept = [{k: v for k, v in c.items() if k != "measured_microseconds"} for c in layer["candidates"]]
    return {**layer, "candidates": kept}


def _runs_alike(program: Program, dense: Program) -> bool:
    """Whether a program has nothing but dense kernels, and all the channels of its model."""
    kernels = ([step["kernel"] for step in one.report["steps"]] for one in (program, dense))
    return next(kernels) == next(kernels) and not any("removed" in n for n in program.report["layers"])


def _turn(program: Program, feeds: Mapping[str, Any]) -> list[float]:
    """Microseconds of every step, measured again while other processes want the core."""
    for _ in range(_ATTEMPTS):
        busy, start = time.process_time(), time.perf_counter()
        steps = program.profile(feeds, repeats=_REPEATS)
        elapsed = time.perf_counter() - start
        if not Turn.of(elapsed, time.process_time() - busy, 1).disturbed:
            break
    return [step.nanoseconds / 1e3 for step in steps]


def with_times(report: Mapping[str, Any], times: Sequence[float]) -> dict[str, Any]:
    """A copy of a report whose steps took ``times``; a layer's time is the sum of its steps'."""
    timed = deepcopy(dict(report))
    for step, took in zip(timed.get("steps", ()), times, strict=True):
        step["measured_microseconds"] = round(took, 3)
        if "layer" in step:
            layer = timed["layers"][step["layer"]]
            layer["measured_microseconds"] = round(layer.get("measured_microseconds", 0.0) + took, 3)
    for layer in timed.get("layers", ()):
        if "measured_microseconds" in layer:
            _note(layer, layer["kernel"], layer["measured_microseconds"])
    return timed


def _add_dense(report: dict[str, Any], dense: Mapping[str, Any]) -> None:
    found = {layer["node"]: layer for layer in dense["layers"]}
    for layer in report["layers"]:
        other = found.get(layer["node"], {})
        if "measured_microseconds" not in other:
            continue
        if "whole_dense" in layer:
            layer["whole_dense"]["measured_microseconds"] = other["measured_microseconds"]
        elif other["kernel"] != layer["kernel"]:
            _note(layer, other["kernel"], other["measured_microseconds"])


def _note(layer: dict[str, Any], kernel: str, took: float) -> None:
    """Write a time beside the candidate it is of."""
    for candidate in layer["candidates"]:
        if candidate["kernel"] == kernel:
            candidate["measured_microseconds"] = took


def _sizes(program: Program, feeds: Mapping[str, Any]) -> dict[str, int]:
    """What the named sizes of the inputs are."""
    return {
        size: int(np.shape(feeds[port.name])[axis])
        for port in program.inputs
        for axis, size in enumerate(port.shape)
        if isinstance(size, str) and size.isidentifier()
    }

"""A comparison as a table, as sentences and as data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import isfinite
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from sparsec.bench.compare import DENSE, MIXED, SPARSEC, TOLERANCE, Comparison, LayerTime
from sparsec.bench.measure import Timing, spelled

#: below this share of zeros a model has little that could be skipped
FEW_ZEROS = 0.3
#: layers named where a dense engine wins
NAMED = 5


def table(found: Comparison) -> Table:
    """A row for every engine, the fastest first."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("engine", no_wrap=True)
    for heading in ("median", "quartiles", "speed", "outputs differ by"):
        shown.add_column(heading, justify="right", no_wrap=True)
    slowest = max(t.median for t in found.timings.values())
    for name, t in sorted(found.timings.items(), key=lambda item: item[1].median):
        version = found.versions.get(name, "")
        shown.add_row(
            escape(f"{name} {version}".strip()), spelled(t.median), f"{spelled(t.low)} to {spelled(t.high)}",
            f"{slowest / t.median:.2f}x", _apart(name, found),
        )  # fmt: skip
    return shown


def _apart(name: str, found: Comparison) -> str:
    if name == found.reference:
        return "(compared with)"
    if name not in found.differences:
        return ""
    apart = found.differences[name]
    return f"{apart:.1e} of scale" + (", differs" if apart > TOLERANCE else "")


def verdict(found: Comparison, layers: Sequence[LayerTime], report: dict[str, Any], model: str) -> list[str]:
    """What the times say, in sentences.

    Args:
        found: what was measured.
        layers: what :func:`sparsec.bench.compare.layer_times` returned, if it was asked.
        report: of the program as it was compiled.
        model: its file, for the commands that are proposed.
    """
    said = [f"{name} is left out: {why}" for name, why in found.left_out.items()]
    said += _differing(found)
    said += _beside_others(found)
    said += _beside_dense(found, layers, model)
    if found.others and next(iter(found.others.values())).median < next(iter(found.ours.values())).median:
        said += _what_to_do(layers, report, model)
    return said


def _differing(found: Comparison) -> list[str]:
    wrong = found.wrong
    if not wrong:
        return []
    one = "its" if len(wrong) == 1 else "their"
    return [
        f"{', '.join(wrong)}: {one} outputs are not those of {found.reference}; more than {TOLERANCE:.0e} of "
        "scale is no rounding, unless the model amplifies that, as quantised ones do"
    ]


def _beside_others(found: Comparison) -> list[str]:
    if not found.others:
        return [] if found.timings.keys() - {SPARSEC, DENSE, MIXED} else ["not compared with other engines"]
    (name, theirs), (best, ours) = next(iter(found.others.items())), next(iter(found.ours.items()))
    threads = f"on {found.threads} thread{'s' if found.threads > 1 else ''}"
    if _alike(ours, theirs):
        return [f"{best} and {name} are equally fast {threads}, as far as these rounds tell"]
    if ours.median < theirs.median:
        ratio = theirs.median / ours.median
        return [f"{best} wins: {ratio:.2f}x the speed of the best dense engine ({name}) {threads}"]
    return [f"dense wins: {name} has {ours.median / theirs.median:.2f}x the speed of {best} {threads}"]


def _alike(a: Timing, b: Timing) -> bool:
    """Whether two medians lie within each other's quartiles."""
    return a.low <= b.median <= a.high and b.low <= a.median <= b.high


def _beside_dense(found: Comparison, layers: Sequence[LayerTime], model: str) -> list[str]:
    slow = [layer for layer in layers if layer.faster_dense]
    better = fastest_of_ours(found)
    if better == SPARSEC:
        return []
    gain = found.timings[SPARSEC].median / found.timings[better].median
    if better == DENSE:
        command = f"sparsec compile {shlex.quote(model)} --dense all"
        return [f"sparsec's own dense kernels are {gain:.2f}x as fast: {command}"]
    options = " ".join(f"--dense {shlex.quote(layer.name)}" for layer in slow)
    return [
        *(f"{layer.name}: {layer.kernel} takes {spelled(layer.seconds)}, dense {spelled(layer.dense)}"
          for layer in slow),
        f"with dense kernels there it is {gain:.2f}x as fast: sparsec compile {shlex.quote(model)} {options}",
    ]  # fmt: skip


def fastest_of_ours(found: Comparison) -> str:
    """The program to use: the one compiled by prediction unless another is clearly faster."""
    best, timing = next(iter(found.ours.items()))
    return SPARSEC if _alike(timing, found.timings[SPARSEC]) else best


def _what_to_do(layers: Sequence[LayerTime], report: dict[str, Any], model: str) -> list[str]:
    said = []
    spent = sum(layer.seconds for layer in layers)
    if spent:
        named = ", ".join(f"{one.name} {spelled(one.seconds)}" for one in layers[:NAMED])
        said.append(f"the dearest sparse layers: {named}; sparsec bench --profile shows every step")
    found: list[dict[str, Any]] = report.get("layers", [])
    total = sum(layer["dense_bytes"] for layer in found)
    zeros = sum(layer["dense_bytes"] * layer["sparsity"] for layer in found) / total if total else 0.0
    if zeros < FEW_ZEROS:
        said.append(f"{100 * zeros:.0f} % of the weights are zero: there is little to skip")
    if any(not isinstance(layer.get("tokens", 1), int) for layer in found):
        said.append("sizes are left open: give them with --shape, kernels for known sizes are faster")
    return [*said, f"sparsec tune {shlex.quote(model)} measures kernels instead of predicting them"]


def as_json(found: Comparison, layers: Sequence[LayerTime], said: Sequence[str]) -> dict[str, Any]:
    """Everything, times in microseconds."""
    engines = {
        name: {"median_us": t.median * 1e6, "q1_us": t.low * 1e6, "q3_us": t.high * 1e6,
               "disturbed": t.disturbed}
        for name, t in found.timings.items()
    }  # fmt: skip
    differences = {name: apart if isfinite(apart) else None for name, apart in found.differences.items()}
    return {
        "threads": found.threads, "rounds": found.rounds, "engines": engines,
        "versions": dict(found.versions), "reference": found.reference,
        "differences": differences, "left_out": dict(found.left_out),
        "layers": [
            {"layer": one.name, "kernel": one.kernel, "us": one.seconds * 1e6, "dense_us": one.dense * 1e6,
             "faster_dense": one.faster_dense}
            for one in layers
        ],
        "use": fastest_of_ours(found), "verdict": list(said),
    }  # fmt: skip

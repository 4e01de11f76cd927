"""Where a run's time goes: each step's time, beside the work the report knows of."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

Report = Mapping[str, Any]

#: runs that SPARSEC_DEBUG=3 times for each new set of input shapes
REPEATS = 10


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step of a program: ``nanoseconds`` is the median over the runs; 0 ``tiles`` never run."""

    node: str
    kernel: str
    nanoseconds: int
    tiles: int


class Model(Protocol):
    """What of the C extension's Model a watched run needs."""

    def run(self, names: Sequence[str] | None, feeds: dict[str, Any], /) -> list[NDArray[Any]]:
        """Run once."""

    def profile(self, feeds: dict[str, Any], repeats: int, /) -> list[tuple[str, str, int, int]]:
        """Node, kernel, nanoseconds and tiles of every step."""


class Watched:
    """Runs a model, and before the first run on any set of shapes prints what its steps cost."""

    __slots__ = ("_log", "_model", "_report", "_seen")

    def __init__(self, model: Model, report: Report, log: TextIO | None = None) -> None:
        """``log``: where to print, standard error when None."""
        self._model, self._report, self._log = model, report, log
        self._seen: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()

    def run(self, names: Sequence[str] | None, feeds: dict[str, Any], /) -> list[NDArray[Any]]:
        """Run once, as the model does."""
        outputs = self._model.run(names, feeds)
        shapes = tuple((name, np.shape(feeds[name])) for name in sorted(feeds))
        if shapes not in self._seen:
            self._seen.add(shapes)
            self._print(", ".join(f"{name} {list(shape)}" for name, shape in shapes), feeds)
        return outputs

    def _print(self, shapes: str, feeds: dict[str, Any]) -> None:
        steps = [StepTime(*step) for step in self._model.profile(feeds, REPEATS)]
        out = sys.stderr if self._log is None else self._log
        print(f"steps for {shapes}:\n{table(steps, self._report)}", file=out)


def table(steps: Sequence[StepTime], report: Report) -> str:
    """A line per step: node, kernel, tiles, time, share; GFLOP/s and dense's prediction for layers.

    Args:
        steps: what ``Program.profile`` returned.
        report: ``Program.report``; a layer's work is two operations per nonzero and token, known
            when the model was compiled for a fixed number of tokens.  "x dense" compares the
            time measured with the time predicted for the best dense kernel.
    """
    layers = _layers_of(steps, report)
    total = sum(s.nanoseconds for s in steps) or 1
    rows = [_row(s, layer, total) for s, layer in zip(steps, layers, strict=True)]
    rows.append(("total", "", "", f"{total / 1e3:.1f} us", "", "", ""))
    rows.insert(0, ("node", "kernel", "tiles", "time", "share", "GFLOP/s", "x dense predicted"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    pairs = list(zip(row, widths, strict=True))
    texts = [cell.ljust(width) for cell, width in pairs[:2]]
    return "  ".join(texts + [cell.rjust(width) for cell, width in pairs[2:]]).rstrip()


def _row(step: StepTime, layer: Mapping[str, Any] | None, total: int) -> tuple[str, ...]:
    time = f"{step.nanoseconds / 1e3:.1f} us"
    share = f"{100 * step.nanoseconds / total:.1f} %"
    work = _operations(layer) if layer else None
    dense = _dense_microseconds(layer) if layer and work else None
    return (
        step.node,
        step.kernel.rpartition("_")[0] or step.kernel,
        str(step.tiles),
        time,
        share,
        f"{work / step.nanoseconds:.1f}" if work and step.nanoseconds else "",
        f"{1e3 * dense / step.nanoseconds:.2f}" if dense and step.nanoseconds else "",
    )


def _layers_of(steps: Sequence[StepTime], report: Report) -> list[Mapping[str, Any] | None]:
    """The report's layer each step computes: the same node and kernel; in order where several are."""
    waiting: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for layer in report.get("layers", ()):
        for node in {str(layer.get("origin", "")), str(layer.get("node", ""))}:
            waiting.setdefault((node, str(layer.get("kernel", ""))), []).append(layer)
    found: list[Mapping[str, Any] | None] = []
    for step in steps:
        same = waiting.get((step.node, step.kernel.rpartition("_")[0]))
        found.append(same.pop(0) if same else None)
    return found


def _operations(layer: Mapping[str, Any]) -> float | None:
    """Useful floating-point operations of a layer, or None where the report does not say."""
    tokens = layer.get("tokens")
    if layer.get("kind") != "linear" or not isinstance(tokens, int):
        return None
    weights = float(np.prod(layer["shape"]))
    return 2.0 * weights * (1.0 - float(layer["sparsity"])) * tokens


def _dense_microseconds(layer: Mapping[str, Any]) -> float | None:
    times = [float(c["microseconds"]) for c in layer.get("candidates", ()) if c["format"] == "dense"]
    return min(times, default=None)

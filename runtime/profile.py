"""Where a run's time goes: each step's time, beside the work the report knows of."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, TextIO

import numpy as np

Report = Mapping[str, Any]

#: runs that SPARSEC_DEBUG=3 times for each new set of input shapes
REPEATS = 10


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step of a program: ``nanoseconds`` is the median over the runs; 0 ``tiles`` never run.

    ``operations`` are those of products with weights' zeros left out, ``bytes`` those of every
    array the step reads or writes; 0 where the report does not say.
    """

    node: str
    kernel: str
    nanoseconds: int
    tiles: int
    operations: int = 0
    bytes: int = 0


class Model(Protocol):
    """What of the C extension's Model a watched run needs."""

    @property
    def inputs(self) -> Sequence[tuple[str, str, tuple[int | str, ...]]]:
        """Name, dtype and shape of every input."""

    def run(self, names: Sequence[str] | None, feeds: dict[str, Any], /, *device: Any) -> list[Any]:
        """Run once."""

    def profile(
        self, feeds: dict[str, Any], repeats: int, /, *device: Any
    ) -> list[tuple[str, str, int, int]]:
        """Node, kernel, nanoseconds and tiles of every step."""


def timed(model: Model, report: Report, feeds: dict[str, Any], repeats: int, *device: Any) -> list[StepTime]:
    """The model's steps with their times, and with the work the report knows of.

    ``device``: what finds the stream of a run on a GPU, as the C extension's ``profile`` takes it.
    """
    found = model.profile(feeds, repeats, *device)
    sizes = {
        size: np.shape(feeds[name])[axis]
        for name, _, shape in model.inputs
        for axis, size in enumerate(shape)
        if isinstance(size, str)
    }
    works: Sequence[Mapping[str, Any]] = report.get("steps", ())
    if [w.get("kernel") for w in works] != [kernel for _, kernel, _, _ in found]:
        return [StepTime(*step) for step in found]
    return [
        StepTime(*step, *(_number(work.get(key, 0), sizes) for key in ("operations", "bytes")))
        for step, work in zip(found, works, strict=True)
    ]


def _number(size: int | str, sizes: Mapping[str, int]) -> int:
    """What ``1024*batch + 64`` comes to; 0 where a name is unknown."""
    if isinstance(size, int):
        return size
    terms = [term.split("*") for term in size.split(" + ")]
    if any(not _is_whole(factor) and factor not in sizes for term in terms for factor in term):
        return 0
    return sum(prod(int(f) if _is_whole(f) else sizes[f] for f in term) for term in terms)


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdigit()


class Watched:
    """Runs a model, and before the first run on any set of shapes prints what its steps cost."""

    __slots__ = ("_log", "_model", "_report", "_seen")

    def __init__(self, model: Model, report: Report, log: TextIO | None = None) -> None:
        """``log``: where to print, standard error when None."""
        self._model, self._report, self._log = model, report, log
        self._seen: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()

    def run(self, names: Sequence[str] | None, feeds: dict[str, Any], /, *device: Any) -> list[Any]:
        """Run once, as the model does."""
        outputs = self._model.run(names, feeds, *device)
        shapes = tuple((name, np.shape(feeds[name])) for name in sorted(feeds))
        if shapes not in self._seen:
            self._seen.add(shapes)
            self._print(", ".join(f"{name} {list(shape)}" for name, shape in shapes), feeds, device[1:])
        return outputs

    def _print(self, shapes: str, feeds: dict[str, Any], find_stream: Sequence[Any]) -> None:
        steps = timed(self._model, self._report, feeds, REPEATS, *find_stream)
        out = sys.stderr if self._log is None else self._log
        print(f"steps for {shapes}:\n{table(steps, self._report)}", file=out)


def table(steps: Sequence[StepTime], report: Report) -> str:
    """A line per step: node, kernel, tiles, time, share, GFLOP/s, GB/s; dense's prediction for layers.

    Args:
        steps: what ``Program.profile`` returned.
        report: ``Program.report``.  "x dense" compares the time measured with the time predicted
            for the best dense kernel, where the number of tokens was known to the compiler.
    """
    layers = _layers_of(steps, report)
    total = sum(s.nanoseconds for s in steps)
    rows = [_row(s, layer, total or 1) for s, layer in zip(steps, layers, strict=True)]
    sums = (sum(s.operations for s in steps), sum(s.bytes for s in steps))
    rows.append(("total", "", "", f"{total / 1e3:.1f} us", "", *(_rate(n, total) for n in sums), ""))
    rows.insert(0, ("node", "kernel", "tiles", "time", "share", "GFLOP/s", "GB/s", "x dense predicted"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    pairs = list(zip(row, widths, strict=True))
    texts = [cell.ljust(width) for cell, width in pairs[:2]]
    return "  ".join(texts + [cell.rjust(width) for cell, width in pairs[2:]]).rstrip()


def _row(step: StepTime, layer: Mapping[str, Any] | None, total: int) -> tuple[str, ...]:
    dense = _dense_microseconds(layer) if layer else None
    return (
        step.node,
        step.kernel.rpartition("_")[0] or step.kernel,
        str(step.tiles),
        f"{step.nanoseconds / 1e3:.1f} us",
        f"{100 * step.nanoseconds / total:.1f} %",
        _rate(step.operations, step.nanoseconds),
        _rate(step.bytes, step.nanoseconds),
        f"{1e3 * dense / step.nanoseconds:.2f}" if dense and step.nanoseconds else "",
    )


def _rate(amount: int, nanoseconds: int) -> str:
    """Billions a second; empty where nothing is known."""
    return f"{amount / nanoseconds:.1f}" if amount and nanoseconds else ""


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


def _dense_microseconds(layer: Mapping[str, Any]) -> float | None:
    if not isinstance(layer.get("tokens"), int):
        return None
    times = [float(c["microseconds"]) for c in layer.get("candidates", ()) if c["format"] == "dense"]
    return min(times, default=None)

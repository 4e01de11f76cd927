"""summary: what a report comes to: times of layers in one unit, totals, and what to prune next.

Sizes that a model's inputs leave open are taken as what a measurement ran with, else as 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

Report = Mapping[str, Any]
Layer = Mapping[str, Any]

#: what an open size is taken as
OPEN = 32


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds a run of one layer, of what was chosen and of the best dense kernel."""

    predicted: float | None = None
    dense_predicted: float | None = None
    measured: float | None = None
    dense_measured: float | None = None

    @property
    def time(self) -> float | None:
        """As measured if it was."""
        return self.predicted if self.measured is None else self.measured

    @property
    def dense(self) -> float | None:
        """As measured if it was."""
        return self.dense_predicted if self.dense_measured is None else self.dense_measured

    @property
    def speed_up(self) -> float | None:
        """Over dense: both measured, or else both predicted."""
        if self.measured and self.dense_measured:
            return self.dense_measured / self.measured
        if self.predicted and self.dense_predicted:
            return self.dense_predicted / self.predicted
        return None


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all layers: microseconds, bytes, steps; ``whole``: of all steps of the program, measured.

    ``bound_bytes`` is 0 unless it is known of every layer.
    """

    layers: int
    steps: int
    bytes: int
    dense_bytes: int
    predicted: float
    dense_predicted: float
    whole: float | None = None
    dense_whole: float | None = None
    bound_bytes: int = 0

    @property
    def expected(self) -> float | None:
        """How many times faster than dense kernels the layers are predicted to be."""
        return self.dense_predicted / self.predicted if self.predicted else None

    @property
    def measured(self) -> float | None:
        """How many times faster than with dense kernels the whole program was."""
        return self.dense_whole / self.whole if self.dense_whole and self.whole else None


def open_sizes(report: Report) -> dict[str, int]:
    """What sizes left open were when the report was measured."""
    return dict(report.get("measured", {}).get("sizes", {}))


def is_open(report: Report) -> bool:
    """Whether times depend on sizes that inputs leave open."""
    return any(isinstance(layer.get("tokens"), str) for layer in report.get("layers", ()))


def number(size: int | str, sizes: Mapping[str, int] | None = None) -> int:
    """What ``64*batch + 8`` comes to."""
    if isinstance(size, int):
        return size
    known = sizes or {}

    def factor(text: str) -> int:
        return int(text) if text.lstrip("-").isdigit() else known.get(text, OPEN)

    return sum(prod(map(factor, term.split("*"))) for term in size.split(" + "))


def times_of(layer: Layer, sizes: Mapping[str, int] | None = None) -> Times:
    """A layer's times; those predicted for one panel or image are multiplied by how many there are."""
    candidates: Sequence[Report] = layer.get("candidates", ())
    factor = 1.0
    if "predicted_for" in layer:
        per = int(layer["predicted_for"])
        factor = -(-number(layer.get("tokens", per), sizes) // per)
    own = [c for c in candidates if c.get("kernel") == layer.get("kernel")]
    left_out = [layer["whole_dense"]] if "whole_dense" in layer else []
    dense = left_out or [c for c in candidates if c.get("format") == "dense"]
    return Times(
        _least(own, "microseconds", factor),
        _least(dense, "microseconds", factor),
        layer.get("measured_microseconds", _least(own, "measured_microseconds")),
        _least(dense, "measured_microseconds"),
    )


def _least(found: Sequence[Report], key: str, factor: float = 1.0) -> float | None:
    return min((factor * float(c[key]) for c in found if c.get(key) is not None), default=None)


def shares_of(report: Report) -> list[float | None]:
    """Every layer's share of the time: of all steps if those were measured, else of all layers."""
    sizes = open_sizes(report)
    times = [times_of(layer, sizes) for layer in report.get("layers", ())]
    whole = report.get("measured", {}).get("microseconds")
    if whole:
        return [None if t.measured is None else t.measured / whole for t in times]
    tuned = all(t.measured for t in times if t.predicted)
    spent = [t.measured if tuned else t.predicted for t in times]
    total = sum(time or 0.0 for time in spent)
    return [None if time is None or not total else time / total for time in spent]


def totals_of(report: Report) -> Totals:
    """The report in eight numbers."""
    layers: Sequence[Layer] = report.get("layers", ())
    steps = report.get("steps", ())
    sizes, measured = open_sizes(report), report.get("measured", {})
    times = [times_of(layer, sizes) for layer in layers]
    both = [(t.predicted, t.dense_predicted) for t in times if t.predicted and t.dense_predicted]
    return Totals(
        len(layers),
        steps if isinstance(steps, int) else len(steps),
        sum(int(layer.get("bytes", 0)) for layer in layers),
        sum(int(layer.get("dense_bytes", 0)) for layer in layers),
        sum(time for time, _ in both),
        sum(dense for _, dense in both),
        measured.get("microseconds"),
        measured.get("dense_microseconds"),
        sum(int(layer["bound_bytes"]) for layer in layers) if all("bound_bytes" in x for x in layers) else 0,
    )


def next_speed_up(report: Report) -> str:
    """Where pruning otherwise would gain most, in a sentence; empty where nothing is known."""
    layers: Sequence[Layer] = report.get("layers", ())
    if "suggestions" not in report or not layers:
        return ""
    shares = shares_of(report)
    places = {layer["node"]: i for i, layer in enumerate(layers)}
    found = [
        (one, _alike(layers, places[one["node"]])) for one in report["suggestions"] if one["node"] in places
    ]
    if not found:
        return "no other pruning tried would make the slowest layers faster"

    def share(alike: Sequence[int]) -> float:
        return sum(shares[i] or 0.0 for i in alike)

    best, alike = max(found, key=lambda f: share(f[1]) * (1 - f[0]["then"] / f[0]["microseconds"]))
    index, many = places[best["node"]], len(alike) > 1
    layer = layers[index]
    others = f" and {len(alike) - 1} like it" if many else ""
    part = f"{best['then'] / best['microseconds']:.2g} of {'their' if many else 'its'} time"
    return (
        f"layer {index + 1} ({layer.get('origin') or layer['node']}){others} {_character(layer, many)} and "
        f"take{'' if many else 's'} {100 * share(alike):.0f} % of the time: {_otherwise(best, many)} "
        f"{'they' if many else 'it'} would take {part}"
    )


def _alike(layers: Sequence[Layer], index: int) -> list[int]:
    """The layers that a suggestion for one of them holds for."""

    def kind(layer: Layer) -> tuple[object, ...]:
        time = times_of(layer).predicted
        return (layer.get("shape"), layer.get("kernel"), round(time) if time else None,
                round(20 * float(layer.get("sparsity", 0.0))))  # fmt: skip

    return [i for i, layer in enumerate(layers) if kind(layer) == kind(layers[index])]


def _character(layer: Layer, many: bool) -> str:
    """``is 62 % unstructured``, or ``has 3 % zeros``."""
    sparsity = float(layer.get("sparsity", 0.0))
    if sparsity < 0.005:
        return "are dense" if many else "is dense"
    if sparsity >= 0.5 and "unstructured" in str(layer.get("found", "")):
        return f"{'are' if many else 'is'} {100 * sparsity:.0f} % unstructured"
    return f"{'have' if many else 'has'} {100 * sparsity:.0f} % zeros"


def _otherwise(suggestion: Report, many: bool) -> str:
    if suggestion["pattern"] == "unstructured":
        return f"with {100 * suggestion['sparsity']:.0f} % of {'them' if many else 'it'} pruned"
    return f"as {suggestion['pattern']} blocks at the same density"

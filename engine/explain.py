"""The report as people read it: layer, what was found, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Layer = Mapping[str, Any]
Report = Mapping[str, Any]


def render(report: Report, console: Console, *, candidates: bool = False) -> None:
    """Print a report.

    Args:
        report: ``Program.report``.
        console: where to.
        candidates: also list what else was weighed for every layer.
    """
    layers: Sequence[Layer] = report.get("layers", ())
    if layers:
        console.print(_table(layers))
        console.print(_reasons(layers))
    if candidates:
        for layer in layers:
            _print_candidates(layer, console)
    console.print(_summary(layers, report))


def _table(layers: Iterable[Layer]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("layer", overflow="fold")
    table.add_column("outputs x inputs", no_wrap=True)
    table.add_column("zeros", justify="right", no_wrap=True)
    table.add_column("chosen", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for number, layer in enumerate(layers, start=1):
        table.add_row(
            str(number),
            escape(_name(layer)),
            _shape(layer.get("shape", ())),
            f"{100 * float(layer.get('sparsity', 0.0)):.1f} %",
            escape(str(layer.get("kernel", "") or layer.get("format", ""))),
            _size(layer),
        )
    return table


def _reasons(layers: Iterable[Layer]) -> Text:
    """What was found and why a choice was made; layers with the same text share a line."""
    shared: dict[str, list[str]] = {}
    for number, layer in enumerate(layers, start=1):
        shared.setdefault(_reason(layer), []).append(str(number))
    return Text("\n".join(["why", *(f"{', '.join(of)}: {text}" for text, of in shared.items())]))


def _reason(layer: Layer) -> str:
    found, reason = str(layer.get("found", "")), str(layer.get("reason", ""))
    return reason if found in reason else f"{reason}; the weight is {found}"


def _print_candidates(layer: Layer, console: Console) -> None:
    found: Sequence[Mapping[str, Any]] = layer.get("candidates", ())
    if not found:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=escape(_name(layer)), title_justify="left")
    for heading in ("candidate", "format", "predicted", "size"):
        table.add_column(heading, justify="right" if heading in ("predicted", "size") else "left")
    for one in found:
        mark = " *" if one.get("kernel") == layer.get("kernel") else ""
        microseconds = float(one.get("microseconds", 0.0))
        table.add_row(
            escape(f"{one.get('kernel', '')}{mark}"),
            str(one.get("format", "")),
            f"{microseconds:.1f} us",
            bytes_text(int(one.get("nbytes", 0))),
        )
    console.print(table)


def _summary(layers: Sequence[Layer], report: Report) -> str:
    steps = report.get("steps", ())
    count = steps if isinstance(steps, int) else len(steps)
    packed = sum(int(layer.get("bytes", 0)) for layer in layers)
    dense = sum(int(layer.get("dense_bytes", 0)) for layer in layers)
    text = f"{len(layers)} layers with weights" + (f", {count} steps" if count else "")
    if dense:
        text += f"; weights {bytes_text(packed)}, dense they would be {bytes_text(dense)}"
    return text


def _name(layer: Layer) -> str:
    return str(layer.get("origin") or layer.get("node", ""))


def _shape(shape: Iterable[Any]) -> str:
    return "x".join(str(size) for size in shape)


def _size(layer: Layer) -> str:
    packed, dense = int(layer.get("bytes", 0)), int(layer.get("dense_bytes", 0))
    share = f" ({packed / dense:.0%})" if dense else ""
    return bytes_text(packed) + share


def bytes_text(count: int) -> str:
    """A size with three digits: ``812 B``, ``45.1 KB``, ``2.36 MB`` (1 KB is 1024 bytes)."""
    power = next((p for p in range(3) if count < 1024 ** (p + 1)), 3)
    value = count / 1024**power
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {('B', 'KB', 'MB', 'GB')[power]}"

"""The report as people read it: layer, what was found, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sparsec.picture import coloured, shaded

Layer = Mapping[str, Any]
Report = Mapping[str, Any]


#: lines and characters of a layer's picture, and of each where there are more layers than FEW
PICTURE, THUMBNAIL, FEW = (12, 64), (4, 22), 6


def render(report: Report, console: Console, *, candidates: bool = False, pictures: bool = False) -> None:
    """Print a report.

    Args:
        report: ``Program.report``.
        console: where to.
        candidates: also list what else was weighed for every layer.
        pictures: first draw where every layer's zeros are.
    """
    layers: Sequence[Layer] = report.get("layers", ())
    if layers and pictures:
        _print_pictures(layers, console)
    if layers:
        console.print(_table(layers))
        console.print(_reasons(layers))
    if candidates:
        for layer in layers:
            _print_candidates(layer, console)
    console.print(_summary(layers, report))


def _print_pictures(layers: Sequence[Layer], console: Console) -> None:
    """Large, one below the other; many layers as thumbnails beside each other."""
    drawn = [(number, layer) for number, layer in enumerate(layers, start=1) if layer.get("raster")]
    if len(layers) > FEW:
        size = THUMBNAIL
        cells = [Group(_thumbnail_caption(*one), _drawn(one[1], console, size), "") for one in drawn]
        console.print(Columns(cells, width=size[1], padding=(0, 2)))
        return
    for number, layer in drawn:
        found = f"{layer.get('found', '')} -> {layer.get('format', '')}"
        console.print(Text(f"{number} {_name(layer)}: {_shape(layer.get('shape', ()))}, {found}"))
        console.print(_drawn(layer, console, PICTURE), "", sep="\n")


def _thumbnail_caption(number: int, layer: Layer) -> Text:
    lines = (
        f"{number} {_name(layer)}",
        _shape(layer.get("shape", ())),
        f"{_zeros(layer)} -> {layer.get('format', '')}",
    )
    return Text("\n".join(_shortened(line, THUMBNAIL[1]) for line in lines), no_wrap=True)


def _shortened(text: str, width: int) -> str:
    """The end of a name tells more than its beginning."""
    return text if len(text) <= width else f"..{text[2 - width :]}"


def _drawn(layer: Layer, console: Console, size: tuple[int, int]) -> Text:
    if has_colours(console):
        return coloured(layer["raster"], *size)
    lines = shaded(layer["raster"], *size, ascii_only=console.options.ascii_only)
    return Text("\n".join(lines), no_wrap=True)


def has_colours(console: Console) -> bool:
    """Whether a picture may be told by colours alone."""
    return console.color_system in ("256", "truecolor") and not console.no_color


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
            _zeros(layer),
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


def _zeros(layer: Layer) -> str:
    return f"{100 * float(layer.get('sparsity', 0.0)):.1f} %"


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

"""The report as people read it: layer, what was found, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sparsec.bench.measure import spelled
from sparsec.explain.summary import is_open, next_speed_up, open_sizes, shares_of, times_of, totals_of
from sparsec.sparsity.bound import traded
from sparsec.sparsity.picture import coloured, shaded

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
        console.print(_table(layers, report))
        console.print(_reasons(layers))
    if candidates:
        for layer in layers:
            _print_candidates(layer, console)
    if "what_if" in report:
        console.print(_what_if(report))
    for line in _summary(report):
        console.print(line, markup=False, highlight=False)


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
        console.print(Text(f"{number} {_name(layer)}: {shape_text(layer.get('shape', ()))}, {found}"))
        console.print(_drawn(layer, console, PICTURE), "", sep="\n")


def _thumbnail_caption(number: int, layer: Layer) -> Text:
    lines = (
        f"{number} {_name(layer)}",
        shape_text(layer.get("shape", ())),
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


def _table(layers: Sequence[Layer], report: Report) -> Table:
    calibrated = any("activation_zeros" in layer for layer in layers)
    sizes, shares = open_sizes(report), shares_of(report)
    measured = any(times_of(layer, sizes).measured for layer in layers)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("layer", overflow="fold")
    table.add_column("outputs x inputs", no_wrap=True)
    table.add_column("zeros", justify="right", no_wrap=True)
    if calibrated:
        table.add_column("zero inputs", justify="right", no_wrap=True)
    table.add_column("chosen", no_wrap=True)
    for heading in ("predicted", *(("measured",) if measured else ()), "faster", "share", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, (layer, share) in enumerate(zip(layers, shares, strict=True), start=1):
        times = times_of(layer, sizes)
        table.add_row(
            str(number),
            escape(_name(layer)),
            shape_text(layer.get("shape", ())),
            _zeros(layer),
            *([_zero_inputs(layer)] if calibrated else []),
            escape(str(layer.get("kernel", "") or layer.get("format", ""))),
            _time(times.predicted),
            *([_time(times.measured)] if measured else []),
            "" if times.speed_up is None else f"{times.speed_up:.1f}x",
            "" if share is None else f"{100 * share:.0f} %",
            bytes_text(int(layer.get("bytes", 0))) if measured else _size(layer),
        )
    return table


def _time(microseconds: float | None) -> str:
    return "" if microseconds is None else spelled(microseconds * 1e-6)


def _reasons(layers: Iterable[Layer]) -> Text:
    """What was found and why a choice was made; layers with the same text share a line."""
    shared: dict[str, list[str]] = {}
    for number, layer in enumerate(layers, start=1):
        shared.setdefault(reason_of(layer), []).append(str(number))
    return Text("\n".join(["why", *(f"{', '.join(of)}: {text}" for text, of in shared.items())]))


def reason_of(layer: Layer) -> str:
    """Why the choice was made, and what was found if the reason does not say."""
    found, reason = str(layer.get("found", "")), str(layer.get("reason", ""))
    if "removed" in layer:
        return f"the weight is {found}; of that: {reason}"
    return reason if found in reason else f"{reason}; the weight is {found}"


def _print_candidates(layer: Layer, console: Console) -> None:
    found: Sequence[Mapping[str, Any]] = layer.get("candidates", ())
    if not found:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=escape(_name(layer)), title_justify="left")
    measured = any("measured_microseconds" in one for one in found)
    for heading in ("candidate", "format", "predicted", *(("measured",) if measured else ()), "size"):
        table.add_column(heading, justify="left" if heading in ("candidate", "format") else "right")
    for one in found:
        mark = " *" if one.get("kernel") == layer.get("kernel") else ""
        table.add_row(
            escape(f"{one.get('kernel', '')}{mark}"),
            str(one.get("format", "")),
            _microseconds(one.get("microseconds", 0.0)),
            *([_microseconds(one.get("measured_microseconds"))] if measured else []),
            bytes_text(int(one.get("nbytes", 0))),
        )
    console.print(table)


def _microseconds(time: float | None) -> str:
    return "" if time is None else f"{float(time):.1f} us"


def _what_if(report: Report) -> Table:
    """What another pruning is predicted to change, layer by layer and in total."""
    found, sizes = report["what_if"], open_sizes(report)
    numbers = {layer["node"]: i for i, layer in enumerate(report["layers"], start=1)}
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"if pruned to {found['text']}",
        title_justify="left",
    )
    measured = "measured" in report
    for heading in ("#", "layer", "now", "then"):
        table.add_column(heading, justify="right" if heading == "#" else "left", overflow="fold")
    shown = ("time now", "time then", *(("measured then",) if measured else ()), "faster", "size then")
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    total = [0.0, 0.0, 0.0, 0.0]
    for one in found["layers"]:
        now, then = times_of(one["now"], sizes), times_of(one["then"], sizes)
        table.add_row(
            str(numbers[one["node"]]), escape(_name(one["now"])), one["now"]["kernel"], one["then"]["kernel"],
            _time(now.predicted), _time(then.predicted), *([_time(then.measured)] if measured else []),
            _times(now.predicted, then.predicted), _size(one["then"]),
        )  # fmt: skip
        parts = (now.predicted, then.predicted, then.measured, one["then"]["bytes"])
        total = [a + (b or 0) for a, b in zip(total, parts, strict=True)]
    table.add_section()
    table.add_row(
        "", "all layers", "", "", _time(total[0]), _time(total[1]), *([_time(total[2])] if measured else []),
        _times(total[0], total[1]), bytes_text(int(total[3])),
    )  # fmt: skip
    return table


def _times(before: float | None, after: float | None) -> str:
    return f"{before / after:.1f}x" if before and after else ""


def _summary(report: Report) -> Iterator[str]:
    """Totals, a sentence a line."""
    totals = totals_of(report)
    text = f"{totals.layers} layers with weights" + (f", {totals.steps} steps" if totals.steps else "")
    if totals.dense_bytes:
        packed, dense = bytes_text(totals.bytes), bytes_text(totals.dense_bytes)
        text += f"; weights {packed}, dense they would be {dense}"
        if totals.bound_bytes:
            text += f", the bound is {bytes_text(totals.bound_bytes)}"
    yield text
    yield from _traded(report.get("layers", ()))
    if totals.expected:
        yield (
            f"expected: {totals.expected:.2f}x as fast as dense in these layers, {_time(totals.predicted)} "
            f"for {_time(totals.dense_predicted)}{_at(report)}"
        )
    if totals.whole:
        against = (
            f", {totals.measured:.2f}x as fast as dense ({_time(totals.dense_whole)})"
            if totals.measured
            else ""
        )
        yield f"measured: {_time(totals.whole)} in all steps{against}"
    if sentence := next_speed_up(report):
        yield f"next: {sentence}"


def _traded(layers: Sequence[Layer]) -> Iterator[str]:
    """A line a kernel whose layers are clearly larger than they had to be."""
    found: dict[str, list[tuple[int, float]]] = {}
    for number, layer in enumerate(layers, start=1):
        if ratio := traded(layer):
            found.setdefault(str(layer.get("kernel", "")), []).append((number, ratio))
    for kernel, those in found.items():
        low, high = (f"{extreme(ratio for _, ratio in those):.2f}" for extreme in (min, max))
        times = f"{low}x" if low == high else f"{low}x to {high}x"
        layer_text = "layer" if len(those) == 1 else "layers"
        numbers = ranges(number for number, _ in those)
        verb = "trades" if len(those) == 1 else "trade"
        yield f"{kernel}: {layer_text} {numbers} {verb} size for speed: {times} of the bound for such zeros"


def ranges(numbers: Iterable[int]) -> str:
    """``1-3, 7`` for 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _at(report: Report) -> str:
    """What open sizes were taken as."""
    if not is_open(report):
        return ""
    sizes = open_sizes(report)
    return (
        f", with {', '.join(f'{k}={v}' for k, v in sizes.items())}" if sizes else ", open sizes taken as 32"
    )


def _name(layer: Layer) -> str:
    return str(layer.get("origin") or layer.get("node", ""))


def _zeros(layer: Layer) -> str:
    return f"{100 * float(layer.get('sparsity', 0.0)):.1f} %"


def _zero_inputs(layer: Layer) -> str:
    share = layer.get("activation_zeros")
    return "" if share is None else f"{100 * float(share):.1f} %"


def shape_text(shape: Iterable[Any]) -> str:
    """``64x32x3x3``."""
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

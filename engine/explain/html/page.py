"""page: a report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparsec.bench.measure import spelled
from sparsec.errors import ConfigError
from sparsec.explain.html import charts, graph_list
from sparsec.explain.summary import (
    Times,
    is_open,
    next_speed_up,
    number,
    open_sizes,
    shares_of,
    times_of,
    totals_of,
)
from sparsec.explain.text import bytes_text, reason_of, shape_text
from sparsec.runtime.files import folder_of
from sparsec.sparsity.bound import traded

Report = Mapping[str, Any]

#: the installation that brings what pages are made with
EXTRA = "pip install 'sparsec[report]'"


def write(path: Path, report: Report, title: str) -> None:
    """Write :func:`page` as a file, which appears whole.

    Raises:
        ConfigError: as for :func:`page`; or there is no such folder.
        ArtifactError: the file cannot be written.
    """
    from sparsec.runtime.files import replacing

    folder_of(path)
    text = page(report, title)
    with replacing(path) as file:
        file.write(text.encode())


def page(report: Report, title: str) -> str:
    """The whole page.

    Args:
        report: ``Program.report``, perhaps measured; one of an older version lacks some charts.
        title: what it is about, as the model's file name.

    Raises:
        ConfigError: jinja2 or matplotlib is not installed.
    """
    check()
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(files(__package__).joinpath("template.html").read_text("utf-8"))
    layers: Sequence[Report] = report.get("layers", ())
    sizes, shares = open_sizes(report), shares_of(report)
    times = [times_of(layer, sizes) for layer in layers]
    nodes = report.get("graph", ())
    measured = any(t.measured for t in times)
    return template.render(
        title=title,
        facts=_facts(report),
        tiles=_tiles(report),
        next=_sentence(next_speed_up(report)),
        rows=[_row(i, *one) for i, one in enumerate(zip(layers, times, shares, strict=True), start=1)],
        measured=measured,
        calibrated=any("activation_zeros" in layer for layer in layers),
        bars=_bars(layers, times, measured),
        roofline=_roofline(report, times, shares),
        graph=graph_list.drawn(nodes, layers, shares) if nodes else None,
        what_if=_what_if(report),
    )


def check() -> None:
    """See whether pages can be made, before anything takes time.

    Raises:
        ConfigError: a library is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"a page needs jinja2 and matplotlib: {EXTRA} ({error})") from error


def _facts(report: Report) -> list[str]:
    facts = []
    if "target" in report:
        facts.append(f"compiled for {report['target']['name']}")
    if "measured" in report:
        measured = report["measured"]
        threads = f"{measured['threads']} thread{'s' if measured['threads'] > 1 else ''}"
        turns = f"{measured['turns']} turns of {measured['runs']} runs"
        facts.append(f"measured here on {threads}, the best of {turns}")
    if is_open(report):
        sizes = open_sizes(report)
        named = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        facts.append(f"with {named}" if named else "sizes that inputs leave open are taken as 32")
    return facts


def _tiles(report: Report) -> list[dict[str, str]]:
    """The figures on top: label, value, what it is of."""
    totals = totals_of(report)
    tiles = []
    if totals.expected:
        about = f"{_time(totals.predicted)} for {_time(totals.dense_predicted)} in layers"
        tiles.append(_tile("expected speed-up", f"{totals.expected:.2f}x", about))
    if totals.measured and totals.whole and totals.dense_whole:
        about = f"{_time(totals.whole)} for {_time(totals.dense_whole)} in all steps"
        tiles.append(_tile("measured speed-up", f"{totals.measured:.2f}x", about))
    elif totals.whole:
        tiles.append(_tile("measured", _time(totals.whole), f"all {totals.steps} steps"))
    if totals.dense_bytes:
        about = f"{bytes_text(totals.bytes)} for {bytes_text(totals.dense_bytes)} dense"
        tiles.append(_tile("size of weights", f"{totals.bytes / totals.dense_bytes:.0%}", about))
    sparse = sum(layer.get("format") != "dense" for layer in report.get("layers", ()))
    rest = "the others run dense" if sparse < totals.layers else "none runs dense"
    tiles.append(_tile("sparse layers", f"{sparse} of {totals.layers}", rest))
    return tiles


def _tile(label: str, value: str, about: str) -> dict[str, str]:
    return {"label": label, "value": value, "about": about}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("." if text else "")


def _row(index: int, layer: Report, times: Times, share: float | None) -> dict[str, Any]:
    """A layer as its line of the table."""
    packed, dense = int(layer.get("bytes", 0)), int(layer.get("dense_bytes", 0))
    return {
        "number": index, "name": _name(layer), "kind": layer.get("kind", ""),
        "shape": shape_text(layer.get("shape", ())), "tokens": str(layer.get("tokens", "")),
        "found": layer.get("found", ""), "zeros": float(layer.get("sparsity", 0.0)),
        "zero_inputs": layer.get("activation_zeros"),
        "picture": charts.zeros(layer["raster"]) if layer.get("raster") else "",
        "kernel": layer.get("kernel") or layer.get("format", ""), "format": layer.get("format", ""),
        "reason": f"{reason_of(layer)}.", "predicted": times.predicted, "measured": times.measured,
        "dense": times.dense, "speed_up": times.speed_up, "share": share, "bytes": packed,
        "predicted_text": _time(times.predicted), "measured_text": _time(times.measured),
        "dense_text": _time(times.dense), "size": bytes_text(packed),
        "of_dense": f"{packed / dense:.0%}{_of_bound(layer)}" if dense else "",
        "candidates": [_candidate(c, layer) for c in layer.get("candidates", ())],
    }  # fmt: skip


def _of_bound(layer: Report) -> str:
    """How many times the bound a layer takes that trades size for speed."""
    ratio = traded(layer)
    return f", {ratio:.2f}x the bound" if ratio else ""


def _candidate(candidate: Report, layer: Report) -> dict[str, Any]:
    return {
        "kernel": candidate["kernel"], "format": candidate["format"],
        "chosen": candidate["kernel"] == layer.get("kernel"),
        "predicted": _time(candidate.get("microseconds")),
        "measured": _time(candidate.get("measured_microseconds")),
        "size": bytes_text(int(candidate.get("nbytes", 0))),
    }  # fmt: skip


def _time(microseconds: float | None) -> str:
    return "" if microseconds is None else spelled(microseconds * 1e-6)


def _name(layer: Report) -> str:
    return str(layer.get("origin") or layer.get("node", ""))


def _label(index: int, layer: Report) -> str:
    name = _name(layer)
    return f"{index}  {name if len(name) < 24 else '..' + name[-22:]}"


def _bars(layers: Sequence[Report], times: Iterable[Times], measured: bool) -> str:
    found = [
        charts.Bar(_label(i, layer), t.time, t.dense, t.predicted, layer.get("format") != "dense", t.speed_up)
        for i, (layer, t) in enumerate(zip(layers, times, strict=True), start=1)
        if t.time
    ]
    return charts.bars(found, measured) if found else ""


def _roofline(report: Report, times: Iterable[Times], shares: Iterable[float | None]) -> str:
    sizes, points = open_sizes(report), []
    for i, (layer, t, share) in enumerate(zip(report.get("layers", ()), times, shares, strict=True), start=1):
        operations = number(layer.get("operations", 0), sizes)
        traffic = number(layer.get("traffic", 0), sizes)
        if operations and traffic and t.time:
            rate = operations / t.time / 1e3
            sparse = layer.get("format") != "dense"
            points.append(charts.Point(str(i), operations / traffic, rate, share or 0.0, sparse))
    if not points or "target" not in report:
        return ""
    reads = tuple((read["from"], float(read["gbs"])) for read in report["target"]["reads"])
    return charts.roofline(points, charts.Roof(float(report["target"]["gflops"]), reads))


def _what_if(report: Report) -> dict[str, Any] | None:
    """The table of another pruning: a row a layer, and their sums."""
    found = report.get("what_if")
    if not found:
        return None
    rows, sizes = [], open_sizes(report)
    numbers = {layer["node"]: i for i, layer in enumerate(report["layers"], start=1)}
    sums = [0.0, 0.0, 0, 0]
    for one in found["layers"]:
        now, then = (times_of(one[when], sizes) for when in ("now", "then"))
        rows.append({
            "number": numbers[one["node"]], "name": one["now"].get("origin") or one["node"],
            "shape": shape_text(one["now"]["shape"]), "now_kernel": one["now"]["kernel"],
            "then_kernel": one["then"]["kernel"], "now": _both(now), "then": _both(then),
            "gain": _gain(now.time, then.time), "now_size": bytes_text(one["now"]["bytes"]),
            "then_size": bytes_text(one["then"]["bytes"]),
        })  # fmt: skip
        sums = [sums[0] + (now.predicted or 0), sums[1] + (then.predicted or 0),
                sums[2] + one["now"]["bytes"], sums[3] + one["then"]["bytes"]]  # fmt: skip
    total = {"now": _time(sums[0]), "then": _time(sums[1]), "gain": _gain(sums[0], sums[1]),
             "now_size": bytes_text(int(sums[2])), "then_size": bytes_text(int(sums[3]))}  # fmt: skip
    return {"text": found["text"], "rows": rows, "total": total}


def _both(times: Times) -> tuple[str, str]:
    """As predicted, and as measured."""
    return _time(times.predicted), _time(times.measured)


def _gain(now: float | None, then: float | None) -> str:
    return f"{now / then:.2f}x" if now and then else ""

"""charts: inline SVG whose colours are the page's variables, so that they follow its light and dark."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from math import log
from typing import TYPE_CHECKING, Any

from sparsec.sparsity.picture import pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: colours that stand for the page's variables; none of them is one a chart would want
INK, QUIET, GRID, SPARSE, DENSE, BAR = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_VARIABLES = {
    INK: "--ink", QUIET: "--quiet", GRID: "--grid", SPARSE: "--sparse", DENSE: "--dense", BAR: "--bar",
}  # fmt: skip
#: inches
_WIDTH = 5.6
#: layers of the roofline that are numbered: those that take the longest
_NUMBERED = 8


@dataclass(frozen=True, slots=True)
class Bar:
    """A layer's times in microseconds; ``measured`` may be missing, then ``time`` is predicted."""

    label: str
    time: float
    dense: float | None
    predicted: float | None
    sparse: bool
    speed_up: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """A layer on the roofline: operations a byte, GFLOP/s, and its share of the time."""

    label: str
    intensity: float
    gflops: float
    share: float
    sparse: bool


@dataclass(frozen=True, slots=True)
class Roof:
    """Peak GFLOP/s, and (name, GB/s) of what is read from."""

    peak: float
    reads: tuple[tuple[str, float], ...]


def bars(layers: Sequence[Bar], measured: bool) -> str:
    """Time per layer over the time of dense kernels; ticks are predictions where bars were measured."""
    from matplotlib.ticker import MaxNLocator

    with _style("bars"):
        height = 0.24 * len(layers) + 0.55
        figure, axes = _figure(height)
        for y, bar in enumerate(layers):
            if bar.dense:
                axes.barh(y, bar.dense, height=0.74, color=BAR, linewidth=0, zorder=2)
            colour = SPARSE if bar.sparse else DENSE
            axes.barh(y, bar.time, height=0.4, color=colour, linewidth=0, zorder=3)
            if measured and bar.predicted:
                axes.plot([bar.predicted] * 2, [y - 0.3, y + 0.3], color=INK, linewidth=1.4, zorder=4)
            if bar.speed_up:
                axes.text(1.01, y, f"{bar.speed_up:.1f}x", transform=axes.get_yaxis_transform(),
                          va="center", fontsize=7.5, color=QUIET)  # fmt: skip
        axes.set_yticks(range(len(layers)), [bar.label for bar in layers], fontsize=7.5)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlabel("microseconds a run", fontsize=8)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        figure.subplots_adjust(left=0.33, right=0.91, top=1 - 0.45 / height, bottom=0.05 / height)
        return _svg(figure, "bars", "time per layer against dense kernels")


def roofline(points: Sequence[Point], roof: Roof) -> str:
    """What layers reach, under what the machine allows.

    Williams, Waterman and Patterson 2009: Roofline, an insightful visual performance model.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with _style("roofline"):
        figure, axes = _figure(3.4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = _span([p.intensity for p in points] + [roof.peak / rate for _, rate in roof.reads])
        bottom = _span([p.gflops for p in points] + [roof.peak])[0]
        _draw_roof(axes, roof, low, high, bottom)
        for p in points:
            axes.scatter([p.intensity], [p.gflops], s=20 + 260 * p.share, color=SPARSE if p.sparse else DENSE,
                         alpha=0.75, linewidths=0, zorder=4)  # fmt: skip
        for p in _apart(points):
            axes.annotate(p.label, (p.intensity, p.gflops), xytext=(5, 4), textcoords="offset points",
                          fontsize=7.5, color=INK, zorder=5)  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(bottom, roof.peak * 2.2)
        axes.set_xlabel("operations a byte (zeros left out)", fontsize=8)
        axes.set_ylabel("GFLOP/s", fontsize=8)
        axes.grid(color=GRID, linewidth=0.7)
        axes.tick_params(which="both", length=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        figure.subplots_adjust(left=0.1, right=0.98, top=0.98, bottom=0.14)
        return _svg(figure, "roofline", "roofline: GFLOP/s over operations a byte")


def _draw_roof(axes: Axes, roof: Roof, low: float, high: float, bottom: float) -> None:
    fastest = max((rate for _, rate in roof.reads), default=1.0)
    axes.plot([roof.peak / fastest, high], [roof.peak] * 2, color=INK, linewidth=1.4, zorder=3)
    axes.text(
        high, roof.peak * 1.08, f"{roof.peak:.0f} GFLOP/s ", ha="right", va="bottom", fontsize=7.5, color=INK
    )
    for (name, rate), dashes in zip(roof.reads, cycle(("-", "--", "-.", ":")), strict=False):
        start = max(low, bottom / rate)
        axes.plot([start, roof.peak / rate], [start * rate, roof.peak], color=QUIET, linewidth=1.1,
                  linestyle=dashes, label=f"{name} {rate:.0f} GB/s", zorder=3)  # fmt: skip
    axes.legend(loc="lower right", frameon=False, fontsize=7.5, labelcolor=QUIET)


def _apart(points: Sequence[Point]) -> list[Point]:
    """Those that take the longest, less those that lie on another: their numbers would too."""
    found: list[Point] = []
    for p in sorted(points, key=lambda p: -p.share):
        if not any(_near(p.intensity, o.intensity) and _near(p.gflops, o.gflops) for o in found):
            found.append(p)
    return found[:_NUMBERED]


def _near(a: float, b: float) -> bool:
    return abs(log(a / b)) < 0.25


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Half the smallest to three times the largest."""
    known = [v for v in values if v > 0] or [1.0]
    return min(known) / 2, max(known) * 3


def zeros(raster: Sequence[str]) -> str:
    """A weight's picture as a data URI of a PNG, a pixel a cell."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels(raster), format="png", metadata={"Software": "sparsec"})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _style(name: str) -> Any:
    from matplotlib import rc_context

    return rc_context({
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 8,
        "text.color": INK, "axes.labelcolor": QUIET, "xtick.color": QUIET, "ytick.color": INK,
        "axes.axisbelow": True,
    })  # fmt: skip


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    return figure, axes


def _svg(figure: Figure, name: str, about: str) -> str:
    """The figure as an element of a page: no declarations, no metadata, ids of its own, our colours."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    FigureCanvasSVG(figure)  # a figure is drawn by the canvas it was given last
    figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    box = re.search(r'viewBox="([^"]+)"', text)
    body = re.sub(
        r"<metadata>.*?</metadata>", "", text[text.index(">", text.index("<svg")) + 1 :], flags=re.S
    )
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    view = box[1] if box else ""
    return f'<svg class="chart" id="{name}" viewBox="{view}" role="img" aria-label="{about}">{body}'

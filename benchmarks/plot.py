"""Results as a picture: how many times faster than the best dense engine, workload by workload.

    python benchmarks/plot.py benchmarks/results/<cpu>.json

One picture for each number of threads, SVG beside the JSON.  A row's tick shows what its removed
work would allow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from table import NAMES, machine_line

Row = Mapping[str, Any]

INK, QUIET, GRID, BAND, SLOWER = "#1f2430", "#6b7280", "#e5e7eb", "#f8fafc", "#b91c1c"
#: colour, marker and size of an engine's dots; ours is drawn last
LOOKS = {
    "onnxruntime": ("#9aa4b2", "o", 34),
    "openvino": ("#5b7fa6", "s", 30),
    "torch": ("#c08457", "D", 26),
    "deepsparse": ("#8b5cf6", "^", 42),
    "sparsec": ("#0f9d76", "o", 74),
}
TITLES = {
    "linear": "feed-forward 768-3072-768, unstructured",
    "blocks": "in blocks (outputs x inputs)",
    "nm": "N of M inputs",
    "mlp": "MLP 784-1024-1024-10",
    "bert": "BERT-base encoder",
    "llama": "Llama block, one token",
    "convolution": "convolutional networks",
    "models": "files of others",
}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.hashsalt": "sparsec",
    "svg.fonttype": "path",
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": INK,
}


def draw(results: Mapping[str, Any], path: Path) -> list[Path]:
    """Write a picture for each number of threads beside ``path``; returns their paths."""
    rows = [r for r in results["results"] if "ratio" in r]
    written = []
    for threads in sorted({r["threads"] for r in rows}):
        name = path.stem + ("" if threads == 1 else f"-{threads}-threads")
        of_these = [r for r in rows if r["threads"] == threads]
        with plt.rc_context(STYLE):
            written.append(_picture(of_these, results["machine"], path.with_name(f"{name}.svg")))
    return written


def _picture(rows: Sequence[Row], machine: Mapping[str, Any], path: Path) -> Path:
    placed = list(_placed(rows))
    height = placed[-1][0] + 1
    figure, axes = plt.subplots(figsize=(9.5, 0.235 * height + 1.5))
    for y, row in placed:
        if isinstance(row, str):
            axes.text(-0.015, y, row, transform=axes.get_yaxis_transform(), ha="right", va="center",
                      fontsize=8.5, fontweight="bold", color=INK)  # fmt: skip
        else:
            _draw_row(axes, y, row)
    _finish(axes, placed, height)
    threads = "one thread" if rows[0]["threads"] == 1 else f"{rows[0]['threads']} threads"
    inch = 1 / figure.get_figheight()
    figure.subplots_adjust(left=0.36, right=0.925, top=1 - 0.92 * inch, bottom=0.5 * inch)
    figure.text(0.02, 1 - 0.3 * inch, "Speed-up over the best dense engine", fontsize=13, fontweight="bold")
    figure.text(
        0.02, 1 - 0.53 * inch, f"{machine_line(machine)}; {threads}, float32", color=QUIET, fontsize=8.5
    )
    figure.legend(
        handles=_legend(rows), loc="upper right", bbox_to_anchor=(0.985, 1 - 0.6 * inch), ncols=6,
        frameon=False, fontsize=8, handletextpad=0.2, columnspacing=1.2, borderaxespad=0,
    )  # fmt: skip
    figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
    plt.close(figure)
    return path


def _placed(rows: Sequence[Row]) -> Iterable[tuple[float, Row | str]]:
    """Every row and every group's title with its height from the top."""
    y = 0.0
    order = list(TITLES)
    known = sorted(rows, key=lambda r: order.index(_group(r)))
    for group, members in groupby(known, key=_group):
        yield y, TITLES[group]
        y += 1
        for row in members:
            yield y, row
            y += 1
        y += 0.5


def _group(row: Row) -> str:
    return row.get("group", "models")


def _draw_row(axes: Axes, y: float, row: Row) -> None:
    times = {name: timing["median_us"] for name, timing in row["engines"].items()}
    best = times[row["best_dense"]]
    ours = best / times["sparsec"]
    axes.axhspan(y - 0.42, y + 0.42, color=BAND, zorder=0)
    colour = LOOKS["sparsec"][0] if ours >= 1 else SLOWER
    axes.plot([1, ours], [y, y], color=colour, alpha=0.35, linewidth=3, solid_capstyle="butt", zorder=2)
    if row.get("operations"):
        allowed = row.get("dense_operations", row["operations"]) / row["operations"]
        if allowed > 1.005:
            axes.plot([allowed], [y], marker="|", markersize=9, markeredgewidth=1.6, color=QUIET, zorder=3)
    for zorder, (name, (colour, marker, size)) in enumerate(LOOKS.items(), start=4):
        if name in times:
            axes.scatter(best / times[name], y, s=size, c=colour, marker=marker, zorder=zorder,
                         edgecolors="white", linewidths=0.7)  # fmt: skip
    axes.text(
        1.015, y, f"{ours:.2f}x" if ours < 10 else f"{ours:.1f}x", transform=axes.get_yaxis_transform(),
        va="center", fontsize=8, color=INK if ours >= 1 else SLOWER,
    )  # fmt: skip


def _finish(axes: Axes, placed: Sequence[tuple[float, Row | str]], height: float) -> None:
    rows = [(y, row) for y, row in placed if not isinstance(row, str)]
    axes.set_yticks([y for y, _ in rows], [_label(row) for _, row in rows])
    axes.set_ylim(height - 0.4, -0.6)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high * 1.12, 2.5))
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0, pad=5)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=1)
    axes.set_axisbelow(True)
    axes.axvline(1, color=QUIET, linewidth=1.1, zorder=1.5)
    axes.spines[:].set_visible(False)
    for label in axes.get_yticklabels():
        label.set_fontsize(8)


def _label(row: Row) -> str:
    """The workload without what its group's title says."""
    text = str(row["about"])
    for common in ("768-3072-768, GELU, ", "MLP 784-1024-1024-10, layer norm, ", "BERT-base encoder, ",
                   "Llama block 2048/5632, 1 token, ", " unstructured"):  # fmt: skip
        text = text.replace(common, "")
    return text


def _legend(rows: Sequence[Row]) -> list[Line2D]:
    present = [name for name in reversed(LOOKS) if any(name in r["engines"] for r in rows)]
    dots = [
        Line2D([], [], linestyle="", color=LOOKS[n][0], marker=LOOKS[n][1], label=NAMES[n],
               markersize=LOOKS[n][2] ** 0.5, markeredgecolor="white")
        for n in present
    ]  # fmt: skip
    tick = Line2D([], [], linestyle="", marker="|", markersize=9, markeredgewidth=1.6, color=QUIET,
                  label="what zeros allow")  # fmt: skip
    return [*dots, tick]


def main() -> None:
    for argument in sys.argv[1:]:
        path = Path(argument)
        print(*draw(json.loads(path.read_text()), path), sep="\n")


if __name__ == "__main__":
    main()

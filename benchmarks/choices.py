"""Whether the kernel chosen without measuring is the fastest: each problem's candidates, measured.

    python benchmarks/choices.py                      what is not in the results file yet
    python benchmarks/choices.py --every 8 --again    one problem in eight, measured anew
    python benchmarks/choices.py --worse 1.1          again those that a noisy moment may have spoiled
    python benchmarks/choices.py --show               the summary of the results file

Problems: every DLMC and SkimCaffe matrix of the shared data folder (random values where a file has
none), and some of their shapes pruned as blocks, N:M, with hub rows and with dead rows; times 1, 32 and
256 columns.  Each candidate runs at its predicted best settings, in turns with the one that was chosen,
in a process of its own; results are checked against each other there.  A choice is good if no candidate
is faster by more than a tenth.

What a tuner would choose from those times is then measured beside every candidate that came near it
and the untuned choice, three times; it is good if none is faster by more than 5 % and 2 us.

Results: ``benchmarks/results/choices-<cpu>.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from machine import described, slug
from problems import COLUMNS, Problem, layer_of, problems
from rich.progress import track
from table import machine_line

from sparsec.targets.named import native
from sparsec.tuning.measurer import Measurer
from sparsec.tuning.search import chosen
from sparsec.tuning.tasks import Layer, Trial

RESULTS = Path(__file__).parent / "results"
#: a choice is good up to this many times the best, and never may be worse than the second
GOOD, WORST = 1.10, 1.5
#: a tuned choice is good up to this share, or this many microseconds, over the best
TUNED_SHARE, TUNED_MICRO = 1.05, 2.0
#: candidates up to this many times the best are measured beside the tuned choice
NEAR = 1.3
#: how often each pair is measured then, and how many candidates in turn may be the best
AGAIN, SWITCHES = 3, 3


def measure(problem: Problem, measurer: Measurer) -> dict[str, Any]:
    """Predicted and measured microseconds of every candidate, the chosen one first."""
    layer = layer_of(problem)
    firsts = {t.kernel: t for t in reversed(layer.trials)}
    order = dict.fromkeys(t.kernel for t in layer.trials)
    found = {}
    for kernel in order:
        trial = firsts[kernel]
        answer = measurer.measure(layer, kernel, trial.config)
        about: dict[str, Any] = {"predicted": round(trial.predicted, 3), "config": dict(trial.config)}
        if answer.seconds and answer.default:
            micro, beside = (round(seconds * 1e6, 3) for seconds in (answer.seconds, answer.default))
            about |= {"measured": micro, "beside": beside}
        found[kernel] = about | {"status": answer.status}
    return {
        "problem": problem.name, "group": problem.matrix.group, "columns": problem.columns,
        "shape": [layer.problem.rows, layer.problem.inner], "pattern": layer.task.pattern,
        "chosen": next(iter(order)), "candidates": found, "tuned": tuned(layer, firsts, found, measurer),
    }  # fmt: skip


def tuned(
    layer: Layer, trials: Mapping[str, Trial], found: Mapping[str, Any], measurer: Measurer
) -> dict[str, Any]:
    """What those times choose, and [its own, the other's] microseconds beside each that came near.

    Where one of these is faster after all, it is held against the rest in its turn.
    """
    times = {name: one["measured"] / one["beside"] for name, one in found.items() if "measured" in one}
    first = layer.trials[0]
    best = chosen({(n, trials[n].config): t for n, t in times.items()}, (first.kernel, first.config))
    if best is None:
        return {}
    name, _ = best
    beside: dict[str, list[float]] = {}
    for _ in range(SWITCHES):
        near = [n for n, t in times.items() if n != name and (t < NEAR * times[name] or n == first.kernel)]
        beside = _beside(replace(layer, trials=(trials[name],)), [trials[n] for n in near], measurer)
        faster = [n for n, (own, other) in beside.items() if other < 0.985 * own]
        if not faster:
            break
        name = min(faster, key=lambda n: beside[n][1] / beside[n][0])
    return {"kernel": name, "beside": beside}


def _beside(layer: Layer, trials: list[Trial], measurer: Measurer) -> dict[str, list[float]]:
    """[the layer's first trial's, the other's] microseconds, medians of a few measurements."""
    found = {}
    for trial in trials:
        answers = [measurer.measure(layer, trial.kernel, trial.config) for _ in range(AGAIN)]
        pairs = [(a.default * 1e6, a.seconds * 1e6) for a in answers if a.seconds and a.default]
        if pairs:
            found[trial.kernel] = [round(median(times), 3) for times in zip(*pairs, strict=True)]
    return found


def tuned_well(row: Mapping[str, Any]) -> bool:
    """Whether nothing near the tuned choice is faster by more than 5 % and 2 us."""
    pairs = row["tuned"].get("beside", {}).values()
    return all(own <= max(TUNED_SHARE * best, best + TUNED_MICRO) for own, best in pairs)


def regret(row: Mapping[str, Any]) -> tuple[float, str]:
    """The chosen kernel's time over the best one's, and which that is.

    The best of several noisy times is lucky, so how far it is ahead comes from the second measurement.
    """
    ratios = {
        name: one["measured"] / one["beside"] for name, one in row["candidates"].items() if "measured" in one
    }
    if not ratios:
        return 1.0, str(row["chosen"])
    best = row["tuned"].get("kernel", row["chosen"])
    if best == row["chosen"]:
        return 1.0, best
    best_time, chosen_time = row["tuned"].get("beside", {}).get(row["chosen"], (ratios[best], 1.0))
    return max(1.0, chosen_time / best_time), best


def markdown(results: Mapping[str, Any]) -> str:
    """Shares of good choices by group and columns, then the worst ones."""
    rows = results["choices"]
    lines = [
        "| problems | columns | count | within a tenth of the best | worst | tuned: within 5 % or 2 us |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups = [*dict.fromkeys(r["group"] for r in rows), ""]
    for group in groups:
        for columns in COLUMNS if group else (*COLUMNS, 0):
            some = [r for r in rows if group in ("", r["group"]) and columns in (0, r["columns"])]
            if some:
                times = [regret(r)[0] for r in some]
                good = sum(x <= GOOD for x in times) / len(some)
                after = sum(map(tuned_well, some)) / len(some)
                cells = (group or "all", columns or "all", len(some), f"{good:.1%}", f"{max(times):.2f}x",
                         f"{after:.1%}")  # fmt: skip
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    worst = sorted(rows, key=lambda r: -regret(r)[0])[:15]
    lines += ["", "The choices furthest from the best:", "", "| problem | chosen | best | times the best |",
              "| --- | --- | --- | ---: |"]  # fmt: skip
    for row in worst:
        times, best = regret(row)
        lines.append(f"| {row['problem']} | {row['chosen']} | {best} | {times:.2f}x |")
    return f"{machine_line(results['machine'])}\n\nOne thread, float32.\n\n" + "\n".join(lines) + "\n"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Predicted over measured microseconds of every candidate, a colour a kernel."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sparsec"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 7))
    points: dict[str, list[tuple[float, float]]] = {}
    for row in results["choices"]:
        for name, one in row["candidates"].items():
            if "measured" in one:
                points.setdefault(name, []).append((one["measured"], one["predicted"]))
    for name, found in sorted(points.items()):
        axes.scatter(*zip(*found, strict=True), s=6, alpha=0.6, label=name)
    ends = (0.1, 1e5)
    axes.plot(ends, ends, color="gray", linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured us", ylabel="predicted us")
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one problem in N")
    parser.add_argument("--again", action="store_true", help="measure what the results file has, too")
    parser.add_argument("--worse", type=float, metavar="X", help="again what took X times the best")
    parser.add_argument("--show", action="store_true", help="print the summary and end")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long")
    options = parser.parse_args()
    about = described()
    path = RESULTS / f"choices-{slug(about)}.json"
    rows = {r["problem"]: r for r in json.loads(path.read_text())["choices"]} if path.is_file() else {}
    if not options.show:
        wanted = [p for p in list(problems())[:: options.every] if _wanted(p, rows, options)]
        _measure_all(wanted, rows, path, about, options.minutes)
    results = {"machine": about, "choices": list(rows.values())}
    draw(results, path.with_suffix(".svg"))
    print(markdown(results))


def _wanted(problem: Problem, rows: Mapping[str, Any], options: argparse.Namespace) -> bool:
    row = rows.get(problem.name)
    if row is None:
        return options.worse is None
    if options.worse is None:
        return bool(options.again)
    return regret(row)[0] > options.worse or not tuned_well(row)


def _measure_all(wanted: list[Problem], rows: dict[str, Any], path: Path, about: Any, minutes: float) -> None:
    import time

    end = time.monotonic() + 60 * minutes
    with Measurer(native()) as measurer:
        for problem in track(wanted, disable=not sys.stderr.isatty()):
            if time.monotonic() > end:
                break
            rows[problem.name] = measure(problem, measurer)
            results = {"machine": about, "choices": list(rows.values())}
            path.write_text(json.dumps(results, indent=0) + "\n")
            path.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()

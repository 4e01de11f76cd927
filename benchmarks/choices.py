"""Whether the kernel chosen without measuring is the fastest: each problem's candidates, measured.

    python benchmarks/choices.py                      what is not in the results file yet
    python benchmarks/choices.py --every 8 --again    one problem in eight, measured anew
    python benchmarks/choices.py --worse 1.1          again those whose choice was that far from the best
    python benchmarks/choices.py --show               the summary of the results file

Problems: every DLMC and SkimCaffe matrix of the shared data folder (random values where a file has
none), and some of their shapes pruned as blocks, N:M, with hub rows and with dead rows; times 1, 32 and
256 columns.  Each candidate runs at its predicted best settings, in turns with the one that was chosen,
in a process of its own; results are checked against each other there.  A choice is good if no candidate
is faster by more than a tenth.

What a tuner would choose from those times is then measured once more beside every candidate that came
near it and the untuned choice; it is good if none is faster by more than 5 % and 2 us.

Results: ``benchmarks/results/choices-<cpu>.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import described, slug
from matrices import Matrix, dlmc, skimcaffe
from rich.progress import track
from table import machine_line

from sparsec import pipeline
from sparsec.compiler import ANALYSIS
from sparsec.frontends import import_model
from sparsec.targets.x86 import native
from sparsec.tuning.measurer import Measurer
from sparsec.tuning.search import chosen
from sparsec.tuning.tasks import Layer, Trial, layers_of

RESULTS = Path(__file__).parent / "results"
COLUMNS = (1, 32, 256)
#: a choice is good up to this many times the best, and never may be worse than the second
GOOD, WORST = 1.10, 1.5
#: a tuned choice is good up to this share, or this many microseconds, over the best
TUNED_SHARE, TUNED_MICRO = 1.05, 2.0
#: candidates up to this many times the best are measured beside the tuned choice
NEAR = 1.3
#: one shape in so many is also pruned in structured ways
STRUCTURED = 12


@dataclass(frozen=True)
class Problem:
    """A matrix and how many columns it is multiplied by."""

    matrix: Matrix
    columns: int

    @property
    def name(self) -> str:
        """What its result is found by."""
        return f"{self.matrix.group}/{self.matrix.name} x {self.columns}"


def problems() -> Iterator[Problem]:
    """All of them."""
    real = [*dlmc(), *skimcaffe()]
    made = [shaped for one in real[::STRUCTURED] for shaped in structured(one)]
    for matrix in [*real, *made]:
        for columns in COLUMNS:
            yield Problem(matrix, columns)


def structured(one: Matrix) -> Iterator[Matrix]:
    """The shape and sparsity of a matrix, its zeros in blocks, by N:M, in dead rows, or beside hub rows."""
    for kind, keep in KINDS.items():
        yield Matrix(kind, one.name, partial(_pruned, one, keep))


def _pruned(one: Matrix, keep: Callable[[Any, float, Any], Any]) -> Any:
    shape, density = one.make().shape, float(np.count_nonzero(one.make())) / one.make().size
    random = np.random.default_rng(5)
    weight = random.standard_normal(shape).astype(np.float32)
    return np.where(keep(np.zeros(shape, bool), density, random), weight, 0).astype(np.float32)


def _blocks(mask: Any, density: float, random: Any, high: int, wide: int) -> Any:
    rows, columns = (-(-size // block) for size, block in zip(mask.shape, (high, wide), strict=True))
    kept = random.random((rows, columns)) < density
    return np.kron(kept, np.ones((high, wide), bool))[: mask.shape[0], : mask.shape[1]]


def _groups(mask: Any, density: float, random: Any, m: int) -> Any:
    n = max(1, round(density * m))
    scores = random.random((mask.shape[0], -(-mask.shape[1] // m), m))
    kept = np.argsort(scores, axis=2) < n
    return kept.reshape(mask.shape[0], -1)[:, : mask.shape[1]]


def _dead(mask: Any, density: float, random: Any) -> Any:
    alive = random.random((mask.shape[0], 1)) < 0.5
    return alive & (random.random(mask.shape) < min(1.0, 2 * density))


def _hubs(mask: Any, density: float, random: Any) -> Any:
    hub = random.random((mask.shape[0], 1)) < density / 4
    return hub | (random.random(mask.shape) < 0.75 * density)


KINDS: Mapping[str, Callable[[Any, float, Any], Any]] = {
    "blocks 4x1": partial(_blocks, high=4, wide=1),
    "blocks 16x1": partial(_blocks, high=16, wide=1),
    "blocks 4x4": partial(_blocks, high=4, wide=4),
    "n:4": partial(_groups, m=4),
    "n:8": partial(_groups, m=8),
    "dead rows": _dead,
    "hub rows": _hubs,
}


def layer_of(problem: Problem) -> Layer:
    """The problem as the one layer of a model."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.ascontiguousarray(problem.matrix.make().T)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [problem.columns, size])
        for name, size in zip("xy", weight.shape, strict=True)
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    imported = import_model(helper.make_model(graph))
    [layer] = layers_of(pipeline.run(imported, native(), ANALYSIS), native(), "", 1)
    return layer


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
    """What those times choose, and [its own, the other's] microseconds beside each that came near."""
    times = {name: one["measured"] / one["beside"] for name, one in found.items() if "measured" in one}
    keys = {(name, trials[name].config): ratio for name, ratio in times.items()}
    default = layer.trials[0]
    best = chosen(keys, (default.kernel, default.config))
    if best is None:
        return {}
    other = replace(layer, trials=(trials[best[0]],))
    beside = {}
    for name, ratio in times.items():
        if name != best[0] and (ratio < NEAR * keys[best] or name == default.kernel):
            answer = measurer.measure(other, name, trials[name].config)
            if answer.seconds and answer.default:
                beside[name] = [round(answer.default * 1e6, 3), round(answer.seconds * 1e6, 3)]
    return {"kernel": best[0], "beside": beside}


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
    parser.add_argument("--worse", type=float, metavar="X", help="measure those X times the best again")
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
    return bool(options.again) or (options.worse is not None and regret(row)[0] > options.worse)


def _measure_all(wanted: list[Problem], rows: dict[str, Any], path: Path, about: Any, minutes: float) -> None:
    import time

    end = time.monotonic() + 60 * minutes
    with Measurer(native(), 1) as measurer:
        for problem in track(wanted, disable=not sys.stderr.isatty()):
            if time.monotonic() > end:
                break
            rows[problem.name] = measure(problem, measurer)
            results = {"machine": about, "choices": list(rows.values())}
            path.write_text(json.dumps(results, indent=0) + "\n")
            path.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()

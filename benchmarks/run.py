"""Times sparsec and the dense engines side by side and writes what it found.

    python benchmarks/run.py                    all workloads but optional ones, one thread, 30 rounds
    python benchmarks/run.py --quick            a few workloads, 5 rounds, nothing written
    python benchmarks/run.py --only ffn_128_u90 --rounds 50
    python benchmarks/run.py --threads 2

Engines take turns within one process (see sparsec.measure); with one thread everything is pinned
to one core.  Every run checks the engines' outputs against each other before it times them.
Results go to ``benchmarks/results/<cpu>.json``, where a workload's new result replaces its old
one, and from there to a table beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from engines import DENSE, ENGINES, Bound, Engine
from machine import described, slug
from operations import useful_operations
from table import markdown, useful_gflops
from workloads import WORKLOADS, Absent, Workload

from sparsec.measure import Timing, interleaved, pin_to_one_core, spelled

RESULTS = Path(__file__).parent / "results"
#: largest difference between engines, as a share of the largest output
TOLERANCE = 1e-4


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest difference of any output as a share of that output's scale; NaN is infinite."""
    found = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        error = float(np.abs(a.astype(np.float64) - b).max() / max(float(np.abs(b).max()), 1e-30))
        found = max(found, error if np.isfinite(error) else float("inf"))
    return found


def measure(
    workload: Workload, engines: Sequence[Engine], threads: int, rounds: int, folder: Path
) -> dict[str, Any]:
    """One row of the results.

    Raises:
        Absent: its file is not here.
        SystemExit: the engines disagree.
    """
    path = workload.write(folder)
    feeds = workload.inputs(np.random.default_rng(0))
    bound = {e.name: e.bind(path, feeds, workload.shapes, threads) for e in engines}
    differences = _checked(workload, bound)
    timings = interleaved(
        {n: b.call for n, b in bound.items()}, rounds, pause=0.002 if threads == 1 else 0.06
    )
    row: dict[str, Any] = {
        "workload": workload.name,
        "about": workload.about,
        "threads": threads,
        "rounds": rounds,
        "engines": {name: as_numbers(t) for name, t in timings.items()},
        "operations": useful_operations(path, workload.shapes),
        "versions": {e.name: e.version for e in engines},
        "differences": differences,
    }
    dense = {name: timings[name].median for name in DENSE if name in timings}
    if dense and "sparsec" in timings:
        best = min(dense, key=lambda name: dense[name])
        row |= {"best_dense": best, "ratio": round(dense[best] / timings["sparsec"].median, 3)}
    return row


def _checked(workload: Workload, bound: dict[str, Bound]) -> dict[str, float]:
    outputs = {}
    for name, one in bound.items():
        one.call()
        outputs[name] = one.outputs()
    reference = next((name for name in DENSE if name in outputs), next(iter(outputs)))
    found = {n: difference(y, outputs[reference]) for n, y in outputs.items() if n != reference}
    wrong = {name: error for name, error in found.items() if error > TOLERANCE}
    if wrong:
        raise SystemExit(f"{workload.name}: outputs differ from {reference}'s: {wrong}")
    return found


def as_numbers(timing: Timing) -> dict[str, float]:
    """Microseconds, as results hold them."""
    seconds = {"median_us": timing.median, "q1_us": timing.low, "q3_us": timing.high}
    return {**{key: round(value * 1e6, 3) for key, value in seconds.items()}, "disturbed": timing.disturbed}


def merge(path: Path, machine: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """New rows over those of the same workload and threads in the file."""
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    if path.is_file():
        kept = {(r["workload"], r["threads"]): r for r in json.loads(path.read_text())["results"]}
    kept |= {(r["workload"], r["threads"]): r for r in rows}
    order = {w.name: i for i, w in enumerate(WORKLOADS)}
    ordered = sorted(kept.values(), key=lambda r: (r["threads"], order.get(r["workload"], len(order))))
    return {"machine": machine, "results": ordered}


def _line(row: dict[str, Any]) -> str:
    times = "  ".join(f"{n} {spelled(t['median_us'] / 1e6)}" for n, t in row["engines"].items())
    ratio = f"  {row['ratio']:.2f}x {row['best_dense']}" if "ratio" in row else ""
    speed = useful_gflops(row)
    ratio += f"  {speed:.1f} useful GFLOP/s" if speed else ""
    worst = max(t["disturbed"] for t in row["engines"].values())
    warning = f"  DISTURBED: {worst:.0%} of an engine's turns; others use this core" if worst > 0.2 else ""
    return f"{row['workload']:<17} {times}{ratio}{warning}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this workload; may be repeated")
    parser.add_argument("--engine", action="append", metavar="NAME", help="this engine; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="turns each engine gets (30; 5 with --quick)")
    parser.add_argument("--quick", action="store_true", help="few workloads, few rounds, nothing written")
    parser.add_argument("--output", type=Path, help="the JSON file to update (default: by the CPU's name)")
    parser.add_argument("--list", action="store_true", help="print the workloads' names and end")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Workload]:
    """The workloads asked for.

    Raises:
        SystemExit: no workload has that name.
    """
    known = {w.name: w for w in WORKLOADS}
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        raise SystemExit(f"no workload {', '.join(unknown)}; there are {', '.join(known)}")
    if options.only:
        return [known[name] for name in options.only]
    return [w for w in WORKLOADS if (w.quick or not options.quick) and not w.optional]


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print, workload by workload."""
    engines = [e for e in ENGINES if e.installed and e.name in (options.engine or [x.name for x in ENGINES])]
    rounds = options.rounds or (5 if options.quick else 30)
    rows = []
    for workload in chosen(options):
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(measure(workload, engines, options.threads, rounds, Path(folder)))
            except Absent as reason:
                print(f"{workload.name:<17} skipped: {reason}", file=sys.stderr)
            else:
                print(_line(rows[-1]), flush=True)
    return rows


def main() -> None:
    options = arguments()
    if options.list:
        print("\n".join(f"{w.name:<17} {w.about}{' (by name only)' * w.optional}" for w in WORKLOADS))
        return
    if options.threads == 1:
        pin_to_one_core()  # before any engine starts a thread
    rows = run(options)
    partial = options.quick or options.engine
    if rows and (options.output or not partial):
        machine = described()
        path: Path = options.output or RESULTS / f"{slug(machine)}.json"
        results = merge(path, machine, rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(results))
        print(f"written to {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()

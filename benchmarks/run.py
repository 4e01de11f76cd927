"""Times sparsec and other engines side by side and writes what it found.

    python benchmarks/run.py                    all workloads but optional ones, one thread
    python benchmarks/run.py --quick            a few workloads, one process of 5 rounds, nothing written
    python benchmarks/run.py --group bert --threads 2
    python benchmarks/run.py --only ffn_128_u90 --rounds 50

Engines take turns within one process (see sparsec.bench.measure), 30 rounds of them; three processes do
so, and the median of their medians counts.  With one thread everything is pinned to one core.
Every process checks the engines' outputs against each other before it times them.  Results go to
``benchmarks/results/<cpu>.json``, where a workload's new result replaces its old one, and from
there to a table and a plot beside it.  DeepSparse takes part where SPARSEC_DEEPSPARSE_PYTHON names
the interpreter of an environment that has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import deepsparse_engine
import energy
from engines import DENSE, ENGINES, Engine
from limits import Limits
from machine import described, slug
from operations import work_of
from table import left_out, markdown, useful_gflops
from workloads import WORKLOADS, Absent, Workload

from sparsec.bench.measure import spelled

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def measure(workload: Workload, engines: Sequence[Engine], limits: Limits, options: Any) -> dict[str, Any]:
    """One row of the results.

    Raises:
        Absent: its file is not here.
        SystemExit: a process failed; it said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = workload.write(Path(folder))
        work = work_of(path, workload.shapes)
        command = [
            sys.executable, HERE / "process.py", workload.name, "--model", path, "--threads",
            options.threads, "--rounds", options.rounds, *(a for e in engines for a in ("--engine", e.name)),
        ]  # fmt: skip
        processes = [_process(command, Path(folder) / "result.json") for _ in range(options.processes)]
    row = {
        "workload": workload.name, "about": workload.about, "group": workload.group,
        "threads": options.threads, "rounds": options.rounds, "engines": medians(processes),
        "versions": {e.name: e.version for e in engines if e.name in processes[0]["engines"]},
        "left_out": processes[0]["left_out"], "energy_uj": _energy(processes),
        **{key: processes[0][key] for key in ("weight_bytes", "layout_bytes") if key in processes[0]},
        "fma_gflops": limits.fma_gflops, "processes": processes,
    }  # fmt: skip
    if work:
        row |= {"operations": work.useful, "dense_operations": work.dense}
        if work.bound_by_weights and "weight_bytes" in row:
            row["read_gbs"] = limits.gbs(row["weight_bytes"])
    times = {name: timing["median_us"] for name, timing in row["engines"].items()}
    dense = [name for name in DENSE if name in times]
    if dense and "sparsec" in times:
        best = min(dense, key=lambda name: times[name])
        row |= {"best_dense": best, "ratio": round(times[best] / times["sparsec"], 3)}
    return row


def _process(command: Sequence[object], result: Path) -> dict[str, Any]:
    done = subprocess.run([*map(str, command), "--result", str(result)], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def medians(processes: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By engine the medians over the processes, of their medians and of their quartiles."""
    found: dict[str, dict[str, float]] = {}
    for name in processes[0]["engines"]:
        each = [p["engines"][name] for p in processes if name in p["engines"]]
        found[name] = {k: round(median(t[k] for t in each), 3) for k in ("median_us", "q1_us", "q3_us")}
        found[name]["disturbed"] = round(fmean(t["disturbed"] for t in each), 3)
    return found


def _energy(processes: Sequence[dict[str, Any]]) -> dict[str, float] | str:
    """By engine the median over the processes."""
    read = [p["energy_uj"] for p in processes]
    if energy.UNREADABLE in read:
        return energy.UNREADABLE
    return {name: median(p[name] for p in read if name in p) for name in read[0]}


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
    groups = sorted({w.group for w in WORKLOADS})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this workload; may be repeated")
    parser.add_argument("--group", action="append", choices=groups, help="these workloads; may be repeated")
    parser.add_argument("--engine", action="append", metavar="NAME", help="this engine; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="turns each engine gets (30; 5 with --quick)")
    parser.add_argument("--processes", type=int, help="how often all is done anew (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="few workloads, few rounds, nothing written")
    parser.add_argument(
        "--output", type=Path, help="the JSON file to update (default: by the CPU's name; none with --engine)"
    )
    parser.add_argument("--list", action="store_true", help="print the workloads' names and end")
    options = parser.parse_args()
    options.rounds = options.rounds or (5 if options.quick else 30)
    options.processes = options.processes or (1 if options.quick else 3)
    return options


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
    if options.group:
        return [w for w in WORKLOADS if w.group in options.group and (w.quick or not options.quick)]
    return [w for w in WORKLOADS if (w.quick or not options.quick) and not w.optional]


def chosen_engines(names: Sequence[str] | None) -> Iterator[Engine]:
    """The engines that are here; says which are not.

    Raises:
        SystemExit: no engine has that name.
    """
    known = [e.name for e in ENGINES]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise SystemExit(f"no engine {', '.join(unknown)}; there are {', '.join(known)}")
    for engine in ENGINES:
        if engine.name not in (names or known):
            continue
        if engine.installed:
            yield engine
        else:
            how = f"set {deepsparse_engine.VARIABLE}" if engine.found else "it is not installed"
            print(f"{engine.name} skipped: {how}", file=sys.stderr)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure and print, workload by workload."""
    workloads, engines = chosen(options), list(chosen_engines(options.engine))
    limits = _limits(options.threads)
    for workload in workloads:
        try:
            row = measure(workload, engines, limits, options)
        except Absent as reason:
            print(f"{workload.name:<17} skipped: {reason}", file=sys.stderr)
        else:
            print(_line(row), flush=True)
            for name, why in left_out(row).items():
                print(f"{'':<17} without {name}: {why}", flush=True)
            yield row


def _limits(threads: int) -> Limits:
    """What the machine can do, measured in a process of its own."""
    command = [sys.executable, HERE / "limits.py", "--threads", str(threads)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return Limits(said["fma_gflops"], {int(size): rate for size, rate in said["read_gbs"].items()})


def main() -> None:
    options = arguments()
    if options.list:
        width = max(len(w.name) for w in WORKLOADS)
        print("\n".join(f"{w.name:<{width}}  {w.group:<11}  {w.about}{' (optional)' * w.optional}"
                        for w in WORKLOADS))  # fmt: skip
        return
    partial = options.quick or options.engine
    machine = described()
    path: Path | None = options.output or (None if partial else RESULTS / f"{slug(machine)}.json")
    results = None
    for row in run(options):
        if path:
            results = _written(path, machine, row)
    if path and results:
        names = [path, path.with_suffix(".md"), *_plots(results, path)]
        print(f"written to {path.parent}: {', '.join(p.name for p in names)}")


def _written(path: Path, machine: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The file's results with a new one, at once, so that an interrupted run loses none."""
    results = merge(path, machine, [row])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    return results


def _plots(results: dict[str, Any], path: Path) -> list[Path]:
    try:
        from plot import draw
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return []
    return draw(results, path)


if __name__ == "__main__":
    main()

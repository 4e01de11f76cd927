"""Run what ``cuda_build.py`` compiled on the GPU at hand: ``python benchmarks/cuda_run.py``.

Checks every program on fresh random inputs against float64, its outputs poisoned beforehand, then times
it in turns with dense torch and with NVIDIA's sparse libraries.  Needs torch, NumPy, this repository and
the driver; neither TVM nor a compiler, unless the runtime has to be built.  Times are of CUDA graphs that
hold many calls each, on inputs and weights that take turns; they come from CUDA events.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from cuda_cases import CASES, Case, pruned
from cuda_device import ROOT, TORCH, carried_programs, error_of, inputs_of, model_bytes
from cuda_peers import PEERS, Turn

from sparsec.runtime import Program

#: replays of every engine's graph, in turns
ROUNDS = 15


def replayed(calls: list[Callable[[], Any]], count: int) -> Callable[[], None]:
    """A CUDA graph of ``count`` calls, the given ones in turn."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    return graph.replay


def timed(engines: dict[str, Callable[[], None]], counts: dict[str, int]) -> dict[str, list[float]]:
    """Microseconds a call of each engine, one figure a round; engines take turns."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for name in engines:
        engines[name]()
    for _ in range(ROUNDS):
        for name, replay in engines.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            end.synchronize()
            found[name].append(1e3 * begin.elapsed_time(end) / counts[name])
    return found


def row_of(case: Case, programs: list[Any]) -> dict[str, Any]:
    """One case: errors and times of every engine."""
    generator = torch.Generator(device="cuda").manual_seed(int(time.time()))
    module = pruned(case)
    row: dict[str, Any] = {"case": case.name, "sparsity": case.sparsity.about, "bar": case.bar, "errors": {}}
    engines: dict[str, Callable[[], None]] = {}
    counts: dict[str, int] = {}
    # what graphs point to has to live until they were replayed
    kept: list[Any] = []
    count = max(case.calls, case.rotate)
    turns = [inputs_of(case, generator) for _ in range(case.rotate)]
    for carried in programs:
        name = carried.kernel or "sparsec"
        data = model_bytes(carried, module)
        copies = [Program.from_bytes(data) for _ in range(case.rotate)]
        row["errors"][name] = error_of(copies[0], case, pruned(case).cuda(), generator)
        row.setdefault("bytes", {})[name] = len(data)
        if not row["errors"][name] <= case.tolerance:
            row.setdefault("wrong", []).append(name)
        calls = [lambda p=p, x=x: p(*x) for p, x in zip(copies, turns, strict=True)]
        kept.append(calls)
        engines[name], counts[name] = replayed(calls, count), count
    for peer in case.peers:
        try:
            calls = PEERS[peer](Turn(case, module, turns, TORCH[case.dtype]))
            kept.append(calls)
            engines[peer], counts[peer] = replayed(calls, count), count
        except Exception as problem:
            row.setdefault("absent", {})[peer] = f"{type(problem).__name__}: {str(problem)[:200]}"
    times = timed(engines, counts)
    row["microseconds"] = {name: round(statistics.median(t), 2) for name, t in times.items()}
    row["spread"] = {name: [round(min(t), 2), round(max(t), 2)] for name, t in times.items()}
    return row


def machine() -> dict[str, str]:
    """What it ran on."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = ""
    if shutil.which(query[0]):
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(), "driver": driver, "torch": torch.__version__,
        "cuda": str(torch.version.cuda), "python": sys.version.split()[0],
    }  # fmt: skip


def measure(
    folder: Path, out: Path | None, minutes: float, only: Sequence[str] = (),
    checks: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """Run all large cases that were built, and write the results after each.

    Args:
        folder: what ``cuda_build.py`` wrote.
        out: the results' file; by default benchmarks/results/cuda-<gpu>.json.
        minutes: begin no case after so many.
        only: names of cases; all if there are none.
        checks: what else was found out, for the results.

    Returns:
        1 if a case failed or was wrong, else 0.
    """
    begin, facts = time.monotonic(), machine()
    name = "".join(c if c.isalnum() else "-" for c in facts["gpu"].lower())
    place = out or ROOT / "benchmarks" / "results" / f"cuda-{name}.json"
    programs, rows = carried_programs(folder), list[dict[str, Any]]()
    for case in CASES:
        if case.name not in programs or (only and case.name not in only):
            continue
        if time.monotonic() - begin > 60 * minutes:
            print(f"no time is left for {case.name}")
            continue
        try:
            rows.append(row_of(case, programs[case.name]))
        except Exception as problem:
            rows.append({"case": case.name, "failed": f"{type(problem).__name__}: {str(problem)[:500]}"})
        print(json.dumps(rows[-1]), flush=True)
        torch.cuda.empty_cache()
        place.write_text(
            json.dumps({"machine": facts, "checks": checks or {}, "cases": rows}, indent=1) + "\n"
        )
    return int(any("failed" in row or "wrong" in row for row in rows))


def main() -> int:
    """The benchmark alone."""
    parser = argparse.ArgumentParser(description="Check and time sparsec's CUDA programs.")
    parser.add_argument(
        "--programs", type=Path, default=ROOT / "build" / "cuda", help="what cuda_build.py wrote"
    )
    parser.add_argument(
        "--out", type=Path, help="the results' file; default benchmarks/results/cuda-<gpu>.json"
    )
    parser.add_argument("--only", nargs="*", default=(), help="names of cases")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no case after so many (9)")
    arguments = parser.parse_args()
    return measure(arguments.programs, arguments.out, arguments.minutes, arguments.only)


if __name__ == "__main__":
    sys.exit(main())

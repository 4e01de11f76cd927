"""One process of a run: binds a workload to every engine, checks outputs, and times them in turns.

run.py starts it; by hand:

    python benchmarks/process.py ffn_1_u90 --model model.onnx --rounds 5 --result row.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import energy
import numpy as np
from engines import DENSE, ENGINES, Bound, Engine, Task
from workloads import WORKLOADS, Absent, Workload

from sparsec.bench.compare import TOLERANCE, differences_from, pause_for
from sparsec.bench.measure import Timing, interleaved, pin_to_one_core


def measure(workload: Workload, path: Path, engines: Sequence[Engine], threads: int, rounds: int) -> Any:
    """Times, differences and energy by engine, and why an engine is left out.

    Raises:
        SystemExit: sparsec's outputs are wrong.
    """
    feeds = workload.inputs(np.random.default_rng(0))
    task = Task(path, feeds, workload.shapes, threads, workload.module)
    bound: dict[str, Bound] = {}
    left_out: dict[str, str] = {}
    for engine in engines:
        try:
            bound[engine.name] = engine.bind(task)
        except Absent as reason:
            left_out[engine.name] = str(reason)
    differences = checked(workload.name, bound)
    wrong = {name: error for name, error in differences.items() if error > TOLERANCE}
    left_out |= {name: f"its outputs differ by {error:.1e} of their scale" for name, error in wrong.items()}
    calls = {name: one.call for name, one in bound.items() if name not in wrong}
    timings = interleaved(calls, rounds, pause=pause_for(threads))
    return {
        "engines": {name: as_numbers(t) for name, t in timings.items()},
        "differences": differences,
        "left_out": left_out,
        "energy_uj": spent(calls),
        **{key: value for one in bound.values() for key, value in one.facts.items()},
    }


def checked(name: str, bound: Mapping[str, Bound]) -> dict[str, float]:
    """How far every engine is from the first dense one.

    Raises:
        SystemExit: sparsec is wrong; another engine that is wrong is only left out.
    """
    reference = next((e for e in DENSE if e in bound), next(iter(bound)))
    found = differences_from(reference, bound)
    if found.get("sparsec", 0.0) > TOLERANCE:
        raise SystemExit(f"{name}: outputs differ from {reference}'s: {found}")
    return found


def as_numbers(timing: Timing) -> dict[str, float]:
    """Microseconds, as results hold them."""
    seconds = {"median_us": timing.median, "q1_us": timing.low, "q3_us": timing.high}
    return {**{key: round(value * 1e6, 3) for key, value in seconds.items()}, "disturbed": timing.disturbed}


def spent(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float] | str:
    """Microjoules a call, or that they cannot be read."""
    counter = energy.counter()
    if counter is None:
        return energy.UNREADABLE
    return {name: round(counter.per_call(call), 3) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--model", type=Path, required=True, help="the workload as an ONNX file")
    parser.add_argument("--engine", action="append", metavar="NAME", help="this engine; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--result", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    if options.threads == 1:
        pin_to_one_core()  # before any engine starts a thread
    workload = next(w for w in WORKLOADS if w.name == options.workload)
    engines = [e for e in ENGINES if e.name in (options.engine or [e.name for e in ENGINES if e.installed])]
    found = measure(workload, options.model, engines, options.threads, options.rounds)
    options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

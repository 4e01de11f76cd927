"""What a second thread gains: every linear workload that takes over 2 ms, on one thread and on two.

    python benchmarks/scaling.py                     writes results/scaling-<cpu>.json and .md
    python benchmarks/scaling.py --only bert_u90 ffn_512_u90 --rounds 100

The two programs run in turns in one process; a round gives one ratio, of the medians of some calls;
what is reported is the median over the rounds, with the quartiles beside it.  A round in which the
host of a virtual machine took a core away is taken again.  Outputs must be the same bit by bit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from machine import described, slug
from table import machine_line
from workloads import WORKLOADS, Workload

import sparsec
from sparsec.bench_engines import Absent

RESULTS = Path(__file__).parent / "results"
GROUPS = ("linear", "blocks", "nm", "mlp", "bert", "llama")
#: seconds below which a row is left out, and seconds a turn lasts
LEAST, TURN = 0.002, 0.03
#: how often a round is tried that the host disturbs
ATTEMPTS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what was asked for; 1 when outputs differ with the number of threads."""
    options = _parser().parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for workload in WORKLOADS:
            asked = workload.name in options.only if options.only else workload.group in GROUPS
            if asked and (row := _row(workload, Path(folder), options.rounds)):
                rows.append(row)
                print(_line(row), flush=True)
    if not options.only:
        _write({"machine": described(), "rounds": options.rounds, "scaling": rows})
    return int(not all(row["identical"] for row in rows))


def _row(workload: Workload, folder: Path, rounds: int) -> dict[str, Any] | None:
    """One workload's times; None where it is too short, or its file is not here."""
    try:
        path = workload.write(folder)
    except Absent:
        return None
    feeds = workload.inputs(np.random.default_rng())
    programs = [sparsec.compile(path, shapes=workload.shapes, threads=threads) for threads in (1, 2)]
    calls = [program.prepare(feeds) for program in programs]
    if _turn(calls[0], 3) < LEAST:
        return None
    one, two = (program.run(None, feeds) for program in programs)
    counts = [max(3, round(TURN / _turn(call, 3))) for call in calls]
    pairs = [_pair(calls, counts) for _ in range(rounds)]
    ratios = [first / second for first, second in pairs]
    return {
        "workload": workload.name,
        "about": workload.about,
        "one_thread_seconds": median(first for first, _ in pairs),
        "two_threads_seconds": median(second for _, second in pairs),
        "ratio": median(ratios),
        "quartiles": quantiles(ratios, n=4)[::2],
        "identical": all(np.array_equal(a, b) for a, b in zip(one, two, strict=True)),
    }


def _pair(calls: Sequence[Callable[[], Any]], counts: Sequence[int]) -> tuple[float, float]:
    """Seconds on one thread and on two, taken again while the host gives a core to somebody else."""
    for _ in range(ATTEMPTS):
        before = _stolen()
        one, two = (_turn(call, count) for call, count in zip(calls, counts, strict=True))
        if _stolen() == before:
            break
    return one, two


def _stolen() -> str:
    """The time a virtual machine's host kept from it, since it started; "" where that is not said."""
    path = Path("/proc/stat")
    return path.read_text().split("\n", 1)[0].split()[8] if path.is_file() else ""


def _turn(call: Callable[[], Any], count: int) -> float:
    """Seconds of a call, the median of some, after one that wakes the threads."""
    call()
    return median(_seconds(call) for _ in range(count))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _line(row: dict[str, Any]) -> str:
    low, high = row["quartiles"]
    same = "" if row["identical"] else "  OUTPUTS DIFFER"
    return (
        f"| {row['about']} | {row['one_thread_seconds'] * 1e3:.2f} | {row['two_threads_seconds'] * 1e3:.2f} "
        f"| {row['ratio']:.2f}x | {low:.2f} to {high:.2f} |{same}"
    )


def _write(results: dict[str, Any]) -> None:
    stem = RESULTS / f"scaling-{slug(results['machine'])}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    heads = (
        "| workload | 1 thread, ms | 2 threads, ms | ratio | quartiles |\n| --- | ---: | ---: | ---: | ---: |"
    )
    lines = "\n".join(map(_line, results["scaling"]))
    stem.with_suffix(".md").write_text(f"{machine_line(results['machine'])}\n\n{heads}\n{lines}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="workloads, by name; writes nothing")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each (default 40)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

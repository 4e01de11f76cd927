"""What a second thread gains: every linear workload that takes over 2 ms, on one thread and on two.

    python benchmarks/scaling.py                     writes results/scaling-<cpu>.json and .md
    python benchmarks/scaling.py --only bert_u90 ffn_512_u90 --rounds 100

The two programs run in turns in one process; a round gives one ratio, of the medians of some calls.
Before, within and after each round a loop in registers says what two cores give (`two_cores`): where that is
less than 1.9 times one, the host of this virtual machine gave a core to somebody else, and the round
says nothing about the program.  The median over the other rounds is reported with its quartiles, and
beside it the median over all rounds.  Outputs must be the same bit by bit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from machine import described, slug
from table import machine_line
from two_cores import fraction, reader
from workloads import WORKLOADS, Workload

import sparsec
from sparsec.bench.engines import Absent

RESULTS = Path(__file__).parent / "results"
GROUPS = ("linear", "blocks", "nm", "mlp", "bert", "llama")
#: seconds below which a row is left out, and seconds a turn lasts
LEAST, TURN = 0.002, 0.03
#: what a loop in registers must gain, of the two cores there are, around a round that counts
WHOLE = 0.95
#: rounds tried for each that is asked for
ATTEMPTS = 8
#: seconds after which the threads of a program sleep
ASLEEP = 0.002
#: bytes of the weights of a dense Llama block
READ = 4 * (4 * 2048 * 2048 + 3 * 2048 * 5632)


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
    if not options.only or "reading" in options.only:
        rows.append(_reading(options.rounds))
        print(_line(rows[-1]), flush=True)
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
    identical = all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    return {"workload": workload.name, "about": workload.about, "identical": identical} | _timed(
        calls, rounds
    )


def _reading(rounds: int) -> dict[str, Any]:
    """The row of a loop that reads as much as a dense Llama block and does nothing else."""
    calls = [reader(READ, threads) for threads in (1, 2)]
    about = f"for comparison: reading {READ / 1e6:.0f} MB, nothing else"
    return {"workload": "reading", "about": about, "identical": True} | _timed(calls, rounds)


def _timed(calls: Sequence[Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Both summaries of a row: over all rounds, and over those in which both cores were whole."""
    counts = [max(1, round(TURN / _turn(call, 3))) for call in calls]
    tried = _rounds(calls, counts, rounds)
    whole = [one_round for one_round in tried if one_round.cores >= WHOLE]
    return {"all_rounds": _summary(tried), "whole_rounds": _summary(whole) if len(whole) > 1 else None}


@dataclass(frozen=True)
class Round:
    """Seconds on one thread and on two; the fraction of two cores that a loop in registers had around it."""

    one: float
    two: float
    cores: float


def _rounds(calls: Sequence[Callable[[], Any]], counts: Sequence[int], wanted: int) -> list[Round]:
    """Rounds until as many as wanted had both cores, or `ATTEMPTS` times as many were tried."""
    tried: list[Round] = []
    missing = wanted
    while missing and len(tried) < ATTEMPTS * wanted:
        looks, times = [_look()], []
        for call, count in zip(calls, counts, strict=True):
            times.append(_turn(call, count))
            looks.append(_look())
        tried.append(Round(*times, min(looks)))
        missing -= tried[-1].cores >= WHOLE
    return tried


def _look() -> float:
    """What a loop in registers has of two cores, once the threads of programs sleep."""
    time.sleep(ASLEEP)
    return fraction()


def _summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians over some rounds, and the quartiles of their ratios."""
    ratios = [each.one / each.two for each in rounds]
    return {
        "rounds": len(rounds),
        "one_thread_seconds": median(each.one for each in rounds),
        "two_threads_seconds": median(each.two for each in rounds),
        "ratio": median(ratios),
        "quartiles": quantiles(ratios, n=4)[::2],
    }


def _turn(call: Callable[[], Any], count: int) -> float:
    """Seconds of a call, the median of some, after one that wakes the threads."""
    call()
    return median(_seconds(call) for _ in range(count))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _line(row: dict[str, Any]) -> str:
    every, whole = row["all_rounds"], row["whole_rounds"]
    same = "" if row["identical"] else "  OUTPUTS DIFFER"
    disturbed = f"{every['ratio']:.2f}x, {every['rounds']} |{same}"
    if whole is None:
        return f"| {row['about']} | | | never both cores | | | {disturbed}"
    low, high = whole["quartiles"]
    return (
        f"| {row['about']} | {whole['one_thread_seconds'] * 1e3:.2f} "
        f"| {whole['two_threads_seconds'] * 1e3:.2f} | {whole['ratio']:.2f}x | {low:.2f} to {high:.2f} "
        f"| {whole['rounds']} | {disturbed}"
    )


def _write(results: dict[str, Any]) -> None:
    stem = RESULTS / f"scaling-{slug(results['machine'])}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    heads = (
        "| workload | 1 thread, ms | 2 threads, ms | ratio | quartiles | rounds | of all rounds |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    lines = "\n".join(map(_line, results["scaling"]))
    stem.with_suffix(".md").write_text(f"{machine_line(results['machine'])}\n\n{heads}\n{lines}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="workloads, by name; writes nothing")
    parser.add_argument("--rounds", type=int, default=40, help="undisturbed rounds of each (default 40)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

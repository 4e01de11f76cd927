"""Times csr_spmm against hybrid_spmm, and what else is chosen, on weights whose rows or columns differ.

    python benchmarks/hybrid.py                          all matrices, a few minutes
    python benchmarks/hybrid.py --only lognormal --merge

SkimCaffe's and DLMC's matrices come from the shared data folder (DLMC's are patterns: their values
are random); fan-in by a lognormal law and hub columns by a power law are made here.  Kernels run
alone on one core, are checked against float64 NumPy, and take turns; a time is the sum over the
panels of what each takes undisturbed, less what an empty call takes.  A choice is right unless the
other of the two is more than 3 % faster.  Results go to ``benchmarks/results/hybrid-<cpu>.json`` and to
a table beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import described, slug
from matrices import Matrix, dlmc, skimcaffe
from table import machine_line

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import tvm
from kernel_harness import Case, aligned, entry_of, make_case

from sparsec.bench.measure import pin_to_one_core
from sparsec.passes.choose_format import candidates
from sparsec.sparsity.pattern import Pattern, infer
from sparsec.targets.target import Problem
from sparsec.targets.x86 import native

FOLDER = Path(__file__).resolve().parent
SHARED_DATA = FOLDER.parents[1] / "shared" / "data"
TARGET = native()
PANEL = 4 * TARGET.lanes
TOKENS = (32, 128, 256)
PAIR = ("csr_spmm", "hybrid_spmm")
#: what is looked at once: long beside the clock's steps and an empty call, short beside a disturbance
SAMPLE_SECONDS = 20e-6
#: a difference below this is none; lines of either kind that a matrix must have
SLACK, LEAST = 1.03, 16
#: DLMC's matrices with a larger share of unused inputs are all timed; of the others, one in so many
UNUSED, SAMPLE = 0.25, 16


def uneven() -> Iterator[Matrix]:
    """DLMC's matrices of a row variation above 1 or with many unused inputs, and a sample of the others."""
    others = 0
    for matrix in dlmc():
        weight = matrix.make() != 0
        by_row, unused = weight.sum(axis=1), ~weight.any(axis=0)
        chosen = by_row.std() > by_row.mean() or unused.mean() > UNUSED
        others += not chosen
        if chosen or others % SAMPLE == 0:
            yield matrix


def lognormal() -> Iterator[Matrix]:
    """Rows of unequal fan-in."""
    for rows, inner in ((1024, 1024), (3072, 768)):
        for percent in (80, 90, 95):
            for sigma in (0.5, 1.0, 1.5):
                law = np.exp(sigma * np.random.default_rng(1).standard_normal((rows, 1)))
                name = f"{rows}x{inner} {percent} % sigma {sigma}"
                yield Matrix("lognormal", name, partial(_drawn, law, (rows, inner), percent))


def powers() -> Iterator[Matrix]:
    """Columns whose use falls with a power of their rank, in any order."""
    for rows, inner in ((1024, 1024), (768, 3072)):
        for percent in (80, 95):
            for exponent in (0.5, 1.0):
                law = np.random.default_rng(2).permutation(np.arange(1.0, inner + 1) ** -exponent)[None]
                name = f"{rows}x{inner} {percent} % exponent {exponent}"
                yield Matrix("hub columns", name, partial(_drawn, law, (rows, inner), percent))


def _drawn(law: Any, shape: tuple[int, int], percent: int) -> Any:
    """Normal numbers, each kept by chance; lines in proportion to the law, but no more than all."""
    low, high = 0.0, 1 / law.min()
    for _ in range(60):
        middle = (low + high) / 2
        over = np.minimum(middle * law, 1).mean() > 1 - percent / 100
        low, high = (low, middle) if over else (middle, high)
    random = np.random.default_rng(3)
    weight = random.standard_normal(shape).astype(np.float32)
    weight[random.random(shape) >= np.minimum(high * law, 1)] = 0
    return weight


GROUPS: Mapping[str, Callable[[], Iterator[Matrix]]] = {
    "skimcaffe": skimcaffe, "dlmc": uneven, "lognormal": lognormal, "hub columns": powers,
}  # fmt: skip


def measure(matrix: Matrix, rounds: int) -> dict[str, Any] | None:
    """One row; None for matrices that are too small."""
    weight = matrix.make()
    if min(weight.shape) < LEAST:
        return None
    pattern = infer(weight)
    unused = f"{pattern.dead_columns} unused inputs" if pattern.dead_columns else ""
    return {
        "group": matrix.group, "matrix": matrix.name, "shape": list(weight.shape),
        "zeros": round(pattern.sparsity, 5), "row_variation": round(pattern.row_variation, 2),
        "parts": ", ".join(filter(None, (pattern.uneven.describe(), unused))),
        "tokens": {str(n): _timed(weight, pattern, n, rounds) for n in TOKENS},
    }  # fmt: skip


def _timed(weight: Any, pattern: Pattern, tokens: int, rounds: int) -> dict[str, Any]:
    """Predicted and measured microseconds of both kernels, and of what is chosen."""
    problem = Problem(*weight.shape, tokens, PANEL)
    ranked = candidates(problem, pattern, TARGET)
    chosen = ranked[0][1].name
    wanted = [found for found in ranked if found[1].name in (*PAIR, chosen)]
    cases = {k.name: _case(k, weight, tokens, c) for _, k, c in wanted}
    times = undisturbed({name: bound(case) for name, case in cases.items()}, rounds)
    return {
        "chosen": chosen,
        "predicted_us": {c.kernel: c.microseconds for c, _, _ in wanted},
        "us": {name: round(1e6 * seconds, 3) for name, seconds in times.items()},
    }


def _case(kernel: Any, weight: Any, tokens: int, config: Mapping[str, int]) -> Case:
    """Any number of tokens runs the same code, compiled once."""
    case = make_case(kernel, weight, tokens, PANEL, TARGET, config)
    return replace(case, key=(kernel.name, weight.shape, tuple(case.config.items())))


@dataclass(frozen=True)
class Bound:
    """A function of the first tile and the end, and both for each panel of tokens."""

    call: Callable[[int, int], None]
    panels: tuple[tuple[int, int], ...]


def bound(case: Case) -> Bound:
    """A case whose outputs were checked."""
    entry = entry_of(case)
    y = aligned(np.full(case.shape, np.nan, np.float32))
    buffers = [*(aligned(a) for a in case.inputs), y]
    scratch = tvm.runtime.tensor(np.zeros(max(16, case.scratch_floats), np.float32))
    pointers = [ctypes.c_void_p(b.ctypes.data) for b in buffers]

    def call(first: int, last: int, _held: Any = buffers) -> None:
        entry(scratch, *pointers, first, last)

    call(0, case.tiles)
    case.check(y)
    each = case.tiles // case.shape[0]
    return Bound(call, tuple((n * each, (n + 1) * each) for n in range(case.shape[0])))


def undisturbed(calls: Mapping[str, Bound], rounds: int, turn: float = 0.002) -> dict[str, float]:
    """Seconds of a call: in turns A B A B, every panel's tenth best of a hundred looks, less an empty call's.

    The best look of all would do, but for the clock of a virtual machine, which now and then jumps.
    """
    looks: dict[str, list[list[float]]] = {name: [] for name in calls}
    empty: dict[str, list[float]] = {name: [] for name in calls}
    counts = {name: _count(one) for name, one in calls.items()}
    for _ in range(rounds):
        for name, one in calls.items():
            count, end = counts[name], time.perf_counter() + turn
            while time.perf_counter() < end:
                looks[name].append([_seconds(one, *panel, count) for panel in one.panels])
            empty[name].extend(_seconds(one, 0, 0, count) for _ in range(20))
    return {name: float((_low(looks[name]) - _low(empty[name])).sum()) for name in calls}


def _low(looks: Any) -> Any:
    return np.quantile(looks, 0.1, axis=0)


def _count(one: Bound) -> int:
    """How many calls make a sample."""
    once = min(_seconds(one, *one.panels[0]) for _ in range(5))
    return max(1, round(SAMPLE_SECONDS / once))


def _seconds(one: Bound, first: int, last: int, count: int = 1) -> float:
    """Of one call, in ``count`` of them."""
    start = time.perf_counter()
    for _ in range(count):
        one.call(first, last)
    return (time.perf_counter() - start) / count


def right(one: Mapping[str, Any]) -> bool:
    """Whether the faster of the two is the one preferred, or nearly as fast."""
    if len(set(PAIR) & set(one["us"])) < 2:
        return True
    preferred, other = sorted(PAIR, key=lambda name: one["predicted_us"][name])
    return bool(one["us"][preferred] <= SLACK * one["us"][other])


def ratio(one: Mapping[str, Any], key: str) -> float | None:
    """How many times as fast as csr_spmm hybrid_spmm is; None where it has no part."""
    times = [one[key].get(name) for name in PAIR]
    return times[0] / times[1] if all(times) else None


def markdown(results: Mapping[str, Any]) -> str:
    """A line a matrix."""
    rows = results["rows"]
    lines = [
        ("matrix", "shape", "zeros", "row variation", "apart", *(f"{n} tokens" for n in TOKENS), "chosen"),
        ("---", "---", "---:", "---:", "---", *["---:"] * len(TOKENS), "---"),
        *map(_cells, rows),
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    both = [one for row in rows for one in row["tokens"].values() if ratio(one, "us")]
    gains = [r for one in both if one["chosen"] == PAIR[1] and (r := ratio(one, "us"))]
    wrong = sum(not right(one) for one in both)
    return (
        f"{machine_line(results['machine'])}\n\nOne core, the tenth best of a hundred looks: "
        "csr_spmm's time in us, and how many times as fast hybrid_spmm is (in brackets: predicted).\n\n"
        f"{table}\n\nBoth were timed {len(both)} times; hybrid_spmm was chosen {len(gains)} times, where it "
        f"is {np.mean(gains or [1]):.2f}x as fast as csr_spmm ({min(gains, default=1):.2f}x to "
        f"{max(gains, default=1):.2f}x). {wrong} times the other of the two is more than "
        f"{100 * (SLACK - 1):.0f} % faster than the one preferred.\n"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = [row["tokens"][str(n)] for n in TOKENS]
    shape = "x".join(map(str, row["shape"]))
    facts = (shape, f"{row['zeros']:.2%}", f"{row['row_variation']:.2f}", row["parts"])
    chosen = ", ".join(dict.fromkeys(one["chosen"] for one in found))
    return (f"{row['group']}: {row['matrix']}", *facts, *map(_cell, found), chosen)


def _cell(one: Mapping[str, Any]) -> str:
    measured, predicted = ratio(one, "us"), ratio(one, "predicted_us")
    if not measured:
        return f"{one['us'][PAIR[0]]:.1f}"
    mark = "" if right(one) else " **wrong**"
    return f"{one['us'][PAIR[0]]:.1f}, {measured:.2f}x ({predicted:.2f}x){mark}"


def merged(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The smaller of these times and the file's, whose other rows stay."""
    found = {row["matrix"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    for row in rows:
        old = found.get(row["matrix"], row)["tokens"]
        for tokens, one in row["tokens"].items():
            one["us"] = {name: min(us, old[tokens]["us"].get(name, us)) for name, us in one["us"].items()}
        found[row["matrix"]] = row
    return list(found.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", choices=GROUPS, help="this group; may be repeated")
    parser.add_argument("--merge", action="store_true", help="keep the file's rows, and its smaller times")
    parser.add_argument("--rounds", type=int, default=12, help="turns each kernel gets")
    parser.add_argument("--output", type=Path, help="the JSON file to write (default: by the CPU's name)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    pin_to_one_core()
    machine = described()
    path: Path = options.output or FOLDER / "results" / f"hybrid-{slug(machine)}.json"
    rows = []
    for name in options.only or GROUPS:
        matrices = list(GROUPS[name]())
        if not matrices:
            print(f"{name} skipped: the shared data folder is not beside this clone", file=sys.stderr)
        for matrix in matrices:
            if row := measure(matrix, options.rounds):
                rows.append(row)
                print(" | ".join(_cells(row)), flush=True)
    results = {"machine": machine, "rows": merged(rows, path) if options.merge else rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    print(f"written to {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()

"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparsec.measure import spelled

HEADINGS = ("workload", "sparsec", "onnxruntime", "OpenVINO", "against the best dense", "useful GFLOP/s")
COLUMNS = ("sparsec", "onnxruntime", "openvino")


def markdown(results: dict[str, Any]) -> str:
    """A table for each number of threads, under a line about the machine."""
    machine, rows = results["machine"], results["results"]
    parts = [machine_line(machine)]
    for threads in sorted({r["threads"] for r in rows}):
        of_these = [r for r in rows if r["threads"] == threads]
        parts += [_heading(threads, of_these), _table(of_these)]
    return "\n\n".join(parts) + "\n"


def machine_line(machine: dict[str, Any]) -> str:
    """The processor and its instruction sets."""
    return (
        f"{machine['cpu']} (family {machine['family']}, model {machine['model']}), {_isa(machine['flags'])}"
    )


def _isa(flags: Iterable[str]) -> str:
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16"}
    found = [names[flag] for flag in flags if flag in names]
    missing = "" if "AVX-512" in found else ", no AVX-512"
    return " ".join(found) + missing


def _heading(threads: int, rows: list[dict[str, Any]]) -> str:
    versions = {f"{name} {v}" for r in rows for name, v in r["versions"].items()}
    rounds = sorted({r["rounds"] for r in rows})
    turns = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    count = "One thread" if threads == 1 else f"{threads} threads"
    return (
        f"{count}, float32, median of {turns} interleaved rounds (quartiles in brackets), "
        f"{', '.join(sorted(versions))}:"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *(_cells(row) for row in rows)]
    if not any(map(useful_gflops, rows)):
        cells = [line[:-1] for line in cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    times = (time_cell(row["engines"].get(name)) for name in COLUMNS)
    ratio = f"{row['ratio']:.2f}x" if "ratio" in row else ""
    if any(timing.get("disturbed", 0) > 0.2 for timing in row["engines"].values()):
        ratio += " (others used the core)"
    speed = useful_gflops(row)
    return (row["about"], *times, ratio, f"{speed:.1f}" if speed else "")


def useful_gflops(row: dict[str, Any]) -> float | None:
    """Speed of sparsec in operations on nonzero weights, where the row tells how many there are."""
    operations, timing = row.get("operations"), row["engines"].get("sparsec")
    return operations / timing["median_us"] / 1e3 if operations and timing else None


def time_cell(timing: dict[str, float] | None) -> str:
    """A median with its quartiles; empty for an engine that did not run."""
    if timing is None:
        return ""
    median, low, high = (timing[key] / 1e6 for key in ("median_us", "q1_us", "q3_us"))
    return f"{spelled(median)} ({_bare(low, median)}-{_bare(high, median)})"


def _bare(value: float, beside: float) -> str:
    """A quartile in the unit of the median it stands beside."""
    factor = {"us": 1e6, "ms": 1e3, "s": 1.0}[spelled(beside).split()[1]]
    digits = len(spelled(beside).split()[0].partition(".")[2])
    return f"{value * factor:.{digits}f}"

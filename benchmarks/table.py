"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engines import FILE_ONLY

from sparsec.bench.measure import spelled
from sparsec.explain.text import bytes_text

Row = Mapping[str, Any]

#: engines with a column of their own, and how they are written
NAMES = {
    "sparsec": "sparsec",
    "onnxruntime": "onnxruntime",
    "openvino": "OpenVINO",
    "torch": "torch",
    "deepsparse": "DeepSparse",
}
#: what models_markdown.py shows
COLUMNS = ("sparsec", "onnxruntime", "openvino")


def markdown(results: Mapping[str, Any]) -> str:
    """A table for each number of threads, under a line about the machine."""
    machine, rows = results["machine"], results["results"]
    parts = [machine_line(machine)]
    for threads in sorted({r["threads"] for r in rows}):
        of_these = [r for r in rows if r["threads"] == threads]
        parts += [_heading(threads, of_these), _table(of_these), *_notes(of_these)]
    return "\n\n".join(parts) + "\n"


def machine_line(machine: Mapping[str, Any]) -> str:
    """The processor and its instruction sets."""
    kind = f" (family {machine['family']}, model {machine['model']})" if machine["family"] else ""
    return f"{machine['cpu']}{kind}, {_isa(machine['flags'])}"


def _isa(flags: Iterable[str]) -> str:
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16"}
    names |= {"asimd": "NEON", "asimddp": "dot product", "sve": "SVE"}
    found = [names[flag] for flag in flags if flag in names]
    missing = "" if {"AVX-512", "NEON"} & set(found) else ", no AVX-512"
    return " ".join(found) + missing


def _heading(threads: int, rows: list[Row]) -> str:
    versions = {f"{name} {v}" for r in rows for name, v in r["versions"].items()}
    count = "One thread" if threads == 1 else f"{threads} threads"
    processes = [len(r["processes"]) for r in rows if "processes" in r]
    turns = f"{_span(r['rounds'] for r in rows)} interleaved rounds"
    if max(processes, default=1) > 1:
        turns += f" in each of {_span(processes)} processes"
    return f"{count}, float32, median of {turns} (quartiles in brackets), {', '.join(sorted(versions))}:"


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _table(rows: list[Row]) -> str:
    """A line a row; columns nobody fills are left out."""
    columns: dict[str, Callable[[Row], str]] = {"workload": lambda r: str(r["about"])}
    for key, name in NAMES.items():
        columns[name] = lambda r, key=key: time_cell(r["engines"].get(key))  # type: ignore[misc]
    columns |= {
        "against the best dense": _ratio,
        "against DeepSparse": _against_deepsparse,
        "of what zeros allow": _realised,
        "useful GFLOP/s": lambda r: f"{speed:.1f}" if (speed := useful_gflops(r)) else "",
        "of the machine's limit": _share_of_limit,
        "layout changes": lambda r: bytes_text(r["layout_bytes"]) if "layout_bytes" in r else "",
        "energy": _energy,
    }
    cells = [[name, *map(column, rows)] for name, column in columns.items()]
    filled = [column for column in cells if any(column[1:])]
    heading, *body = zip(*filled, strict=True)
    rule = ("---", *["---:"] * (len(filled) - 1))
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *body))


def _notes(rows: list[Row]) -> list[str]:
    """What columns mean that old results lack, and what is missing."""
    notes = []
    if any("dense_operations" in r for r in rows):
        peak = max(r["fma_gflops"] for r in rows if "fma_gflops" in r)
        notes.append(
            "What zeros allow is the work without them over the work with them. The machine's limit is "
            f"{peak:.0f} GFLOP/s of multiply-adds or, where every weight is used once, what an array of "
            "the weights' size can be read at; both measured in the same run. Layout changes are bytes "
            "read and written a run by steps that only move values."
        )
    if any(isinstance(r.get("energy_uj"), str) for r in rows):
        said = {r["energy_uj"] for r in rows if isinstance(r.get("energy_uj"), str)}
        notes.append(f"Energy per inference: {', '.join(said)}.")
    missing = sorted(
        {f"{NAMES[e]} on {r['workload']}: {why}" for r in rows for e, why in left_out(r).items()}
    )
    return notes + ([f"Left out: {'; '.join(missing)}."] if missing else [])


def left_out(row: Row) -> dict[str, str]:
    """Engines that did not run, and why; not that torch needs a module."""
    return {e: why for e, why in row.get("left_out", {}).items() if why != FILE_ONLY}


def _ratio(row: Row) -> str:
    ratio = f"{row['ratio']:.2f}x" if "ratio" in row else ""
    disturbed = any(timing.get("disturbed", 0) > 0.2 for timing in row["engines"].values())
    return ratio + (" (others used the core)" if disturbed else "")


def _against_deepsparse(row: Row) -> str:
    times = [row["engines"].get(name) for name in ("deepsparse", "sparsec")]
    return f"{times[0]['median_us'] / times[1]['median_us']:.2f}x" if all(times) else ""  # type: ignore[index]


def realised(row: Row) -> float | None:
    """The speed-up over the best dense engine, as a share of what the removed work allows."""
    if "ratio" not in row or not row.get("operations"):
        return None
    return float(row["ratio"] * row["operations"] / row["dense_operations"])


def _realised(row: Row) -> str:
    share = realised(row) if "dense_operations" in row else None
    return f"{share:.0%}" if share else ""


def useful_gflops(row: Row) -> float | None:
    """Speed of sparsec in operations on nonzero weights, where the row tells how many there are."""
    operations, timing = row.get("operations"), row["engines"].get("sparsec")
    return operations / timing["median_us"] / 1e3 if operations and timing else None


def _share_of_limit(row: Row) -> str:
    timing = row["engines"].get("sparsec")
    if timing and "read_gbs" in row:
        rate = row["weight_bytes"] / timing["median_us"] / 1e3
        return f"{rate / row['read_gbs']:.0%} of {row['read_gbs']:.0f} GB/s"
    speed = useful_gflops(row)
    return f"{speed / row['fma_gflops']:.0%} of FMA" if speed and "fma_gflops" in row else ""


def _energy(row: Row) -> str:
    spent = row.get("energy_uj")
    if not isinstance(spent, dict) or "sparsec" not in spent:
        return ""
    dense = [spent[row["best_dense"]]] if row.get("best_dense") in spent else []
    return f"{spent['sparsec'] / 1e3:.3g} mJ" + "".join(f" (dense {e / 1e3:.3g} mJ)" for e in dense)


def time_cell(timing: Mapping[str, float] | None) -> str:
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

"""The results of models_table.py as Markdown."""

from __future__ import annotations

from typing import Any

from table import COLUMNS, machine_line, time_cell

#: sparsec has kept its promise at this share of the best dense engine's speed, or within this time
SHARE, SLACK = 0.9, 20e-6
#: kinds of steps a row names, and the share of the time below which a kind is left out
KINDS, LEAST = 3, 0.1


def verdict(row: dict[str, Any]) -> str:
    """Whether the promise was kept and, where a dense engine is faster, what the time goes to."""
    if "refused" in row:
        return f"refused: {', '.join(row['refused'])}"
    if "engines" not in row:
        return f"WRONG: differs from onnxruntime by {row['differences']['sparsec']:.1e}"
    kept = "yes" if row["kept"] else "no"
    if row["ratio"] >= 1:
        return kept
    dearest = [c for c in row["costs"] if c["share"] >= LEAST][:KINDS]
    steps = ", ".join(f"{c['share']:.0%} {c['kind']} ({c['steps']})" for c in dearest)
    return f"{kept}; time goes to {steps}"


def markdown(results: dict[str, Any]) -> str:
    """A row a model under a line about the machine."""
    rows = results["models"]
    timed = [r for r in rows if "engines" in r]
    versions = sorted({f"{name} {v}" for r in timed for name, v in r["versions"].items()})
    turns = " to ".join(map(str, sorted({f((r["rounds"] for r in timed), default=0) for f in (min, max)})))
    lines = [
        ("model", "zeros", "sparsec", "onnxruntime", "OpenVINO", "against the best dense",
         f"at least {SHARE}x, or within {SLACK * 1e6:.0f} us"),
        ("---", *["---:"] * 5, "---"),
        *(_cells(row) for row in rows),
    ]  # fmt: skip
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    kept, refused = sum(r["kept"] for r in timed), sum("refused" in r for r in rows)
    return (
        f"{machine_line(results['machine'])}\n\n"
        f"One thread, float32, batch 1, median of {turns} interleaved rounds "
        f"(quartiles in brackets), {', '.join(versions)}:\n\n{table}\n\n"
        f"{kept} of {len(timed)} models keep the promise; {refused} are refused.\n"
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "engines" not in row:
        return (row["model"], "", "", "", "", "", verdict(row))
    times = (time_cell(row["engines"].get(name)) for name in COLUMNS)
    return (row["model"], f"{row['zeros']:.1%}", *times, f"{row['ratio']:.2f}x", verdict(row))

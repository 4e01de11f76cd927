"""What arm_static.py found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

Entry = Mapping[str, Any]

#: sparsities whose speed-up is shown
SHOWN = (0.8, 0.9, 0.95)

_ABOUT = """\
Nothing here was timed. llvm-mca {llvm} gives the cycles of instructions that the kernels executed under
qemu-user; loads hit L1; a conditional branch that a run-length predictor does not foresee costs 8 cycles on
Cortex-A55 and 11 on the others. LLVM has no table of Cortex-A76's own and takes Cortex-A57's (one load, one
multiply-add of 128 bits a cycle): Neoverse N1's, the same core for servers, is the better guess of an A76
too. docs/arm.md tells how to read this."""


def markdown(found: Mapping[str, Any]) -> str:
    """Whole layers, then hot loops."""
    results = found["layers"]
    parts = ["# ARM, predicted", _ABOUT.format(llvm=found["llvm"])]
    parts += ["## Whole layers: speed-up over the dense kernel", "\n".join(_layers(results, found["cores"]))]
    parts += ["## Dense kernels", "\n".join(_dense(results, found["cores"]))]
    parts += ["## Hot loops", "\n".join(_loops(results, found["cores"]))]
    return "\n\n".join(parts) + "\n"


def rows_of(results: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """Layer, kernel and pattern of every sparse row, in order."""
    return list(dict.fromkeys((r["name"], r["kernel"], r["pattern"]) for r in results if r["sparsity"]))


def of_row(results: Sequence[Entry], row: tuple[str, str, str], core: str) -> list[Entry]:
    """A row's entries for one core, by rising sparsity."""
    same = [r for r in results if (r["name"], r["kernel"], r["pattern"]) == row and r["core"] == core]
    return sorted(same, key=lambda r: r["sparsity"])


def dense_of(results: Sequence[Entry], layer: str, core: str) -> Entry:
    """The dense kernel's entry."""
    return next(r for r in results if (r["name"], r["core"], r["sparsity"]) == (layer, core, 0.0))


def speedup(entry: Entry, dense: Entry) -> float:
    """Dense cycles over sparse cycles."""
    return float(dense["layer"]["cycles"] / entry["layer"]["cycles"])


def break_even(entries: Sequence[Entry], dense: Entry) -> float:
    """The sparsity from which a sparse kernel takes fewer cycles than the dense one.

    Between two sparsities cycles are taken as linear.  0 where the least of them is enough, 1 where none is.
    """
    wanted = dense["layer"]["cycles"]
    points = [(e["sparsity"], e["layer"]["cycles"]) for e in entries]
    if points[0][1] <= wanted:
        return 0.0
    for (s0, c0), (s1, c1) in pairwise(points):
        if c1 <= wanted:
            return float(s0 + (c0 - wanted) * (s1 - s0) / (c0 - c1))
    return 1.0


def _break_even(entries: Sequence[Entry], dense: Entry) -> str:
    found = break_even(entries, dense)
    if found == 0.0:
        return f"under {100 * entries[0]['sparsity']:g} %"
    return f"over {100 * entries[-1]['sparsity']:g} %" if found == 1.0 else f"{100 * found:.0f} %"


def _layers(results: Sequence[Entry], cores: Sequence[str]) -> Iterator[str]:
    by_core_names = [name for core in cores for name in (core, "break-even")]
    yield from _head("layer", "kernel", "weights", "zeros", *by_core_names)
    for row in rows_of(results):
        by_core = {c: of_row(results, row, c) for c in cores}
        first = next(e for e in by_core.values() if e)
        shown = [e["sparsity"] for e in first if e["sparsity"] in SHOWN or row[2] == "N:M"]
        cells = [first[0]["about"], row[1], row[2], " / ".join(f"{100 * s:g}" for s in shown) + " %"]
        for core, entries in by_core.items():
            if not entries:
                cells += ["", ""]
                continue
            dense = dense_of(results, row[0], core)
            gains = [speedup(e, dense) for e in entries if e["sparsity"] in shown]
            cells += [" / ".join(f"{g:.1f}" for g in gains) + "x", _break_even(entries, dense)]
        yield _cells(cells)


def _dense(results: Sequence[Entry], cores: Sequence[str]) -> Iterator[str]:
    yield "Cycles a multiply-add instruction of the whole layer; of the hot loop."
    yield ""
    yield from _head("layer", "kernel", *cores)
    for layer in dict.fromkeys(r["name"] for r in results):
        entries = [dense_of(results, layer, c) for c in cores]
        pairs = [(_whole(e), e["loop"]["cycles_per_multiply_add"]) for e in entries]
        yield _cells([entries[0]["about"], entries[0]["kernel"], *(f"{a:.2f}; {b:.2f}" for a, b in pairs)])


def _loops(results: Sequence[Entry], cores: Sequence[str]) -> Iterator[str]:
    yield "Cycles a nonzero, times so many columns; a multiply-add instruction; the same, of the whole layer."
    yield ""
    yield from _head("layer", "kernel", "weights", "zeros", *cores)
    for row in rows_of(results):
        by_core = [of_row(results, row, c) for c in cores]
        sparsity = 0.75 if row[2] == "N:M" else 0.9
        found = [next((e for e in entries if e["sparsity"] == sparsity), None) for entries in by_core]
        about = next(e["about"] for e in found if e)
        yield _cells([about, row[1], row[2], f"{100 * sparsity:g} %", *map(_loop, found)])


def _loop(entry: Entry | None) -> str:
    if entry is None:
        return ""
    loop = entry["loop"]
    per_add = loop["cycles_per_multiply_add"]
    return f"{loop['cycles_per_nonzero']:.2f} x{loop['columns']}; {per_add:.2f}; {_whole(entry):.2f}"


def _whole(entry: Entry) -> float:
    return float(entry["layer"]["cycles"] / entry["layer"]["multiply_adds"])


def _head(*names: str) -> list[str]:
    return [_cells(names), _cells(["---"] * len(names))]


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

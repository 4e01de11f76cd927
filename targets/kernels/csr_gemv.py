"""csr_gemv: very sparse weights times one to four columns, a row at a time.

Where so little is left that lanes of neighbouring rows would mostly be padding, each row is one
dot product over its own nonzeros, x read element by element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cost import epilogue_cycles, overlapped, stream_cycles
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish_across
from sparsec.targets.kernels.lookups import is_sve
from sparsec.targets.target import Packing, Problem, Target

name = "csr_gemv"
format = "csr"

_WIDE = 8


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """One to four columns in plain layout; columns numbered in 16 bits."""
    fits = problem.columns is not None and 1 <= problem.columns <= 4
    return problem.conv is None and problem.panel == 0 and fits and problem.inner <= 65536


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """Tiles of work of about a quarter of the rows."""
    return ({"chunk": max(1, -(-problem.rows // 4)) if problem.rows >= 256 else problem.rows},)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles: about one nonzero a cycle and column, and the end of every row; or the bytes."""
    columns = problem.columns or 1
    slots = pattern.nonzeros + 0.5 * _WIDE * problem.rows
    # rows that one step takes end where they are expected to
    short = pattern.nonzeros * (1 - pattern.hub_share) <= _WIDE * problem.rows
    end = (4 if short else 12) + 8 * columns
    ends = problem.rows * (end + epilogue_cycles(problem) * columns)
    compute = slots * (0.5 + 0.5 * columns)
    stream = stream_cycles(nbytes(problem, pattern, config, target), target)
    return overlapped(compute, stream) + ends


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A value and a 16-bit column for every nonzero, rows padded to eight."""
    return int(6 * (pattern.nonzeros + 0.5 * _WIDE * problem.rows)) + 4 * problem.rows


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Row by row, every row padded with zeros to a multiple of eight."""
    used = weight != 0
    lengths = -(-used.sum(axis=1) // _WIDE) * _WIDE
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    row, column = np.nonzero(used)
    counts = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=problem.rows))))
    at = starts[row] + np.arange(row.size) - counts[row]
    values = np.zeros(max(int(starts[-1]), 1), np.float32)
    columns = np.zeros(values.size, np.uint16)
    values[at], columns[at] = weight[row, column], column
    chunks = -(-problem.rows // config["chunk"])
    arrays: dict[str, Any] = {"values": values, "columns": columns, "starts": starts}
    return Packing(arrays, chunks, tuple(sorted({**config, "chunks": chunks}.items())))


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as T

    columns, chunk = problem.columns or 1, dict(packing.config)["chunk"]
    # numbers come into SVE's registers by way of memory, into NEON's directly
    lanes = _WIDE // 2 if is_sve(target) else _WIDE
    parts = _WIDE // lanes

    def body(k: Kernel) -> None:
        acc = k.registers(columns * parts, lanes)
        with k.tiles() as tile:
            stop = T.min((tile + 1) * chunk, tirx.IntImm("int64", problem.rows))
            with k.loop(tile * chunk, stop) as row:
                one_row(k, acc, row)

    def one_row(k: Kernel, acc: Any, row: Any) -> None:
        for i in range(columns * parts):
            k.assign(acc, i, k.splat(0.0, lanes))
        first = k.bind(k.cast64(k["starts"][row]))
        count = k.bind((k.cast64(k["starts"][row + 1]) - first) // _WIDE)
        with k.loop(count) as j:
            at = k.bind(first + j * _WIDE)
            values = [k.bind(k.vector(k["values"], at + p * lanes, lanes)) for p in range(parts)]
            index = [k.bind(k.cast64(k["columns"][at + i])) for i in range(_WIDE)]
            for n in range(columns):
                x = [k["x"][n * problem.inner + i] for i in index]
                for p, value in enumerate(values):
                    picked = T.Shuffle(x[p * lanes : (p + 1) * lanes], list(range(lanes)))
                    k.assign(acc, n * parts + p, acc[n * parts + p] + value * picked)
        for n in range(columns):
            total = k.bind(_sum_lanes([acc[n * parts + p] for p in range(parts)]))
            where = n * problem.rows + row
            k.assign(k["y"], where, finish_across(k, problem, total, row, where, 1))

    def _sum_lanes(vectors: list[Any]) -> Any:
        sums = [T.Shuffle([v], [i]) for v in vectors for i in range(lanes)]
        while len(sums) > 1:
            sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=True)]
        return sums[0]

    pointers = [
        ("x", "float32"), ("values", "float32"), ("columns", "uint16"), ("starts", "int32"),
        *extra_pointers(problem), ("y", "float32"),
    ]  # fmt: skip
    return prim_func(name, _WIDE, pointers, (), body)

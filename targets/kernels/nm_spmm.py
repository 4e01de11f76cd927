"""nm_spmm: N of every M neighbouring inputs are kept (2:4, 1:8 ...), times token panels.

Every row has the same number of stored values, so there is nothing to sort and no loop end to
mispredict: two rows (as many as eight accumulators allow) run together, each step reads a value
and an 8-bit position inside its group of M.  Groups short of N nonzeros hold zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cost import epilogue_cycles, tile_cycles
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish
from sparsec.targets.kernels.panel_visits import block_of_inner, chunk_of_rows, run_time_sizes
from sparsec.targets.target import Packing, Problem, Target

name = "nm_spmm"
format = "nm"


def fits(pattern: Pattern) -> list[tuple[int, int]]:
    """(n, m) along the inputs that remove at least a quarter of the work, smallest share first."""
    found = [(f.n, f.m) for f in pattern.nm if f.axis == 1 and 0 < f.n <= 0.75 * f.m]
    return sorted(found, key=lambda nm: (nm[0] / nm[1], nm[1]))


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Token panels, and at most N nonzeros in every group of M inputs."""
    return problem.panel > 0 and problem.panel % target.lanes == 0 and bool(fits(pattern))


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """One configuration per N:M that fits."""
    vectors = min(4, problem.panel // target.lanes)
    rows = max(1, min(8 // vectors, problem.rows))
    chunk = chunk_of_rows(problem, target, rows)
    found = []
    for n, m in fits(pattern)[:2]:
        block = max(m, block_of_inner(problem, target) // m * m)
        found.append({"n": n, "m": m, "group": rows, "block": block, "chunk": chunk, "vectors": vectors})
    return tuple(found)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core (see panel_visits.predict; visits are cheaper here)."""
    panels = -(-(problem.columns or problem.panel) // problem.panel)
    vectors, rows = config["vectors"], config["group"]
    parts = problem.panel // (vectors * target.lanes)
    steps = -(-problem.inner // config["m"]) * config["n"] * problem.rows / rows
    per_step = parts * rows * max(vectors + 1.5, vectors) / 2
    visits = -(-problem.inner // config["block"]) * problem.rows / rows * parts
    out = problem.rows * problem.panel / target.lanes * epilogue_cycles(problem)
    chunks = -(-problem.rows // config["chunk"])
    traffic = chunks * tile_cycles(problem.inner * problem.panel, target)
    return panels * (steps * per_step + visits * (4 + 1.5 * rows * vectors) + out + traffic)


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A value and an 8-bit position for N of every M weights."""
    return 5 * problem.rows * -(-problem.inner // config["m"]) * config["n"]


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """values [K blocks][rows/R][groups][N][R] and uint8 positions of the same shape.

    The K block comes first so that a block's values are one stream the prefetcher follows.
    """
    n, m, rows = config["n"], config["m"], config["group"]
    groups = -(-problem.inner // m)
    tall = -(-problem.rows // rows) * rows
    padded = np.zeros((tall, groups * m), np.float32)
    padded[: problem.rows, : problem.inner] = weight
    cut = padded.reshape(tall, groups, m)
    # nonzeros first, in order of their position; the rest are zeros at the group's start
    order = np.argsort(cut == 0, axis=2, kind="stable")[:, :, :n]
    values = np.take_along_axis(cut, order, axis=2)
    positions = np.where(values == 0, 0, order).astype(np.uint8)

    per_block = config["block"] // m

    def interleaved(a: Any) -> Any:
        bands = a.reshape(tall // rows, rows, groups, n).transpose(0, 2, 3, 1)
        cuts = range(0, groups, per_block)
        return np.concatenate([bands[:, g : g + per_block].reshape(-1) for g in cuts])

    chunks = max(1, -(-problem.rows // config["chunk"]))
    arrays = {"values": interleaved(values), "positions": interleaved(positions)}
    return Packing(arrays, chunks, tuple(sorted({**config, "chunks": chunks}.items())))


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    c = dict(packing.config)
    n, m, rows, vectors, panel = c["n"], c["m"], c["group"], c["vectors"], problem.panel
    groups = -(-problem.inner // m)
    per_block = c["block"] // m
    blocks = -(-groups // per_block)
    whole, left = divmod(problem.rows, rows)
    bands = -(-problem.rows // rows)
    per_chunk = c["chunk"] // rows
    chunks = c["chunks"]
    parts = panel // (vectors * target.lanes)

    def visit(
        k: Kernel,
        acc: Any,
        x: Any,
        y: Any,
        band: Any,
        group0: Any,
        count: int,
        height: int,
        state: tuple[bool, bool],
    ) -> None:
        first, last = state
        row0 = band * rows
        for part in range(parts):
            at = [(r, v, (part * vectors + v) * k.lanes) for r in range(height) for v in range(vectors)]
            for r, v, lane in at:
                where = y + (row0 + r) * panel + lane
                k.assign(acc, r * vectors + v, k.splat(0.0) if first else k.vector(k["y"], where))
            with k.loop(count) as g:
                base = k.bind((group0 * bands + band * count + g) * (n * rows))
                line = k.bind(x + (group0 + g) * (m * panel))
                for i in range(n):
                    for r in range(height):
                        w = k.bind(k.splat(k["values"][base + i * rows + r]))
                        at_x = k.bind(line + k.cast64(k["positions"][base + i * rows + r]) * panel)
                        for v in range(vectors):
                            lane = (part * vectors + v) * k.lanes
                            total = acc[r * vectors + v] + w * k.vector(k["x"], at_x + lane)
                            k.assign(acc, r * vectors + v, total)
            for r, v, lane in at:
                where = y + (row0 + r) * panel + lane
                value = acc[r * vectors + v]
                k.put(k["y"], where, finish(k, problem, value, row0 + r, where) if last else value)

    def body(k: Kernel) -> None:
        acc = k.registers(rows * vectors)
        with k.tiles() as work:
            panel_index, chunk = k.bind(work // chunks), k.bind(work % chunks)
            x = k.bind(panel_index * (problem.inner * panel))
            y = k.bind(panel_index * (problem.rows * panel))
            low = k.bind(chunk * per_chunk)
            # first, middle and last block apart: only they differ, and code must not grow with K
            for first, stop in ((0, 1), (1, blocks - 1), (max(blocks - 1, 1), blocks)):
                if first < stop:
                    count = min(per_block, groups - (stop - 1) * per_block)
                    with k.loop(first, stop) as b:
                        block(k, acc, x, y, chunk, low, b * per_block, count, (first == 0, stop == blocks))

    def block(
        k: Kernel, acc: Any, x: Any, y: Any, chunk: Any, low: Any, group0: Any, count: int,
        state: tuple[bool, bool],
    ) -> None:  # fmt: skip
        from tvm.script.ir_builder import tirx as T

        with k.loop(low, T.min(low + per_chunk, whole)) as band:
            visit(k, acc, x, y, band, group0, count, rows, state)
        if left:
            with k.when(chunk == chunks - 1):
                visit(k, acc, x, y, whole, group0, count, left, state)

    pointers = [
        ("x", "float32"), ("values", "float32"), ("positions", "uint8"),
        *extra_pointers(problem), ("y", "float32"),
    ]  # fmt: skip
    return prim_func(name, target.lanes, pointers, run_time_sizes(problem), body)

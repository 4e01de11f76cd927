"""Sparse times panel: the loop nest csr_spmm and bsr_spmm share.

``Y[M, P] (+)= W[M, K] X[K, P]`` on token panels.  K is cut into blocks whose tile of X stays in
L1; inside a block the rows are visited in groups of R, sorted by length so that the inner
loop's trip count repeats and its end predicts; a visit holds R x P/lanes accumulators, which
rest in Y between blocks.  Rows are also cut into chunks (one tile of work each) whose part of
Y stays in L2.

Groups either read R different columns a step (csr) or share one column (blocks of R rows).

Arrays: ``values`` [steps, R]; ``offsets`` uint16 [steps, R or 1], element offsets into the tile
of X; ``rows`` int32 [groups, R], element offsets into Y; ``runs`` int32 [runs, 4]: steps a visit,
visits, first step, first group; ``cells`` int32: first run of each (chunk, block); ``tails``
int32 [blocks, 2]: first step and steps of the M % R rows left over.

Ideas from SkimCaffe (Park et al. 2017), Fast Sparse ConvNets (Elsen et al. 2020) and Sputnik's
row sorting (Gale et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import epilogue_cost, extra_pointers, finish
from sparsec.targets.target import Packing, Problem, Target

Weight = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """The settings of one kernel: R, K-block, chunk rows, vectors at a time, sharing."""

    group: int
    block: int
    chunk: int
    vectors: int
    shared: bool

    @classmethod
    def of(cls, config: Mapping[str, int]) -> Shape:
        """From a configuration."""
        group, block, chunk, vectors = (config[f] for f in ("group", "block", "chunk", "vectors"))
        return cls(group, block, chunk, vectors, bool(config["shared"]))


def block_of_inner(problem: Problem, target: Target, share: float = 0.75) -> int:
    """Rows of X whose panel tile fills ``share`` of L1 (offsets must also fit 16 bits)."""
    most = min(int(target.l1 * share) // (problem.panel * 4), 65536 // problem.panel)
    blocks = -(-problem.inner // most)
    return -(-problem.inner // blocks)


def chunk_of_rows(problem: Problem, target: Target, group: int) -> int:
    """Rows whose part of Y takes an eighth of L2, rounded to whole groups."""
    most = max(target.l2 // 8 // (problem.panel * 4), 4 * group)
    chunks = -(-problem.rows // most)
    rows = -(-problem.rows // chunks)
    return -(-rows // group) * group


@dataclass(slots=True)
class _Store:
    """Arrays under construction."""

    values: list[Weight] = field(default_factory=list)
    offsets: list[Weight] = field(default_factory=list)
    rows: list[Weight] = field(default_factory=list)
    runs: list[Weight] = field(default_factory=list)
    cells: list[int] = field(default_factory=lambda: [0])
    steps: int = 0
    groups: int = 0


def pack(weight: Weight, problem: Problem, config: Mapping[str, int]) -> Packing:
    """Pack ``weight[M, K]`` cell by cell."""
    shape = Shape.of(config)
    whole = problem.rows // shape.group * shape.group
    chunks = max(1, -(-whole // shape.chunk))
    starts = range(0, problem.inner, shape.block)
    store = _Store()
    for chunk in range(chunks):
        first, last = chunk * shape.chunk, min((chunk + 1) * shape.chunk, whole)
        for start in starts:
            edge = start == starts[0] or start == starts[-1]
            _pack_cell(store, weight[first:last, start : start + shape.block], first, shape, problem, edge)
    tails = [_pack_tail(store, weight[whole:, s : s + shape.block], shape, problem.panel) for s in starts]
    arrays = {
        "values": _joined(store.values, np.float32),
        "offsets": _joined(store.offsets, np.uint16),
        "rows": _joined(store.rows, np.int32),
        "runs": _joined(store.runs, np.int32),
        "cells": np.array(store.cells, np.int32),
        "tails": np.array(tails, np.int32).reshape(-1),
    }
    return Packing(arrays, chunks, tuple(sorted({**config, "chunks": chunks}.items())))


def _joined(parts: list[Weight], dtype: Any) -> Weight:
    # never empty: a pointer to nothing would have no address to map
    flat = [p.reshape(-1) for p in parts if p.size]
    return np.concatenate(flat).astype(dtype) if flat else np.zeros(1, dtype)


def _pack_cell(
    store: _Store, block: Weight, first_row: int, shape: Shape, problem: Problem, keep_all: bool
) -> None:
    r = shape.group
    used = block != 0
    if shape.shared:
        used = used.reshape(-1, r, block.shape[1]).any(axis=1)
    counts = used.sum(axis=1)
    order = np.argsort(-counts, kind="stable")
    per_group = 1 if shape.shared else r
    if not keep_all:
        order = order[: -(-int((counts > 0).sum()) // per_group) * per_group]
    if order.size:
        groups = order.reshape(-1, per_group)
        members = groups[:, :1] * r + np.arange(r) if shape.shared else groups
        length = counts[groups].max(axis=1)
        _place(store, block, used, groups, members, length, shape, problem.panel)
        store.rows.append((members + first_row) * problem.panel)
        _add_runs(store, length)
    store.cells.append(sum(run.shape[0] for run in store.runs))


def _place(
    store: _Store, block: Weight, used: Weight, groups: Weight, members: Weight, length: Weight,
    shape: Shape, panel: int,
) -> None:  # fmt: skip
    begin = np.concatenate(([0], np.cumsum(length)[:-1])).astype(np.int64)
    total = int(length.sum())
    slot_of = np.full(used.shape[0], -1, np.int64)
    slot_of[groups.reshape(-1)] = np.arange(groups.size)
    row, column = np.nonzero(used)
    inside = slot_of[row] >= 0
    row, column = row[inside], column[inside]
    before = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=used.shape[0]))))
    rank = np.arange(row.size) - before[row]
    group, lane = np.divmod(slot_of[row], groups.shape[1])
    step = begin[group] + rank
    offsets = np.zeros((total, groups.shape[1]), np.uint16)
    offsets[step, lane] = column * panel
    values = np.zeros((total, shape.group), np.float32)
    if shape.shared:
        values[step] = block[members[group], column[:, None]]
    else:
        values[step, lane] = block[row, column]
    store.values.append(values)
    store.offsets.append(offsets)


def _add_runs(store: _Store, length: Weight) -> None:
    change = np.flatnonzero(np.diff(length)) + 1
    first = np.concatenate(([0], change))
    visits = np.diff(np.concatenate((first, [length.size])))
    steps = np.concatenate(([0], np.cumsum(length)))
    runs = np.stack([length[first], visits, store.steps + steps[first], store.groups + first], axis=1)
    store.runs.append(runs)
    store.steps += int(steps[-1])
    store.groups += length.size


def _pack_tail(store: _Store, block: Weight, shape: Shape, panel: int) -> tuple[int, int]:
    """The rows left over, padded with zero rows to a group that shares its columns."""
    columns = np.flatnonzero((block != 0).any(axis=0))
    begin = store.steps
    if block.shape[0] == 0 or columns.size == 0:
        return begin, 0
    values = np.zeros((columns.size, shape.group), np.float32)
    values[:, : block.shape[0]] = block[:, columns].T
    offsets = np.repeat((columns * panel)[:, None], 1 if shape.shared else shape.group, axis=1)
    store.values.append(values)
    store.offsets.append(offsets.astype(np.uint16))
    store.steps += columns.size
    return begin, int(columns.size)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function for a packed weight."""
    config = dict(packing.config)
    pointers = [
        ("x", "float32"), ("values", "float32"), ("offsets", "uint16"), ("rows", "int32"),
        ("runs", "int32"), ("cells", "int32"), ("tails", "int32"), *extra_pointers(problem), ("y", "float32"),
    ]  # fmt: skip
    writer = _Writer(problem, Shape.of(config), config["chunks"])
    return prim_func(name, target.lanes, pointers, run_time_sizes(problem), writer.body)


def run_time_sizes(problem: Problem) -> tuple[str, ...]:
    """The size parameters of a panel kernel: the tokens, when they are not known beforehand."""
    return ("tokens",) if problem.columns is None else ()


@dataclass(slots=True)
class _Writer:
    """Emits the loop nest."""

    problem: Problem
    shape: Shape
    chunks: int

    def body(self, k: Kernel) -> None:
        from tvm.script.ir_builder import tirx as T

        registers = k.registers(self.shape.group * self.shape.vectors)
        with k.tiles() as tile:
            panel, chunk = k.bind(tile // self.chunks), k.bind(tile % self.chunks)
            x = k.bind(panel * (self.problem.inner * self.problem.panel))
            y = k.bind(panel * (self.problem.rows * self.problem.panel))
            if self.problem.columns is not None or self.shape.vectors == 1:
                self.blocks(k, registers, x, y, chunk, self.problem.panel)
                return
            # a last panel of few tokens, or a single token, computes one vector of them
            with T.If(k.sizes["tokens"] - panel * self.problem.panel <= k.lanes):
                with T.Then():
                    narrow = replace(self, shape=replace(self.shape, vectors=1))
                    narrow.blocks(k, registers, x, y, chunk, k.lanes)
                with T.Else():
                    self.blocks(k, registers, x, y, chunk, self.problem.panel)

    def blocks(self, k: Kernel, registers: Any, x: Any, y: Any, chunk: Any, width: int) -> None:
        """All K-blocks of one chunk for ``width`` columns; the first clears y, the last finishes it."""
        count = -(-self.problem.inner // self.shape.block)
        step = self.shape.block * self.problem.panel
        for low, high in ((0, 1), (1, count - 1), (max(count - 1, 1), count)):
            if low < high:
                with k.loop(low, high) as block:
                    state = (width, low == 0, high == count)
                    self.cell(k, registers, k.bind(x + block * step), y, chunk, block, state)

    def cell(
        self, k: Kernel, registers: Any, x: Any, y: Any, chunk: Any, block: Any, state: tuple[int, bool, bool]
    ) -> None:
        blocks = -(-self.problem.inner // self.shape.block)
        cell = k.bind(chunk * blocks + block)
        with k.loop(k.cast64(k["cells"][cell]), k.cast64(k["cells"][cell + 1])) as run:
            steps = k.bind(k.cast64(k["runs"][run * 4]))
            visits = k.bind(k.cast64(k["runs"][run * 4 + 1]))
            step0 = k.bind(k.cast64(k["runs"][run * 4 + 2]))
            group0 = k.bind(k.cast64(k["runs"][run * 4 + 3]))
            with k.loop(visits) as visit:
                group = (group0 + visit) * self.shape.group
                rows = [k.bind(k.cast64(k["rows"][group + r])) for r in range(self.shape.group)]
                self.visit(k, registers, x, y, rows, k.bind(step0 + visit * steps), steps, state)
        left = self.problem.rows % self.shape.group
        if left:
            with k.when(chunk == self.chunks - 1):
                base = (self.problem.rows - left) * self.problem.panel
                rows = [k.bind(k.cast64(0) + base + r * self.problem.panel) for r in range(left)]
                step0 = k.bind(k.cast64(k["tails"][block * 2]))
                steps = k.bind(k.cast64(k["tails"][block * 2 + 1]))
                self.visit(k, registers, x, y, rows, step0, steps, state)

    def visit(
        self, k: Kernel, registers: Any, x: Any, y: Any, rows: list[Any], step0: Any, steps: Any,
        state: tuple[int, bool, bool],
    ) -> None:  # fmt: skip
        (width, first, last), wide = state, self.shape.vectors
        for part in range(width // (wide * k.lanes)):
            at = [(r, v, (part * wide + v) * k.lanes) for r in range(len(rows)) for v in range(wide)]
            for r, v, lane in at:
                start = k.splat(0.0) if first else k.vector(k["y"], y + rows[r] + lane)
                k.assign(registers, r * wide + v, start)
            with k.loop(steps) as j:
                self.step(k, registers, x, step0 + j, len(rows), part)
            for r, v, lane in at:
                where = y + rows[r] + lane
                value = registers[r * wide + v]
                if last:
                    value = finish(k, self.problem, value, rows[r] // self.problem.panel, where)
                k.put(k["y"], where, value)

    def step(self, k: Kernel, registers: Any, x: Any, step: Any, rows: int, part: int) -> None:
        wide, group = self.shape.vectors, self.shape.group
        lanes = [(part * wide + v) * k.lanes for v in range(wide)]
        if self.shape.shared:
            offset = k.bind(k.cast64(k["offsets"][step]))
            shared = [k.bind(k.vector(k["x"], x + offset + lane)) for lane in lanes]
        for r in range(rows):
            value = k.bind(k.splat(k["values"][step * group + r]))
            if not self.shape.shared:
                offset = k.bind(k.cast64(k["offsets"][step * group + r]))
            for v in range(wide):
                operand = shared[v] if self.shape.shared else k.vector(k["x"], x + offset + lanes[v])
                k.assign(registers, r * wide + v, registers[r * wide + v] + value * operand)


def predict(problem: Problem, target: Target, shape: Shape, steps: float, visits: float) -> float:
    """Cycles of one run: loads and multiply-adds of the steps, visits, the epilogue, X from L2.

    Two vector loads and two multiply-adds a cycle; a visit costs its accumulators' way in and
    out plus a pipeline refill, measured at 28 cycles for 8 accumulators on Zen 3.
    """
    panels = -(-(problem.columns or problem.panel) // problem.panel)
    parts = problem.panel // (shape.vectors * target.lanes)
    columns = 1 if shape.shared else shape.group
    loads = columns * shape.vectors + shape.group + 0.5 * columns
    multiplies = shape.group * shape.vectors
    per_step = parts * max(loads / 2, multiplies / 2)
    per_visit = parts * (10 + 2.2 * multiplies)
    vectors = problem.rows * problem.panel / target.lanes
    chunks = -(-problem.rows // shape.chunk)
    traffic = chunks * problem.inner * problem.panel * 4 / target.l2_bytes
    return panels * (steps * per_step + visits * per_visit + vectors * epilogue_cost(problem) + traffic)

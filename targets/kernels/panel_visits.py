"""panel_visits: row_visits over token panels, what csr_spmm and bsr_spmm share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsec.targets.cost import epilogue_cycles, step_cycles, tile_cycles, visit_cycles
from sparsec.targets.kernels import row_packing
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish
from sparsec.targets.kernels.row_packing import Columns, Grouping, Weight, byte_scale, pack_rows, pointers
from sparsec.targets.kernels.row_visits import RowVisits, Tile
from sparsec.targets.target import Packing, Problem, Target


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


def pack(weight: Weight, problem: Problem, config: Mapping[str, int]) -> Packing:
    """Pack ``weight[M, K]``."""
    inner = np.arange(problem.inner)
    cuts = range(0, problem.inner, config["block"])
    columns = Columns(
        tuple(inner[start : start + config["block"]] for start in cuts),
        inner % config["block"] * problem.panel,
        _scale(problem, config),
    )
    grouping = Grouping(config["group"], config["chunk"], bool(config["shared"]))
    arrays, chunks = pack_rows(weight, grouping, columns)
    return Packing(arrays, chunks, tuple(sorted({**config, "chunks": chunks}.items())))


def _scale(problem: Problem, config: Mapping[str, int]) -> int:
    return byte_scale(problem.panel, config["block"])


def stored_bytes(
    problem: Problem, config: Mapping[str, int], values: float, offsets: float, visits: float
) -> int:
    """What a weight takes with so many values, offsets and visited rows."""
    return row_packing.stored_bytes(problem.rows, _scale(problem, config), values, offsets, visits)


def run_time_sizes(problem: Problem) -> tuple[str, ...]:
    """The size parameters of a panel kernel: the tokens, when they are not known beforehand."""
    return ("tokens",) if problem.columns is None else ()


@dataclass(frozen=True, slots=True)
class PanelRest:
    """Accumulators rest in y itself, from element ``base`` on."""

    problem: Problem
    base: Any

    def at(self, k: Kernel, row: Any, member: int) -> Any:
        return k.bind(self.base + row * self.problem.panel)

    def load(self, k: Kernel, offset: Any) -> Any:
        return k.vector(k["y"], offset)

    def keep(self, k: Kernel, offset: Any, value: Any) -> None:
        k.put(k["y"], offset, value)

    def finish(self, k: Kernel, row: Any, place: Any, lane: int, value: Any) -> None:
        k.put(k["y"], place + lane, finish(k, self.problem, value, row, place + lane))

    def leave(self, k: Kernel, rows: Sequence[Any], places: Sequence[Any]) -> None:
        """Every vector was stored where it belongs."""


def whole_or_first_vector(
    k: Kernel, problem: Problem, number: Any, run: Callable[[tuple[int, ...]], None]
) -> None:
    """Call ``run`` with (), or with (1,) for a last panel ``number`` of one vector of tokens or less."""
    from tvm.script.ir_builder import tirx as T

    if problem.columns is not None or problem.panel == k.lanes:
        run(())
        return
    with T.If(k.sizes["tokens"] - number * problem.panel <= k.lanes):
        with T.Then():
            run((1,))
        with T.Else():
            run(())


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function for a packed weight."""
    config = dict(packing.config)
    vectors, panel = config["vectors"], problem.panel
    nest = RowVisits(
        problem.rows, config["group"], bool(config["shared"]), config["chunks"],
        -(-problem.inner // config["block"]), (vectors,) * (panel // (vectors * target.lanes)),
        scale=_scale(problem, config),
    )  # fmt: skip

    def blocks(k: Kernel, nest: RowVisits, registers: Any, x: Any, y: Any, chunk: Any) -> None:
        for block, first, last in nest.block_loop(k):
            base = k.bind(x + block * (config["block"] * panel))
            nest.cell(k, registers, Tile(k["x"], base, PanelRest(problem, y)), chunk, block, (first, last))

    def body(k: Kernel) -> None:
        registers = k.registers(nest.accumulators)
        with k.tiles() as tile:
            number, chunk = k.bind(tile // nest.chunks), k.bind(tile % nest.chunks)
            x = k.bind(number * (problem.inner * panel))
            y = k.bind(number * (problem.rows * panel))
            whole_or_first_vector(
                k, problem, number,
                lambda parts: blocks(k, replace(nest, parts=parts or nest.parts), registers, x, y, chunk),
            )  # fmt: skip

    packed = pointers(problem.rows, nest.scale)
    parameters = [("x", "float32"), *packed, *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, target.lanes, parameters, run_time_sizes(problem), body)


def predict(
    problem: Problem, target: Target, config: Mapping[str, int], steps: float, visits: float
) -> float:
    """Cycles of one run: steps, visits, the epilogue, and X from L2 once a chunk."""
    panels = -(-(problem.columns or problem.panel) // problem.panel)
    group, vectors = config["group"], config["vectors"]
    parts = problem.panel // (vectors * target.lanes)
    per_step = parts * step_cycles(group, vectors, bool(config["shared"]), target)
    per_visit = parts * visit_cycles(group, vectors)
    out = problem.rows * problem.panel / target.lanes * epilogue_cycles(problem)
    chunks = -(-problem.rows // config["chunk"])
    traffic = chunks * tile_cycles(problem.inner * problem.panel, target)
    return panels * (steps * per_step + visits * per_visit + out + traffic)

"""hybrid_spmm: uneven weights times token panels, each kind of row its own way (see row_visits).

Rows more than 70 % full run in groups of four that share every load of X.  Long rows do so for
the columns most of them use (the strip), then read the rest nonzero by nonzero, in blocks of
columns that any of them uses.  Short rows are visited once for all of K: a visit a K-block would
cost more than their nonzeros, even if X comes from L2.  Measured in docs/journal.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import numpy as np

from sparsec.formats import hybrid
from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cost import epilogue_cycles, step_cycles, tile_cycles, visit_cycles
from sparsec.targets.kernels import panel_visits
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers
from sparsec.targets.kernels.row_packing import Columns, Grouping, Weight, pack_rows, pointers, row_type
from sparsec.targets.kernels.row_visits import RowVisits, Tile
from sparsec.targets.target import Packing, Problem, Target

name = "hybrid_spmm"
format = "hybrid"

#: rows that share loads
_SHARED = 4


#: what it must promise to gain on csr_spmm, whose code is smaller and sooner made
_MARGIN = 1.03


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Token panels, and lines of a kind of their own."""
    if problem.panel == 0 or problem.panel % target.lanes:
        return False
    uneven, unit = pattern.uneven, _unit(_group(problem, target))
    if uneven.columns.count or uneven.dense.count >= unit:
        return True
    block = panel_visits.block_of_inner(problem, target)
    fewer = -(-(problem.inner - pattern.dead_columns) // block) < -(-problem.inner // block)
    return fewer or (uneven.short.count >= unit and problem.inner > block)


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """csr_spmm's configuration; groups that share loads are as bsr_spmm's."""
    available = problem.panel // target.lanes
    group = _group(problem, target)
    return ({
        "group": group,
        "vectors": min(4, available),
        "shared": min(2 if target.registers < 32 else 4, available),
        "block": panel_visits.block_of_inner(problem, target),
        "chunk": panel_visits.chunk_of_rows(problem, target, _unit(group)),
    },)  # fmt: skip


def _group(problem: Problem, target: Target) -> int:
    return max(1, min(8 // min(4, problem.panel // target.lanes), problem.rows))


def _unit(group: int) -> int:
    return lcm(group, _SHARED)


def _reach(problem: Problem) -> int:
    """Rows of X that 16-bit offsets address."""
    return 65536 // problem.panel


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core, part by part."""
    panels = -(-(problem.columns or problem.panel) // problem.panel)
    work = _work(problem, pattern, config)
    out = problem.rows * problem.panel / target.lanes * epilogue_cycles(problem)
    tile = tile_cycles(problem.panel, target)
    # columns that a short row reads seldom are still in L1; loads hide part of the rest
    away = max(0.0, 1 - target.l1 / (problem.inner * problem.panel * 4))
    late = 0.4 * tile * away * pattern.uneven.short.nonzeros
    cycles = out + late
    for part, (rows, columns, steps, visits) in work.items():
        group, vectors, shared = _visit(part, config)
        one = steps * step_cycles(group, vectors, shared, target) + visits * visit_cycles(group, vectors)
        cycles += one * (problem.panel // (vectors * target.lanes))
        if part != "short":
            cycles += -(-rows // config["chunk"]) * columns * tile
    return panels * cycles * _MARGIN


def _visit(part: str, config: Mapping[str, int]) -> tuple[int, int, bool]:
    """Rows and vectors of a visit, and whether the rows share their columns."""
    shared = part in ("dense", "strip")
    return (_SHARED, config["shared"], True) if shared else (config["group"], config["vectors"], False)


def _work(
    problem: Problem, pattern: Pattern, config: Mapping[str, int]
) -> dict[str, tuple[int, int, float, float]]:
    """Rows, columns, steps and visits of each part."""
    uneven, group, block = pattern.uneven, config["group"], config["block"]
    dense, short, columns = uneven.dense, uneven.short, uneven.columns
    long = problem.rows - dense.count - short.count
    live = short.count - 0.5 * pattern.dead_rows
    left = pattern.nonzeros - dense.nonzeros - short.nonzeros - columns.nonzeros
    inner, strip = problem.inner, columns.count
    used = inner - pattern.dead_columns - strip
    visits = {n: -(-n // block) for n in (inner, strip, used)}
    reaches = -(-inner // _reach(problem))
    rest = min(visits[used] * long, left + long)
    return {
        "dense": (dense.count, inner, dense.count / _SHARED * inner, dense.count / _SHARED * visits[inner]),
        "short": (short.count, inner, 1.02 * short.nonzeros / group, live * reaches / group),
        "strip": (long if strip else 0, strip, long / _SHARED * strip, long / _SHARED * visits[strip]),
        "long": (long, used, 1.02 * left / group, rest / group),
    }  # fmt: skip


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """All elements of dense lines, a value and an offset for every other nonzero, the rows of every visit."""
    found = 0.0
    for part, (_, _, steps, visits) in _work(problem, pattern, config).items():
        group, _, shared = _visit(part, config)
        found += steps * (4 * group + 2 * (1 if shared else group)) + 2 * visits * group
    return int(found)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows in the order they are packed in, columns of each block, and the row of X its offsets begin at."""

    rows: Weight
    blocks: tuple[Weight, ...]
    bases: tuple[int, ...]


def pack(weight: Weight, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``: row_packing's arrays, and where blocks begin, for each part with work to do."""
    settings, arrays = dict(config), dict[str, Weight]()
    found = _parts(weight, problem, config)
    chunk = _chunk(len(found["long"].rows), config)
    for label, part in found.items():
        group, _, shared = _visit(label, config)
        packed, chunks = _pack_part(weight, part, Grouping(group, chunk, shared), problem)
        works = bool(len(part.rows) and part.blocks)
        settings |= {f"{label}_blocks": works * len(part.blocks), f"{label}_chunks": works * chunks}
        arrays |= {f"{label}_{n}": a for n, a in packed.items() if works}
    settings["chunks"] = sum(chunks for _, chunks in _stages(settings))
    return Packing(arrays, settings["chunks"], tuple(sorted(settings.items())))


def _chunk(rows: int, config: Mapping[str, int]) -> int:
    """Rows a unit of work, such that the strip and the rest of the long rows have the same units."""
    group, chunk = config["group"], config["chunk"]
    one, other = (rows // height * height for height in (group, _SHARED))
    while max(1, -(-one // chunk)) != max(1, -(-other // chunk)):
        chunk += _unit(group)
    return chunk


def _parts(weight: Weight, problem: Problem, config: Mapping[str, int]) -> dict[str, _Part]:
    split = hybrid.split(weight != 0)
    unit, block, reach = _unit(config["group"]), config["block"], _reach(problem)
    dense, short = (_whole_groups(rows, unit, problem) for rows in (split.dense, split.short))
    long = np.setdiff1d(np.arange(problem.rows), np.concatenate((dense, short)))
    columns = np.arange(problem.inner)
    used = np.flatnonzero(weight[long].any(axis=0))
    rest = np.setdiff1d(used if used.size else columns[:1], split.columns)
    return {
        "dense": _Part(dense, *_cut(columns, block, reach)),
        "short": _Part(short, *_cut(columns, reach, reach)),
        "strip": _Part(long, *_cut(split.columns, block, reach)),
        "long": _Part(long, *_cut(rest, block, reach)),
    }


def _whole_groups(rows: Weight, unit: int, problem: Problem) -> Weight:
    """As many of the rows as fill groups, none of the last M % unit: row_visits runs those as left over."""
    inside = rows[rows < problem.rows // unit * unit]
    return inside[: inside.size // unit * unit]


def _cut(columns: Weight, block: int, reach: int) -> tuple[tuple[Weight, ...], tuple[int, ...]]:
    """Blocks of about ``block`` columns in the order given, none across a multiple of ``reach``."""
    blocks: list[Weight] = []
    bases: list[int] = []
    for area in np.unique(columns // reach):
        inside = columns[columns // reach == area]
        pieces = np.array_split(inside, -(-inside.size // block))
        blocks += [np.sort(piece) for piece in pieces]
        bases += [int(area) * reach] * len(pieces)
    return tuple(blocks), tuple(bases)


def _pack_part(
    weight: Weight, part: _Part, grouping: Grouping, problem: Problem
) -> tuple[dict[str, Weight], int]:
    if not (len(part.rows) and part.blocks):
        return {}, 0
    offsets = np.arange(problem.inner) % _reach(problem) * problem.panel
    arrays, chunks = pack_rows(weight[part.rows], grouping, Columns(part.blocks, offsets))
    arrays["rows"] = part.rows[arrays["rows"]].astype(row_type(problem.rows))
    arrays["bases"] = np.array(part.bases, np.int32) * problem.panel
    return arrays, chunks


def _stages(settings: Mapping[str, int]) -> list[tuple[tuple[str, ...], int]]:
    """Parts that run one after the other on the same rows, and their chunks."""
    found = []
    for labels in (("dense",), ("short",), ("strip", "long")):
        working = tuple(label for label in labels if settings[f"{label}_blocks"])
        if working:
            found.append((working, settings[f"{working[0]}_chunks"]))
    return found


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    from tvm.script.ir_builder import tirx as T

    config = dict(packing.config)
    stages, tiles, panel = _stages(config), packing.tiles, problem.panel
    nests = {label: _nest(label, problem, config, target) for labels, _ in stages for label in labels}

    def stage(
        k: Kernel, labels: tuple[str, ...], registers: Any, x: Any, y: Any, chunk: Any, parts: tuple[int, ...]
    ) -> None:
        for label in labels:
            inside, nest = k.within(label), replace(nests[label], parts=parts or nests[label].parts)
            for block, first, last in nest.block_loop(k):
                base = k.bind(x + k.cast64(inside["bases"][block]))
                tile = Tile(k["x"], base, panel_visits.PanelRest(problem, y))
                ends = (first and label == labels[0], last and label == labels[-1])
                nest.cell(inside, registers, tile, chunk, block, ends)

    def body(k: Kernel) -> None:
        registers = k.registers(max(nest.accumulators for nest in nests.values()))
        with k.tiles() as tile:
            number, chunk = k.bind(tile // tiles), k.bind(tile % tiles)
            x = k.bind(number * (problem.inner * panel))
            y = k.bind(number * (problem.rows * panel))

            def run(parts: tuple[int, ...]) -> None:
                low = 0
                for labels, chunks in stages:
                    with k.when(T.And(chunk >= low, chunk < low + chunks)):
                        stage(k, labels, registers, x, y, k.bind(chunk - low), parts)
                    low += chunks

            panel_visits.whole_or_first_vector(k, problem, number, run)

    stored = [*pointers(problem.rows, scale=1), ("bases", "int32")]
    packed = [(f"{label}_{n}", dtype) for label in nests for n, dtype in stored]
    parameters = [("x", "float32"), *packed, *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, target.lanes, parameters, panel_visits.run_time_sizes(problem), body)


def _nest(label: str, problem: Problem, config: Mapping[str, int], target: Target) -> RowVisits:
    group, vectors, shared = _visit(label, config)
    # dense and short rows fill their groups
    rows = problem.rows if label in ("strip", "long") else 0
    parts = (vectors,) * (problem.panel // (vectors * target.lanes))
    return RowVisits(rows, group, shared, config[f"{label}_chunks"], config[f"{label}_blocks"], parts)

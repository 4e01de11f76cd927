"""csr_spmm: unstructured weights times any number of columns, in any float dtype (see csr_tiles).

Arrays: ``values`` and ``places`` (uint16: the input within its block), by fours; ``starts`` int32: the
first four of each visit, [groups of rows][blocks of inputs][rows], and the end; ``slots`` uint16 [M]: which
of its group's visits a row is. Rows of a group are dealt to its warps by length, long ones first, forth and
back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import cost, expressions
from sparsec.targets.cuda.builder import device_function
from sparsec.targets.cuda.parts import csr_tiles
from sparsec.targets.cuda.parts.csr_tiles import FOUR, THREADS, WARPS, CsrTile
from sparsec.targets.cuda.parts.linear_tiles import blocks, ranked, run_time_sizes
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "csr_spmm"
format = "csr"

#: shared memory of a block: two fit into the smallest multiprocessor's, or one does
_WANTED_BYTES, _MOST_BYTES = 80 * 1024, 160 * 1024


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Every linear layer."""
    return problem.conv is None


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that are predicted best."""
    item = cost.item_bytes(problem)
    found = []
    for lanes in (1, 2, 4) if item == 4 else (1, 2, 4, 8):
        for visits in (4, 8, 16):
            tile = CsrTile(lanes, visits, _inner(problem, pattern, lanes, visits), item)
            if tile.shared_bytes <= _MOST_BYTES:
                found.append({"lanes": lanes, "visits": visits, "inner": tile.inner})
    return ranked(problem, found, lambda one, config: predict(one, pattern, config, target))


def _inner(problem: Problem, pattern: Pattern, lanes: int, visits: int) -> int:
    """Inputs of a block: a visit should have some 24 nonzeros; multiples of 32."""
    item = cost.item_bytes(problem)
    wanted = 24 / max(pattern.density, 1e-9)
    rest = _WANTED_BYTES - CsrTile(lanes, visits, 0, item).shared_bytes
    most = max(32, rest // (33 * lanes * item) // 32 * 32)
    inner = min(most, max(64, wanted), problem.inner)
    return int(-(-inner // 32) * 32)


def _tile(problem: Problem, config: Mapping[str, int]) -> CsrTile:
    return CsrTile(config["lanes"], config["visits"], config["inner"], cost.item_bytes(problem))


def _stored(problem: Problem, pattern: Pattern, tile: CsrTile) -> tuple[float, float]:
    """Expected visits with nonzeros, and nonzeros stored: a visit's last four is half empty."""
    visits = -(-problem.rows // tile.rows) * tile.rows * -(-problem.inner // tile.inner)
    busy = min(visits, pattern.nonzeros)
    return visits, pattern.nonzeros + busy * (FOUR - 1) / 2


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch: reads of shared memory, or instructions."""
    tile, columns, item = _tile(problem, config), cost.columns_of(problem), cost.item_bytes(problem)
    down, high = -(-columns // tile.tokens), -(-problem.rows // tile.rows)
    visits, nonzeros = _stored(problem, pattern, tile)
    width = max(1.0, tile.tokens * item / 128)
    issued = 3 + tile.lanes * (1 if item == 4 else 2)
    # a visit reads and writes its sums; x is read, turned and written
    work = nonzeros * max(width, issued / 4) + visits * (12 + 2 * tile.lanes)
    turned = high * problem.inner * tile.tokens * (item / 128 + 1 / 32)
    moved = nbytes(problem, pattern, config, target)
    resident = max(1, min(4, target.l1 // tile.shared_bytes))
    # a row is one warp's, whose nonzeros come one after the other
    longest = pattern.rows.maximum * (8.0 + 2 * tile.lanes) + 5 * problem.inner / tile.inner * 100
    x_bytes = columns * problem.inner * item
    return longest + cost.kernel_cycles(
        target, operations=down * (work + turned), rate=0.7, blocks=down * high, resident=resident,
        memory_bytes=moved + x_bytes + columns * problem.rows * item * (1 + problem.extras.count("full")),
        l2_bytes=down * moved + float(high) * x_bytes,
    )  # fmt: skip


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A value and a place for every nonzero, and where visits begin."""
    visits, nonzeros = _stored(problem, pattern, _tile(problem, config))
    return int(nonzeros * (cost.item_bytes(problem) + 2) + 4 * visits + 2 * problem.rows)


def pack(weight: NDArray[Any], problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``."""
    tile = _tile(problem, config)
    cuts = -(-problem.inner // tile.inner)
    row, column = np.nonzero(weight)
    slots = _slots(np.bincount(row, minlength=problem.rows), tile)
    visit = (row // tile.rows * cuts + column // tile.inner) * tile.rows + slots[row]
    order = np.argsort(visit, kind="stable")
    row, column, visit = row[order], column[order], visit[order]
    visits = -(-problem.rows // tile.rows) * cuts * tile.rows
    counts = np.bincount(visit, minlength=visits)
    starts = np.concatenate(([0], np.cumsum(-(-counts // FOUR))))
    rank = np.arange(len(row)) - (np.cumsum(counts) - counts)[visit]
    at = starts[visit] * FOUR + rank
    size = max(1, int(starts[-1])) * FOUR
    values, places = np.zeros(size, weight.dtype), np.full(size, tile.inner, np.uint16)
    values[at], places[at] = weight[row, column], column % tile.inner
    arrays = {
        "values": values, "places": places, "starts": starts.astype(np.int32),
        "slots": slots.astype(np.uint16),
    }  # fmt: skip
    return Packing(arrays, 0, tuple(sorted(config.items())))


def _slots(lengths: NDArray[Any], tile: CsrTile) -> NDArray[Any]:
    """For each row the visit of its group that it is: warps in turn, forth and back, by falling length."""
    rows = len(lengths)
    group = np.arange(rows) // tile.rows
    order = np.lexsort((-lengths, group))
    rank = np.empty(rows, np.int64)
    rank[order] = np.arange(rows) % tile.rows
    turn, warp = rank // WARPS, rank % WARPS
    warp = np.where(turn % 2, WARPS - 1 - warp, warp)
    return warp * tile.visits + turn


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A block for each tile."""
    tile = _tile(problem, dict(packing.config))
    return blocks(problem, sizes, columns, tile.tokens, tile.rows)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    tile, dtype = _tile(problem, dict(packing.config)), problem.dtype
    packed = [("values", dtype), ("places", "uint16"), ("starts", "int32"), ("slots", "uint16")]
    pointers = [("x", dtype), *packed, *expressions.extra_pointers(problem), ("y", dtype)]
    sizes = run_time_sizes(problem)
    return device_function(name, THREADS, pointers, sizes, lambda k: csr_tiles.emit(k, problem, tile))

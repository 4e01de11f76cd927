"""lookup_gemv: sparse weights times one to four columns, x looked up in registers.

A slab of x (as many entries as one, two or, on NEON, four vector registers hold) is kept in registers
and looked up with a permutation by 8-bit positions (see lookups), so no gather and no dependence on
the core's load ports.  Rows are interleaved one per lane; inside a slab the groups of rows are sorted by
their longest row, so the inner loop's trip count repeats, and partial sums rest in scratch.
Rows shorter than their group's longest are padded with zeros.

Arrays: ``values`` [slots, lanes]; ``positions`` uint8 of the same shape; ``groups`` int32: first
row of each visit; ``runs`` int32 [runs, 4]: slots a visit, visits, first slot, first visit;
``cells`` int32: first run of each (chunk, slab).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cost import epilogue_cycles, stream_cycles
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish_across
from sparsec.targets.kernels.lookups import index, look_up, slot_cycles, stored, stored_type, table_sizes
from sparsec.targets.target import Packing, Problem, Target

name = "lookup_gemv"
format = "ell"

#: slots a visit up to which the inner loop is unrolled whole
_STRAIGHT = 8
#: rows of a unit of work, and fewest rows that a thread's share is worth
_TALL, _SHARED_ROWS = 1024, 256


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """One to four columns in plain layout."""
    fits = problem.columns is not None and 1 <= problem.columns <= 4
    return problem.conv is None and problem.panel == 0 and fits


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """Every number of registers that x can be looked up in."""
    lanes = target.lanes
    # long runs of equal visits need many rows: cut only what is tall, or what several threads share
    shares = max(1, min(target.threads, problem.rows // _SHARED_ROWS))
    chunks = -(-max(1, problem.rows // _TALL) // shares) * shares
    chunk = -(-problem.rows // (chunks * lanes)) * lanes
    return tuple({"registers": w, "chunk": chunk} for w in table_sizes(target))


@lru_cache(maxsize=4096)
def _longest(slab: int, rows: int, permille: int) -> tuple[float, ...]:
    """The chance that the longest of ``rows`` binomial row lengths in a slab is 0, 1 ... slab."""
    d = permille / 1000
    below, before, found = 0.0, 0.0, []
    for length in range(slab + 1):
        below += comb(slab, length) * d**length * (1 - d) ** (slab - length)
        found.append(min(1.0, below) ** rows - before)
        before += found[-1]
    return tuple(found)


def _cells(
    problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target
) -> tuple[float, float]:
    """Groups of rows times slabs that hold a nonzero, and how dense these are."""
    lanes, slab = target.lanes, target.lanes * config["registers"]
    found = [b.stored for b in pattern.blocks if (b.rows, b.columns) == (lanes, slab)]
    every = -(-problem.rows // lanes) * -(-problem.inner // slab)
    live = max(1.0, found[0] if found else every * (1 - (1 - pattern.density) ** (lanes * slab)))
    return live, min(1.0, pattern.nonzeros / (live * lanes * slab))


def _chances(
    problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target
) -> tuple[float, ...]:
    """The chance of each length of a visit."""
    _, density = _cells(problem, pattern, config, target)
    # the rows of a block are equally long, and its columns come together
    high, wide = (pattern.block.rows, pattern.block.columns) if pattern.block else (1, 1)
    slab = target.lanes * config["registers"]
    found = _longest(max(1, slab // wide), max(1, target.lanes // high), max(1, round(density * 1000)))
    return tuple(found[i // wide] if i % wide == 0 else 0.0 for i in range((len(found) - 1) * wide + 1))


def _slots(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Expected slots: each group of rows takes its longest row's length in every slab."""
    slab = target.lanes * config["registers"]
    cells, _ = _cells(problem, pattern, config, target)
    chances = _chances(problem, pattern, config, target)
    longest = sum(length * chance for length, chance in enumerate(chances))
    even = [slab * f.n / f.m for f in pattern.nm if f.axis == 1 and slab % f.m == 0]
    # one of few hubs is the longest of its group in every slab; what else varies is spread over all groups
    few = 4 * target.lanes * pattern.hub_rows <= problem.rows
    hubs = pattern.hub_rows * pattern.rows.maximum if few else 0
    if not hubs:
        longest *= 1 + 0.5 * min(1.0, pattern.row_variation) ** 2
    return cells * max(1.0, min(longest, slab, *even)) + hubs


def _runs_cycles(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Every slab of a chunk begins anew, and so does every length of its visits, with a wrong guess."""
    cells, _ = _cells(problem, pattern, config, target)
    groups = min(config["chunk"], -(-problem.rows // target.lanes) * target.lanes) / target.lanes
    begun = max(1.0, cells / groups)
    chances = _chances(problem, pattern, config, target)[1:]
    distinct = 1.0 if pattern.nm_best else sum(1 - (1 - chance) ** (cells / begun) for chance in chances)
    return begun * (5.4 + 11.0 * distinct)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run: slots at the permutation's rate and visits, or the stream of weights."""
    lanes, columns = target.lanes, problem.columns or 1
    slots = _slots(problem, pattern, config, target)
    visits, _ = _cells(problem, pattern, config, target)
    runs = _runs_cycles(problem, pattern, config, target)
    stream = stream_cycles(nbytes(problem, pattern, config, target), target)
    rate = slot_cycles(config["registers"], columns, target)
    out = problem.rows * columns / lanes * (2 + epilogue_cycles(problem))
    # fitted on Zen 3 at 2 to 50 % density: a visit waits for little
    return max(slots * rate + visits * (0.3 + 0.9 * columns) + runs, stream) + out + 200


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A value and an 8-bit position for every slot, padding included."""
    return int(_slots(problem, pattern, config, target) * target.lanes * 5) + 4 * problem.rows


def pack(weight: NDArray[Any], problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``."""
    lanes, slab = target.lanes, target.lanes * config["registers"]
    tall, wide = -(-problem.rows // lanes) * lanes, -(-problem.inner // slab) * slab
    padded = np.zeros((tall, wide), np.float32)
    padded[: problem.rows, : problem.inner] = weight
    used = padded != 0
    lengths = used.reshape(tall, wide // slab, slab).sum(axis=2)
    longest = lengths.reshape(tall // lanes, lanes, -1).max(axis=1)
    chunk_groups = config["chunk"] // lanes
    chunks = -(-(tall // lanes) // chunk_groups)
    group_index = np.arange(tall // lanes)
    # visits in the order the kernel makes them: chunk, slab, slots a visit, group
    order = [
        (c, s, int(longest[g, s]), int(g))
        for c in range(chunks)
        for s in range(wide // slab)
        for g in _sorted_groups(group_index[c * chunk_groups : (c + 1) * chunk_groups], longest[:, s])
    ]
    runs, cells = _runs(order, chunks, wide // slab)
    first_slot = np.zeros((tall // lanes, wide // slab), np.int64)
    slots = 0
    for _, s, length, g in order:
        first_slot[g, s] = slots
        slots += length
    row, column = np.nonzero(used)
    slab_index, position = np.divmod(column, slab)
    group, lane = np.divmod(row, lanes)
    rank = _rank_in_slab(row, slab_index, wide // slab)
    at = first_slot[group, slab_index] + rank
    values = np.zeros((max(slots, 1), lanes), np.float32)
    positions = np.zeros((max(slots, 1), lanes), np.uint8)
    values[at, lane] = padded[row, column]
    positions[at, lane] = position
    arrays = {
        "values": values.reshape(-1), "positions": stored(positions.reshape(-1), target),
        "groups": np.array([g * lanes for *_, g in order] or [0], np.int32), "runs": runs, "cells": cells,
    }  # fmt: skip
    settings = {**config, "chunks": chunks}
    return Packing(arrays, chunks, tuple(sorted(settings.items())))


def _sorted_groups(groups: NDArray[Any], longest: NDArray[Any]) -> NDArray[Any]:
    kept = groups[longest[groups] > 0]
    order: NDArray[Any] = kept[np.argsort(-longest[kept], kind="stable")]
    return order


def _rank_in_slab(row: NDArray[Any], slab: NDArray[Any], slabs: int) -> NDArray[Any]:
    key = row.astype(np.int64) * slabs + slab
    starts = (
        np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1]))) if key.size else np.zeros(0, np.int64)
    )
    sizes = np.diff(np.concatenate((starts, [key.size])))
    return np.arange(key.size) - np.repeat(starts, sizes)


def _runs(order: list[tuple[int, int, int, int]], chunks: int, slabs: int) -> tuple[Any, Any]:
    runs: list[list[int]] = []
    cells = np.zeros(chunks * slabs + 1, np.int32)
    slot, previous = 0, (-1, -1, -1)
    for visit, (chunk, slab, length, _) in enumerate(order):
        if (chunk, slab, length) != previous:
            runs.append([length, 0, slot, visit])
            cells[chunk * slabs + slab + 1] += 1
            previous = (chunk, slab, length)
        runs[-1][1] += 1
        slot += length
    table = np.array(runs or [[0, 0, 0, 0]], np.int32).reshape(-1)
    return table, np.cumsum(cells, dtype=np.int32)


def scratch_floats(problem: Problem, packing: Packing, target: Target) -> int:
    """Room for x, padded to whole slabs, and for the partial sums."""
    columns = problem.columns or 1
    wide = problem.inner + max(table_sizes(target)) * target.lanes
    return columns * (wide + problem.rows + 2 * target.lanes) + 64


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as T

    c = dict(packing.config)
    lanes, columns, chunk = target.lanes, problem.columns or 1, c["chunk"]
    slab = lanes * c["registers"]
    slabs = -(-problem.inner // slab)
    wide, tall = slabs * slab, -(-problem.rows // lanes) * lanes
    sums = columns * wide

    def copy_x(k: Kernel) -> None:
        whole = problem.inner // lanes * lanes
        for n in range(columns):
            with k.loop(whole // lanes) as i:
                k.put(k.scratch, n * wide + i * lanes, k.vector(k["x"], n * problem.inner + i * lanes))
            with k.loop(whole, wide) as i:
                value = T.if_then_else(i < problem.inner, k["x"][n * problem.inner + i], T.float32(0))
                k.assign(k.scratch, n * wide + i, value)

    def body(k: Kernel) -> None:
        acc = k.registers(columns)
        copy_x(k)
        with k.tiles() as tile:
            row0 = k.bind(tile * chunk)
            rows = k.bind(T.min(k.cast64(tirx.IntImm("int64", chunk)), tall - row0))
            for n in range(columns):
                with k.loop(rows // lanes) as i:
                    k.put(k.scratch, sums + n * tall + row0 + i * lanes, k.splat(0.0))
            with k.loop(slabs) as s:
                xs = [
                    [
                        k.bind(k.vector(k.scratch, n * wide + s * slab + r * lanes))
                        for r in range(c["registers"])
                    ]
                    for n in range(columns)
                ]
                cell = k.bind(tile * slabs + s)
                with k.loop(k.cast64(k["cells"][cell]), k.cast64(k["cells"][cell + 1])) as run:
                    slots = k.bind(k.cast64(k["runs"][run * 4]))
                    slot0 = k.bind(k.cast64(k["runs"][run * 4 + 2]))
                    visit0 = k.bind(k.cast64(k["runs"][run * 4 + 3]))
                    visits = k.bind(k.cast64(k["runs"][run * 4 + 1]))
                    # straight-line code for the usual counts: a loop's overhead is as dear as a slot
                    for count in range(1, _STRAIGHT + 1):
                        with k.when(slots == count), k.loop(visits) as visit:
                            one_visit(k, acc, xs, count, slot0 + visit * count, k["groups"][visit0 + visit])
                    with k.when(slots > _STRAIGHT), k.loop(visits) as visit:
                        one_visit(k, acc, xs, slots, slot0 + visit * slots, k["groups"][visit0 + visit])
            write_out(k, row0)

    def one_visit(k: Kernel, acc: Any, xs: list[list[Any]], slots: Any, slot0: Any, group: Any) -> None:
        base = k.bind(k.cast64(group))
        first = k.bind(slot0 * lanes)
        for n in range(columns):
            k.assign(acc, n, k.vector(k.scratch, sums + n * tall + base))
        if isinstance(slots, int):
            for j in range(slots):
                one_slot(k, acc, xs, first + j * lanes)
        else:
            with k.loop(slots) as j:
                one_slot(k, acc, xs, k.bind(first + j * lanes))
        for n in range(columns):
            k.put(k.scratch, sums + n * tall + base, acc[n])

    def one_slot(k: Kernel, acc: Any, xs: list[list[Any]], at: Any) -> None:
        places = index(k, k["positions"], at, target)
        value = k.bind(k.vector(k["values"], at))
        for n in range(columns):
            k.assign(acc, n, acc[n] + value * look_up(xs[n], places, target))

    def write_out(k: Kernel, row0: Any) -> None:
        stop = k.bind(T.min(row0 + chunk, k.cast64(tirx.IntImm("int64", problem.rows))))
        for n in range(columns):
            with k.loop((stop - row0) // lanes) as i:
                row = k.bind(row0 + i * lanes)
                value = k.bind(k.vector(k.scratch, sums + n * tall + row))
                where = n * problem.rows + row
                k.put(k["y"], where, finish_across(k, problem, value, row, where, lanes))
            if problem.rows % lanes:
                with k.loop(row0 + (stop - row0) // lanes * lanes, stop) as row:
                    value = k.bind(k.scratch[sums + n * tall + row])
                    where = n * problem.rows + row
                    k.assign(k["y"], where, finish_across(k, problem, value, row, where, 1))

    pointers = [
        ("x", "float32"), ("values", "float32"), ("positions", stored_type(target)), ("groups", "int32"),
        ("runs", "int32"), ("cells", "int32"), *extra_pointers(problem), ("y", "float32"),
    ]  # fmt: skip
    return prim_func(name, lanes, pointers, (), body)

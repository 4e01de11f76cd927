"""active_gemv: weights stored by columns times one to four columns of x, zero inputs skipped.

A run first lists the inputs that are not zero (in all columns of x), then adds up only what
their weights contribute, so its time goes with the share of inputs that are active: EIE (Han et
al., 2016) does so in hardware.  A weight is finite, so what is skipped is 0; NaN and infinities
are active, -0.0 is not.

Two ways to store the weights.  *Whole* columns: bands of rows, in each band all inputs, zero
weights too, accumulated in registers.  *Sparse* columns (csc): in each chunk of rows every
input's nonzeros with 16-bit rows, padded to a multiple of four, added to accumulators in L1; up
to four columns of x share one vector there.

Arrays: ``values``; ``rows`` uint16 of the same length and ``starts`` int32 [chunks * inputs + 1]
for sparse columns; ``orders`` uint8 [256, 8]: the positions of the set bits of a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cost import epilogue_cycles, stream_cycles
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish_across
from sparsec.targets.target import Packing, Problem, Target

name = "active_gemv"
format = "csc"

#: inputs looked at together, and nonzeros added up together
_BYTE, _STEP = 8, 4
#: lanes of an accumulator that holds several columns of x
_SHARED = 4
#: whole columns added up in one sweep over the sums, by columns of x
_TOGETHER = {1: 4, 2: 4, 3: 2, 4: 2}
#: share of a cache's bandwidth that is left where lines between are skipped: they are fetched ahead in vain
_SKIPPING = 0.65
#: with more of its inputs active, a layer has nothing to gain
_MOSTLY_ACTIVE = 0.9


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """One to four columns in plain layout, and a calibration that saw zeros."""
    fits = problem.columns is not None and 1 <= problem.columns <= 4
    seen = problem.active is not None and problem.active < _MOSTLY_ACTIVE
    small = problem.rows * problem.inner < 1 << 30
    return problem.conv is None and problem.panel == 0 and fits and seen and small


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """Sparse columns, or whole ones, in up to four chunks of rows."""
    sparse = _chunk(problem, max(1, min(4, int(problem.rows * pattern.density / 64))), 1)
    whole = _chunk(problem, max(1, min(4, problem.rows // 512)), target.lanes)
    return {"chunk": sparse, "whole": 0}, {"chunk": whole, "whole": 1}


def _chunk(problem: Problem, chunks: int, multiple: int) -> int:
    """Rows of a chunk, few enough that their sums stay in half of L1."""
    most = 4096 if problem.columns == 1 else 1024
    chunks = max(chunks, -(-problem.rows // most))
    return -(-problem.rows // (chunks * multiple)) * multiple


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run at the share of active inputs that calibration saw."""
    columns = problem.columns or 1
    size = nbytes(problem, pattern, config, target)
    share = 1.0 if problem.active is None else problem.active
    visits = share * problem.inner * -(-problem.rows // config["chunk"])
    if config["whole"]:
        compute = visits * (8 + config["chunk"] / target.lanes * (0.5 + 0.5 * columns))
    else:
        compute = visits * 24 + (1.6 + 1.7 * pattern.density) * (share * pattern.nonzeros + 1.5 * visits)
    listing = 40 + problem.inner * (0.4 + 0.2 * columns)
    out = problem.rows * columns / target.lanes * (4 + epilogue_cycles(problem))
    return max(share * stream_cycles(size, target) / _SKIPPING, compute) + listing + out


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every weight, or six bytes a nonzero, columns padded to four."""
    chunks = -(-problem.rows // config["chunk"])
    if config["whole"]:
        return 4 * chunks * config["chunk"] * problem.inner
    return int(6 * pattern.nonzeros + (9 + 4) * problem.inner * chunks)


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``."""
    arrays, chunks = (_whole if config["whole"] else _sparse)(weight, config["chunk"])
    bits = np.arange(256)[:, None] >> np.arange(_BYTE) & 1
    arrays["orders"] = np.argsort(1 - bits, axis=1, kind="stable").astype(np.uint8).reshape(-1)
    return Packing(arrays, chunks, tuple(sorted({**config, "chunks": chunks}.items())))


def _whole(weight: Any, chunk: int) -> tuple[dict[str, Any], int]:
    """[chunks][K][chunk], the last chunk padded with zeros."""
    chunks = -(-len(weight) // chunk)
    padded = np.zeros((chunks * chunk, weight.shape[1]), np.float32)
    padded[: len(weight)] = weight
    packed = np.ascontiguousarray(padded.reshape(chunks, chunk, -1).transpose(0, 2, 1)).reshape(-1)
    return {"values": packed}, chunks


def _sparse(weight: Any, chunk: int) -> tuple[dict[str, Any], int]:
    """Chunk by chunk, input by input; padding belongs to a row after the chunk's last."""
    chunks, inner = -(-len(weight) // chunk), weight.shape[1]
    row, column = np.nonzero(weight)
    cell = row // chunk * inner + column
    order = np.argsort(cell, kind="stable")
    row, column, cell = row[order], column[order], cell[order]
    counts = np.bincount(cell, minlength=chunks * inner)
    starts = np.concatenate(([0], np.cumsum(-(-counts // _STEP) * _STEP)))
    at = starts[cell] + np.arange(cell.size) - np.concatenate(([0], np.cumsum(counts)))[cell]
    values = np.zeros(max(int(starts[-1]), 1), np.float32)
    rows = np.full(values.size, chunk, np.uint16)
    values[at], rows[at] = weight[row, column], row % chunk
    return {"values": values, "rows": rows, "starts": starts.astype(np.int32)}, chunks


def scratch_floats(problem: Problem, packing: Packing, target: Target) -> int:
    """Room for the list of inputs, the sums of a chunk, and as many again column by column."""
    columns, c = problem.columns or 1, dict(packing.config)
    shared = _SHARED if columns > 1 and not c["whole"] else 0
    return _sums_at(problem) + (columns + shared) * _pitch(c, target.lanes) + 64


def _sums_at(problem: Problem) -> int:
    """Where the list ends; eight entries are written at once."""
    return -(-(problem.inner + _BYTE) // 16) * 16


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    from tvm.script.ir_builder import tirx as T

    c = dict(packing.config)
    chunk, pitch = c["chunk"], _pitch(c, target.lanes)

    def body(k: Kernel) -> None:
        count = list_active(k, problem, target)
        with k.tiles() as tile:
            (add_whole if c["whole"] else add_sparse)(k, problem, tile, count, chunk, pitch)
            row0 = k.bind(tile * chunk)
            here = k.bind(T.min(k.constant(chunk), k.constant(problem.rows) - row0))
            write_out(k, problem, row0, here, pitch)

    stored = [] if c["whole"] else [("rows", "uint16"), ("starts", "int32")]
    pointers = [
        ("x", "float32"), ("values", "float32"), *stored, ("orders", "uint8"),
        *extra_pointers(problem), ("y", "float32"),
    ]  # fmt: skip
    return prim_func(name, target.lanes, pointers, (), body)


def _pitch(config: Mapping[str, int], lanes: int) -> int:
    """Sums of a column of x lie this far from the next column's; padding has a place among them."""
    return -(-(config["chunk"] + (0 if config["whole"] else 1)) // lanes) * lanes


def _mask(used: Any, target: Target) -> Any:
    """An int32 of eight conditions, one a bit."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as T

    zero, ones = (T.Broadcast(tirx.IntImm("int32", n), _BYTE) for n in (0, -1))
    if target.architecture == "x86_64":
        taken = T.reinterpret("float32x8", T.Select(used, ones, zero))
        return T.call_llvm_pure_intrin("int32", "llvm.x86.avx.movmsk.ps.256", taken)
    weights = T.shift_left(T.Broadcast(tirx.IntImm("int32", 1), _BYTE), T.Ramp(T.int32(0), 1, _BYTE))
    return T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", T.Select(used, weights, zero))


def list_active(k: Kernel, problem: Problem, target: Target) -> Any:
    """Write the numbers of the inputs that are not zero to scratch; returns how many."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as T

    columns, inner = problem.columns or 1, problem.inner
    count = T.alloc_buffer((1,), "int64", scope="local")
    k.assign(count, 0, k.constant(0))

    def bits(at: Any, lanes: int) -> Any:
        """All columns' bits but the sign."""
        kind = f"int32x{lanes}" if lanes > 1 else "int32"
        found = [T.reinterpret(kind, k.vector(k["x"], n * inner + at, lanes)) for n in range(columns)]
        both = found[0]
        for one in found[1:]:
            both = T.bitwise_or(both, one)
        return T.bitwise_and(both, splat32(0x7FFFFFFF, lanes))

    def splat32(value: Any, lanes: int = _BYTE) -> Any:
        number = tirx.IntImm("int32", value) if isinstance(value, int) else value
        return T.Broadcast(number, lanes) if lanes > 1 else number

    with k.loop(inner // _BYTE) as i:
        at = k.bind(i * _BYTE)
        mask = k.bind(_mask(bits(at, _BYTE) != splat32(0), target))
        order = T.cast(k.vector(k["orders"], k.cast64(mask) * _BYTE, _BYTE), "int32x8")
        listed = order + splat32(T.cast(at, "int32"))
        k.put(k.scratch, count[0], T.reinterpret("float32x8", listed), _BYTE)
        k.assign(count, 0, count[0] + k.cast64(T.popcount(mask)))
    with k.loop(inner // _BYTE * _BYTE, inner) as j:
        k.assign(k.scratch, count[0], T.reinterpret("float32", T.cast(j, "int32")))
        k.assign(count, 0, count[0] + k.cast64(bits(j, 1) != splat32(0, 1)))
    return k.bind(count[0])


def listed_input(k: Kernel, place: Any) -> Any:
    """An entry of the list."""
    from tvm.script.ir_builder import tirx as T

    return k.bind(k.cast64(T.reinterpret("int32", k.scratch[place])))


def add_whole(k: Kernel, problem: Problem, tile: Any, count: Any, chunk: int, pitch: int) -> None:
    """A chunk's sums from whole columns, in scratch."""
    columns, inner, sums = problem.columns or 1, problem.inner, _sums_at(problem)
    together = _TOGETHER[columns]
    with k.loop(columns * pitch // k.lanes) as i:
        k.put(k.scratch, sums + i * k.lanes, k.splat(0.0))

    def sweep(place: Any, inputs: int) -> None:
        """Add so many inputs of the list to all sums."""
        found = [listed_input(k, place + i) for i in range(inputs)]
        lines = [k.bind((tile * inner + j) * chunk) for j in found]
        xs = [[k.bind(k.splat(k["x"][n * inner + j])) for j in found] for n in range(columns)]
        with k.loop(chunk // k.lanes) as v:
            at = k.bind(v * k.lanes)
            weights = [k.bind(k.vector(k["values"], line + at)) for line in lines]
            for n in range(columns):
                total = k.vector(k.scratch, sums + n * pitch + at)
                for x, weight in zip(xs[n], weights, strict=True):
                    total = total + x * weight
                k.put(k.scratch, sums + n * pitch + at, total)

    with k.loop(count // together) as group:
        sweep(k.bind(group * together), together)
    with k.loop(count // together * together, count) as place:
        sweep(place, 1)


def add_sparse(k: Kernel, problem: Problem, tile: Any, count: Any, chunk: int, pitch: int) -> None:
    """A chunk's sums from sparse columns, in scratch."""
    from tvm.script.ir_builder import tirx as T

    columns, inner = problem.columns or 1, problem.inner
    width, sums = (1 if columns == 1 else _SHARED), _sums_at(problem)
    mixed = sums + (columns * pitch if width > 1 else 0)
    with k.loop(pitch * width // k.lanes) as i:
        k.put(k.scratch, mixed + i * k.lanes, k.splat(0.0))
    with k.loop(count) as p:
        j = listed_input(k, p)
        found = [k["x"][n * inner + j] for n in range(columns)]
        x = k.bind(T.Shuffle([*found, *[T.float32(0)] * (width - columns)], list(range(width))) if width > 1
                   else found[0])  # fmt: skip
        cell = k.bind(tile * inner + j)
        first, stop = (k.bind(k.cast64(k["starts"][cell + i])) for i in range(2))
        with k.loop((stop - first) // _STEP) as q:
            at = k.bind(first + q * _STEP)
            where = [k.bind(mixed + k.cast64(k["rows"][at + i]) * width) for i in range(_STEP)]
            # rows of a column differ, so all may be read before any is written
            new = [
                k.bind(k.vector(k.scratch, w, width) + x * k.splat(k["values"][at + i], width))
                for i, w in enumerate(where)
            ]
            for w, value in zip(where, new, strict=True):
                k.put(k.scratch, w, value, width)
    if width > 1:
        with k.loop(chunk) as i:
            for n in range(columns):
                k.assign(k.scratch, sums + n * pitch + i, k.scratch[mixed + i * width + n])


def write_out(k: Kernel, problem: Problem, row0: Any, rows: Any, pitch: int) -> None:
    """``rows`` sums of every column from scratch to y."""
    sums, lanes = _sums_at(problem), k.lanes
    for n in range(problem.columns or 1):
        with k.loop(rows // lanes) as i:
            value = k.bind(k.vector(k.scratch, sums + n * pitch + i * lanes))
            row = k.bind(row0 + i * lanes)
            where = k.bind(n * problem.rows + row)
            k.put(k["y"], where, finish_across(k, problem, value, row, where, lanes))
        with k.loop(rows // lanes * lanes, rows) as i:
            value = k.bind(k.scratch[sums + n * pitch + i])
            row = k.bind(row0 + i)
            where = k.bind(n * problem.rows + row)
            k.assign(k["y"], where, finish_across(k, problem, value, row, where, 1))

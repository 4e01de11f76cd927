"""gap_runs: nonzeros and the gaps between them, each lane a stretch of one row; x lies in shared memory.

Where a row is mostly zeros, its nonzeros are decoded one by one: a lane adds up gaps, of a byte each (of
two where one is too small), and each sum is where x is read. MACKO (Macko and Boza 2025) stores gaps of
four bits, and zeros where they do not suffice; a byte suffices at all densities this is for, and takes no
more memory at nine zeros in ten: 3 bytes a nonzero of 16 bits, 2 and ten bits with a bit mask.

A warp has eight rows: lane 4 g + j reads one of the stretches that row g is cut into, 128 bits of values at
a time. Where a lane begins is stored, so nothing is passed between lanes. Rows go to warps in the order of
their lengths, whose lanes then end together.

A nonzero takes seven instructions and one read of shared memory, whose 32 lanes meet 3.4 times in a bank on
average. At nine zeros in ten an H200's memory brings 4.9 nonzeros a cycle to a multiprocessor, which could
issue 18 and read 9. With more columns a place of x is a vector, and reads take as many times longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda import expressions, instructions
from sparsec.targets.cuda.builder import Array, Kernel, int64
from sparsec.targets.cuda.parts.octets import OCTET
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.target import Problem

Weight = NDArray[Any]

#: lanes of a warp that share a row, and values' bytes that each reads at once
PARTS, QUAD = 4, 16
#: steps whose loads a lane issues together
AHEAD = 4
#: the shared memory that x may take
MOST_BYTES = 160 * 1024


@dataclass(frozen=True, slots=True)
class Split:
    """A block has ``high`` eights of rows, and ``deep`` warps share each; gaps have ``gap_bytes``."""

    high: int
    deep: int
    gap_bytes: int = 1

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return OCTET * self.high

    @property
    def parts(self) -> int:
        """Lanes that share a row."""
        return PARTS * self.deep

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return 32 * self.high * self.deep


def width_of(columns: int) -> int:
    """The vector that a place of x takes."""
    return next(w for w in (1, 2, 4, 8, 16) if w >= columns)


def x_bytes(problem: Problem) -> int:
    """Shared memory that x takes."""
    return problem.inner * width_of(problem.columns or 1) * _item(problem)


def shared_bytes(problem: Problem, split: Split) -> int:
    """Dynamic shared memory: x, and then the warps' sums in its place."""
    return max(x_bytes(problem), split.high * split.deep * OCTET * (problem.columns or 1) * 4)


def _item(problem: Problem) -> int:
    return 4 if problem.dtype == "float32" else 2


def stored(rows: int, nonzeros: float, split: Split, item: int) -> float:
    """Expected bytes: a lane's last vector is half empty, and an eight's lanes are as long as its longest."""
    lanes = -(-rows // split.rows) * split.high * split.deep * 32
    vector = QUAD // item
    values = lanes * max(vector, nonzeros / lanes + vector / 2 + 1)
    return values * (item + split.gap_bytes) + lanes * (4 + 4 / 32) + rows * 4


@dataclass(frozen=True, slots=True, eq=False)
class _Lanes:
    """Where nonzeros go: of each its ``unit``, ``lane`` there, and number ``at`` in the lane.

    ``steps`` of each unit; ``rows``: the rows in the order of units' eights.
    """

    unit: Weight
    lane: Weight
    at: Weight
    steps: Weight
    rows: Weight


def _dealt(row: Weight, rows: int, split: Split, vector: int) -> _Lanes:
    """Cut every row's nonzeros into stretches; ``row`` is ascending."""
    counts = np.bincount(row, minlength=rows)
    order = np.argsort(-counts, kind="stable")
    eights = -(-rows // split.rows) * split.high
    places = np.full(eights * OCTET, rows, np.int32)
    places[:rows] = order
    lengths = np.zeros(eights * OCTET, np.int64)
    lengths[:rows] = counts[order]
    each = -(-lengths // split.parts)
    # the first stretch is the longest
    steps = np.repeat(-(-each.reshape(eights, OCTET).max(axis=1) // vector), split.deep)
    position = np.empty(rows, np.int64)
    position[order] = np.arange(rows)
    line, rank = position[row], np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    part, at = rank // each[line], rank % each[line]
    unit = line // OCTET * split.deep + part // PARTS
    return _Lanes(unit, line % OCTET * PARTS + part % PARTS, at, steps, places)


def pack(weight: Weight, split: Split) -> tuple[dict[str, Weight], int]:
    """``weight[M, K]`` as arrays, and the bytes of a gap.

    A *unit* is what a warp does: ``values`` [steps of all units][32 lanes][vector] and ``gaps`` alike, uint8
    or uint16; ``firsts`` int32 [units][32]: the lane's first column; ``starts`` int32 [units + 1]: a
    unit's first step; ``rows`` int32: the rows in the order of units' eights, M where there is none.
    """
    vector = QUAD // weight.dtype.itemsize
    row, column = np.nonzero(weight)
    lanes = _dealt(row, len(weight), split, vector)
    starts = np.concatenate(([0], np.cumsum(lanes.steps)))
    begins = lanes.at == 0
    gap = np.where(begins, 0, np.diff(column, prepend=0))
    gap_bytes = 1 if gap.max(initial=0) < 256 else 2
    size = max(1, int(starts[-1])) * 32 * vector
    values, gaps = np.zeros(size, weight.dtype), np.zeros(size, f"<u{gap_bytes}")
    place = ((starts[lanes.unit] + lanes.at // vector) * 32 + lanes.lane) * vector + lanes.at % vector
    values[place], gaps[place] = weight[row, column], gap
    firsts = np.zeros((len(lanes.steps), 32), np.int32)
    firsts[lanes.unit[begins], lanes.lane[begins]] = column[begins]
    arrays = {
        "values": values, "gaps": gaps, "firsts": firsts.reshape(-1), "starts": starts.astype(np.int32),
        "rows": lanes.rows,
    }  # fmt: skip
    return arrays, gap_bytes


def pointers(dtype: str, gap_bytes: int) -> list[tuple[str, str]]:
    """The parameters of the packed arrays."""
    return [
        ("values", dtype), ("gaps", f"uint{8 * gap_bytes}"), ("firsts", "int32"), ("starts", "int32"),
        ("rows", "int32"),
    ]  # fmt: skip


def emit(k: Kernel, problem: Problem, split: Split) -> None:
    """The kernel's body."""
    width = width_of(problem.columns or 1)
    x = k.shared(-(-shared_bytes(problem, split) // _item(problem)), problem.dtype)
    unit = k.bind(k.block * (split.high * split.deep) + int64(k.warp))
    place = k.registers(1, "int32")
    place.put(0, k["firsts"][unit * 32 + int64(k.lane)])
    first, last = k.bind(k["starts"][unit]), k.bind(k["starts"][unit + 1])
    sums = k.registers(width)
    for n in range(width):
        sums.put(n, expressions.constant(0))
    _stage(k, problem, x, width)
    k.sync()
    with k.loop((last - first + (AHEAD - 1)) // AHEAD) as turn:
        _steps(k, problem, split, x, k.bind(first + turn * AHEAD), last, place, sums)
    for n in range(problem.columns or 1):
        for distance in (1, 2):
            sums.put(n, sums[n] + k.value(instructions.shuffle_xor, sums[n], distance))
    k.sync()
    _deliver(k, problem, split, sums)


def _stage(k: Kernel, problem: Problem, x: Array, width: int) -> None:
    """Copy x to shared memory, a vector of columns for each input."""
    columns, inner = problem.columns or 1, problem.inner
    vector = QUAD // _item(problem)
    if width == 1 and inner % vector == 0:
        with k.loop(-(-inner // (vector * k.threads))) as turn:
            at = k.bind((turn * k.threads + k.thread) * vector)
            with k.when(at < inner):
                k.call(instructions.cp_async_16, x.pointer(at), k["x"].pointer(int64(at)), 1)
        k.call(instructions.cp_async_commit)
        k.call(instructions.cp_async_wait(0))
        return
    with k.loop(-(-inner // k.threads)) as turn:
        at = k.bind(turn * k.threads + k.thread)
        with k.when(at < inner):
            for n in range(columns):
                x.put(at * width + n, k["x"][n * inner + int64(at)])
            for n in range(columns, width):
                x.put(at * width + n, T.cast(expressions.constant(0), problem.dtype))


def _steps(
    k: Kernel, problem: Problem, split: Split, x: Array, first: Any, last: Any, place: Array, sums: Array
) -> None:
    """The lane's next :data:`AHEAD` vectors: all their loads, then all products."""
    item = _item(problem)
    vector = QUAD // item
    per_word = 4 // split.gap_bytes
    count = vector // per_word
    loaded = []
    for step in range(AHEAD):
        values, gaps = k.registers(4, "uint32"), k.registers(count, "uint32")
        for words in ((values, 4), (gaps, count)):
            for i in range(words[1]):
                words[0].put(i, tirx.IntImm("uint32", 0))
        with k.when(first + step < last):
            at = k.bind(int64(first + step) * 32 + int64(k.lane))
            k.call(instructions.load_once, values.pointer(), k["values"].pointer(at * vector))
            gaps.put(0, k.view("gaps", "uint32").vector(at * count, count), count)
        loaded.append((values, gaps))
    for values, gaps in loaded:
        numbers = k.registers(vector)
        for i in range(vector):
            if item == 4:
                numbers.put(i, T.reinterpret("float32", values[i]))
            elif i % 2 == 0:
                k.call(instructions.unpack(problem.dtype), numbers.pointer(i), values[i // 2])
        for i in range(vector):
            shift = tirx.IntImm("uint32", i % per_word * 8 * split.gap_bytes)
            low = tirx.IntImm("uint32", 256**split.gap_bytes - 1)
            place.put(0, place[0] + T.cast((gaps[i // per_word] >> shift) & low, "int32"))
            _product(k, problem, x, place[0], numbers[i], sums)


def _product(k: Kernel, problem: Problem, x: Array, place: Any, value: Any, sums: Array) -> None:
    width = width_of(problem.columns or 1)
    lanes = min(width, QUAD // _item(problem))
    for n in range(0, width, lanes):
        found = expressions.load(k, x, k.bind(place * width + n), lanes)
        for i in range(lanes):
            if n + i < (problem.columns or 1):
                sums.put(n + i, sums[n + i] + value * found[i])


def _deliver(k: Kernel, problem: Problem, split: Split, sums: Array) -> None:
    """Add the sums of a row's warps, run the epilogue and store."""
    columns = problem.columns or 1
    totals = k.shared_at(0, "float32")
    with k.when(k.lane % PARTS == 0):
        for n in range(columns):
            totals.put((k.warp * columns + n) * OCTET + k.lane // PARTS, sums[n])
    k.sync()
    count = split.rows * columns
    with k.loop(-(-count // k.threads)) as turn:
        at = k.bind(turn * k.threads + k.thread)
        with k.when(at < count):
            eight, inside = k.bind(at // (OCTET * columns)), k.bind(at % (OCTET * columns))
            row = k.bind(int64(k["rows"][k.block * split.rows + int64(eight * OCTET + inside % OCTET)]))
            with k.when(row < problem.rows):
                base = k.bind(eight * split.deep * (OCTET * columns) + inside)
                total = totals[base]
                for deep in range(1, split.deep):
                    total = total + totals[base + deep * (OCTET * columns)]
                offset = k.bind(int64(inside // OCTET) * problem.rows + row)
                values = expressions.finish(k, problem, [k.bind(total)], row, offset)
                expressions.store(k, k["y"], offset, values)

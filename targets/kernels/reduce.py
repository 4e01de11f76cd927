"""reduce: sum, mean, max and min over any axes of a row-major tensor.

Neighbouring axes that are all kept or all reduced are one.  Where the last axis is kept, lanes
are neighbouring columns; where it is reduced, lanes run along rows and are combined at the end,
for as many rows at once as a vector has lanes.  Sums are taken in many partial sums, so that
their error grows slowly (pairwise summation, Higham, 2002, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparsec.ir.dims import Size, product
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.math import lanes_of
from sparsec.targets.kernels.shuffles import Registers, combine_rows, pick, vectors
from sparsec.targets.kernels.spans import cover
from sparsec.targets.kernels.tiles import Grid, Numbers, number, product_of, strides
from sparsec.targets.target import Target

name = "reduce"

#: elements read by one tile; columns summed side by side; rows of columns to a partial sum
BLOCK, COLUMNS, PARTIAL = 8192, 64, 128

#: from this length on a row is summed alone, in this many partial sums of a vector each
LONG, SUMS = 512, 8

_START = {"sum": 0.0, "mean": 0.0, "max": float("-inf"), "min": float("inf")}


@dataclass(frozen=True, slots=True)
class Reduction:
    """``kept`` and ``reduced`` axes of x as (size, distance), outermost first."""

    kind: str
    kept: tuple[tuple[Size, Size], ...]
    reduced: tuple[tuple[Size, Size], ...]

    @property
    def rows(self) -> bool:
        """Whether x is contiguous along a reduced axis."""
        return bool(self.reduced) and self.reduced[-1][1] == 1


def merged(shape: Sequence[Size], axes: Sequence[int], kind: str) -> Reduction:
    """The reduction of a row-major tensor with as few axes as possible."""
    groups: list[tuple[Size, bool]] = []
    for i, size in enumerate(shape):
        if size == 1:
            continue
        if groups and groups[-1][1] == (i in axes):
            groups[-1] = (groups[-1][0] * size, groups[-1][1])
        else:
            groups.append((size, i in axes))
    distances = strides([size for size, _ in groups])
    found = [(size, distance, gone) for (size, gone), distance in zip(groups, distances, strict=True)]
    return Reduction(
        kind,
        tuple((size, distance) for size, distance, gone in found if not gone),
        tuple((size, distance) for size, distance, gone in found if gone),
    )


def _width(r: Reduction, lanes: int) -> int:
    """Lanes of a row's vectors, and rows taken at once: 1 where rows are long or of unknown length."""
    length = r.reduced[-1][0]
    if not isinstance(length, int) or length >= LONG:
        return 1
    return min(lanes, 1 << (length.bit_length() - 1))


def steps(r: Reduction) -> tuple[int, ...]:
    """Elements of each kept axis that belong to one tile."""
    work = 1
    for size, _ in r.reduced:
        work *= size if isinstance(size, int) else SUMS * COLUMNS
    room = max(1, BLOCK // max(work, 1))
    if r.rows:
        last = max(room // COLUMNS * COLUMNS, 16) if room >= 16 else room
        return tuple([1] * (len(r.kept) - 1) + [last] * bool(r.kept))
    inner = r.kept[-1][0] if r.kept else 1
    if isinstance(inner, int) and inner <= max(room, COLUMNS):
        outer = max(1, room // inner)
        return tuple([1] * (len(r.kept) - 2) + [outer] * (len(r.kept) > 1) + [inner] * bool(r.kept))
    return tuple([1] * (len(r.kept) - 1) + [max(COLUMNS, room // COLUMNS * COLUMNS)])


def grid(r: Reduction) -> tuple[tuple[Size, int], ...]:
    """(size, step) of each kept axis: tiles are the product of ``ceil(size / step)``."""
    return tuple((size, step) for (size, _), step in zip(r.kept, steps(r), strict=True))


def numbers(r: Reduction) -> Numbers:
    """The run-time sizes the kernel reads."""
    return Numbers(n for axis in (*r.kept, *r.reduced) for n in axis)


def emit(r: Reduction, target: Target, name: str) -> Any:
    """The TIR function."""
    needed = numbers(r)

    def body(k: Kernel) -> None:
        kernel = (_Rows if r.rows else _Columns)(k, r, needed)
        with k.tiles() as tile:
            kernel.run(tile)

    return prim_func(name, target.lanes, [("x", "float32"), ("y", "float32")], needed.labels, body)


class _Reducer:
    """What both ways of reducing share: the walk over tiles, and the arithmetic."""

    def __init__(self, k: Kernel, r: Reduction, needed: Numbers) -> None:
        self.k, self.r = k, r
        self.x, self.y = k["x"], k["y"]
        self.kept = [(needed.value(k, n), needed.value(k, d)) for n, d in r.kept]
        self.reduced = [(needed.value(k, n), needed.value(k, d)) for n, d in r.reduced]
        self.grid = Grid(k, [size for size, _ in self.kept], steps(r))
        self.held = Registers(k, 64)
        self.start = _START[r.kind]
        self.count = self._count()

    def _count(self) -> Any:
        from tvm.script.ir_builder import tirx as T

        total = product([n for n, _ in self.r.reduced])
        if isinstance(total, int):
            return float(total)
        return self.k.bind(T.cast(product_of(self.k, [n for n, _ in self.reduced]), "float32"))

    def join(self, a: Any, b: Any) -> Any:
        """Two values reduced to one."""
        from tvm.script.ir_builder import tirx as T

        if self.r.kind == "max":
            return T.max(a, b)
        return T.min(a, b) if self.r.kind == "min" else a + b

    def finish(self, value: Any, lanes: int) -> Any:
        """What is stored of a reduced value."""
        return value / self.k.splat(self.count, lanes) if self.r.kind == "mean" else value

    def run(self, tile: Any) -> None:
        """Reduce one tile."""
        k = self.k
        starts = self.grid.starts(tile)
        read: Any = k.constant(0)
        write: Any = k.constant(0)
        for at, (size, distance) in zip(starts, self.kept, strict=True):
            read, write = read + at * distance, write * size + at
        self.block(starts, k.bind(read), k.bind(write))

    def block(self, starts: list[Any], read: Any, write: Any) -> None:
        """Reduce the block of the kept axes that starts there; its first elements are given."""
        raise NotImplementedError

    def nest(self, axes: Sequence[Any], offset: Any, work: Callable[[Any], None]) -> None:
        """Loops over reduced axes; ``work(offset)`` inside."""
        if not axes:
            work(offset)
            return
        size, distance = axes[0]
        with self.k.loop(size) as i:
            self.nest(axes[1:], self.k.bind(offset + i * distance), work)


class _Columns(_Reducer):
    """Lanes are neighbouring columns: nothing is combined across them."""

    def __init__(self, k: Kernel, r: Reduction, needed: Numbers) -> None:
        super().__init__(k, r, needed)
        self.widths = (k.lanes, k.lanes // 2, 4, 2, 1)
        self.totals = {w: k.registers(COLUMNS // min(w, k.lanes), w) for w in dict.fromkeys(self.widths)}
        self.parts = {w: k.registers(COLUMNS // min(w, k.lanes), w) for w in dict.fromkeys(self.widths)}

    def block(self, starts: list[Any], read: Any, write: Any) -> None:
        if not starts:
            self._group(read, write, [(0, 1)])
            return
        count = self.grid.extent(-1, starts[-1])
        if len(starts) == 1:
            self._line(count, read, write)
            return
        inner, distance = self.kept[-1][0], self.kept[-2][1]
        with self.k.loop(self.grid.extent(-2, starts[-2])) as i:
            self._line(count, self.k.bind(read + i * distance), self.k.bind(write + i * inner))

    def _line(self, count: Any, read: Any, write: Any) -> None:
        k = self.k
        if isinstance(count, int):
            whole, left = divmod(count, COLUMNS)
            if whole:
                with k.loop(whole) as i:
                    self._offset_group(read, write, k.bind(i * COLUMNS), self._places(COLUMNS))
            if left:
                begin = whole * COLUMNS
                back = min(begin, -left % k.lanes)
                self._offset_group(read, write, k.constant(begin - back), self._places(left + back))
            return
        for at, width in vectors(k, count, COLUMNS):
            places = self._places(COLUMNS) if width > 1 else [(0, 1)]
            self._offset_group(read, write, at, places)

    def _places(self, count: int) -> list[tuple[int, int]]:
        return [
            (first + i * width, width)
            for first, many, width in cover(count, self.k.lanes)
            for i in range(many)
        ]

    def _offset_group(self, read: Any, write: Any, at: Any, places: list[tuple[int, int]]) -> None:
        self._group(self.k.bind(read + at), self.k.bind(write + at), places)

    def _group(self, read: Any, write: Any, places: list[tuple[int, int]]) -> None:
        """Columns side by side; ``places`` are (offset, lanes) of their vectors."""
        k = self.k
        self._clear(self.totals, places)
        *before, last = self.reduced or [(1, 0)]
        if self.start or (isinstance(last[0], int) and last[0] <= PARTIAL):
            self.nest([*before, last], read, lambda at: self._add(self.totals, places, at))
        else:
            self.nest(before, read, lambda at: self._in_parts(last, at, places))
        for slot, (first, width) in enumerate(places):
            k.put(self.y, write + first, self.finish(self.totals[width][slot], width), width)

    def _in_parts(self, last: Any, offset: Any, places: list[tuple[int, int]]) -> None:
        """Sum a long axis in parts."""
        from tvm.script.ir_builder import tirx as T

        k = self.k
        size, distance = last
        size = number(k, size)
        with k.loop(k.bind(T.truncdiv(size + (PARTIAL - 1), k.constant(PARTIAL)))) as part:
            self._clear(self.parts, places)
            first = k.bind(part * PARTIAL)
            with k.loop(k.bind(T.min(size - first, k.constant(PARTIAL)))) as i:
                self._add(self.parts, places, k.bind(offset + (first + i) * distance))
            for slot, (_, width) in enumerate(places):
                total = self.totals[width]
                k.assign(total, slot, self.join(total[slot], self.parts[width][slot]))

    def _clear(self, into: dict[int, Any], places: list[tuple[int, int]]) -> None:
        for slot, (_, width) in enumerate(places):
            self.k.assign(into[width], slot, self.k.splat(self.start, width))

    def _add(self, into: dict[int, Any], places: list[tuple[int, int]], at: Any) -> None:
        for slot, (first, width) in enumerate(places):
            value = self.k.vector(self.x, at + first, width)
            self.k.assign(into[width], slot, self.join(into[width][slot], value))


class _Rows(_Reducer):
    """Lanes run along rows of x and are combined at the end."""

    def __init__(self, k: Kernel, r: Reduction, needed: Numbers) -> None:
        super().__init__(k, r, needed)
        self.width = _width(r, k.lanes)
        self.rows = {w: k.registers(w, w) for w in {2, self.width} if 1 < w == self.width}
        self.sums = k.registers(SUMS)
        self.single = k.registers(1, 1)

    def block(self, starts: list[Any], read: Any, write: Any) -> None:
        from tvm.script.ir_builder import tirx as T

        if not starts:
            self._row(read, write)
            return
        enough = self.kept[-1][0] >= self.width if self.width > 1 else False
        if isinstance(enough, bool):
            (self._groups if enough else self._each)(starts[-1], read, write)
            return
        with T.If(enough):
            with T.Then():
                self._groups(starts[-1], read, write)
            with T.Else():
                self._each(starts[-1], read, write)

    def _each(self, start: Any, read: Any, write: Any) -> None:
        k, distance = self.k, self.kept[-1][1]
        with k.loop(self.grid.extent(-1, start)) as i:
            self._row(k.bind(read + i * distance), k.bind(write + i))

    def _groups(self, start: Any, read: Any, write: Any) -> None:
        """As many rows at once as a vector has lanes; the last begin early enough to be as many."""
        from tvm.script.ir_builder import tirx as T

        k, width = self.k, self.width
        size, distance = self.kept[-1]
        count = self.grid.extent(-1, start)
        if isinstance(count, int) and count % width == 0:
            with k.loop(count // width) as i:
                self._group(read, write, k.bind(i * width), distance)
            return
        with k.loop(k.bind(T.truncdiv(number(k, count) + (width - 1), k.constant(width)))) as i:
            self._group(read, write, k.bind(T.min(i * width, size - width - start)), distance)

    def _group(self, read: Any, write: Any, first: Any, distance: Any) -> None:
        k, width = self.k, self.width
        rows = self.rows[width]
        for row in range(width):
            k.assign(rows, row, k.splat(self.start, width))
        base = k.bind(read + first * distance)
        self.nest(self.reduced[:-1], base, partial(self._add_rows, rows, distance))
        self.held.forget()
        joined = combine_rows(self.held, [rows[row] for row in range(width)], self.join)
        k.put(self.y, write + first, self.finish(joined, width), width)

    def _add_rows(self, rows: Any, distance: Any, offset: Any) -> None:
        k, width = self.k, self.width
        length = self.reduced[-1][0]
        whole, left = divmod(length, width)
        lines = [k.bind(offset + row * distance) for row in range(width)]

        def add(at: Any, tail: bool) -> None:
            for row, line in enumerate(lines):
                value = k.vector(self.x, line + at, width)
                k.assign(rows, row, self.join(rows[row], self._last(value, left) if tail else value))

        with k.loop(whole) as i:
            add(k.bind(i * width), False)
        if left:
            add(length - width, True)

    def _last(self, value: Any, left: Any) -> Any:
        """The last ``left`` lanes of a vector; the others count for nothing."""
        from tvm.script.ir_builder import tirx as T

        width = lanes_of(value)
        nothing = self.k.splat(self.start, width)
        if isinstance(left, int):
            return pick([nothing, value], [i + width * (i >= width - left) for i in range(width)])
        lane = T.Ramp(T.int32(0), T.int32(1), width)
        return T.Select(lane >= T.Broadcast(T.cast(width - left, "int32"), width), value, nothing)

    def _row(self, read: Any, write: Any) -> None:
        """One row, in several partial sums."""
        k = self.k
        for slot in range(SUMS):
            k.assign(self.sums, slot, k.splat(self.start))
        k.assign(self.single, 0, k.splat(self.start, 1))
        self.nest(self.reduced[:-1], read, self._add_row)
        values = [self.sums[slot] for slot in range(SUMS)]
        while len(values) > 1:
            values = [self.join(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
        k.assign(self.sums, 0, values[0])
        lanes = [pick([self.sums[0]], [i]) for i in range(k.lanes)]
        while len(lanes) > 1:
            lanes = [self.join(a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
        k.assign(self.y, write, self.finish(self.join(lanes[0], self.single[0]), 1))

    def _add_row(self, offset: Any) -> None:
        from tvm.script.ir_builder import tirx as T

        k, lanes = self.k, self.k.lanes
        length = number(k, self.reduced[-1][0])
        many = k.bind(T.truncdiv(length, k.constant(SUMS * lanes)))
        whole = k.bind(T.truncdiv(length, k.constant(lanes)))
        with k.loop(many) as i:
            at = k.bind(offset + i * (SUMS * lanes))
            for slot in range(SUMS):
                value = k.vector(self.x, at + slot * lanes)
                k.assign(self.sums, slot, self.join(self.sums[slot], value))
        with k.loop(k.bind(many * SUMS), whole) as i:
            k.assign(self.sums, 0, self.join(self.sums[0], k.vector(self.x, offset + i * lanes)))
        with k.when(whole * lanes < length), T.If(whole > 0):
            with T.Then():
                value = k.bind(k.vector(self.x, offset + length - lanes))
                left = k.bind(length - whole * lanes)
                k.assign(self.sums, 1, self.join(self.sums[1], self._last(value, left)))
            with T.Else(), k.loop(length) as i:
                k.assign(self.single, 0, self.join(self.single[0], self.x[offset + i]))

"""resize: the last two axes resampled, nearest or linear, sizes known.

Which columns an output vector reads is known, so a row is stretched by constant shuffles of whole
vectors.  Linear: rows of x are stretched into scratch memory, each once as long as it is needed,
and every row of y is a blend of two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sparsec.ir.resampling import taps
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.shuffles import Registers, pick_spread, vectors
from sparsec.targets.kernels.spans import cover
from sparsec.targets.target import Target

if TYPE_CHECKING:
    from sparsec.ir.attributes import ResizeAttrs

name = "resize"

#: elements of y in one tile, and the most vectors a shuffle takes its elements from
BLOCK, SOURCES = 8192, 4


@dataclass(frozen=True)
class Shape:
    """Planes of ``height`` x ``width`` become planes of ``out_height`` x ``out_width``."""

    attrs: ResizeAttrs
    height: int
    width: int
    out_height: int
    out_width: int

    @cached_property
    def band(self) -> int:
        """Rows of y in one tile."""
        return min(self.out_height, max(1, BLOCK // self.out_width))

    @cached_property
    def bands(self) -> int:
        """Tiles of one plane."""
        return -(-self.out_height // self.band)

    @cached_property
    def linear(self) -> bool:
        """Whether elements of x are blended."""
        return self.attrs.method == "linear"

    def stretched(self, lanes: int) -> int:
        """Scratch elements of one stretched row."""
        return -(-self.out_width // lanes) * lanes

    def table(self, lanes: int) -> int:
        """Scratch elements of one number for every row of y."""
        return -(-self.out_height // lanes) * lanes

    def floats(self, lanes: int) -> int:
        """All scratch elements."""
        return 2 * self.table(lanes) + 2 * self.stretched(lanes)


def emit(shape: Shape, target: Target, name: str) -> Any:
    """The TIR function: a tile is a band of rows of one plane."""

    def body(k: Kernel) -> None:
        work = _Resize(k, shape)
        work.write_tables()
        with k.tiles() as tile:
            work.run(tile)

    return prim_func(name, target.lanes, [("x", "float32"), ("y", "float32")], (), body)


class _Resize:
    """The body of the kernel; scratch holds for each row of y what it reads, then two rows."""

    def __init__(self, k: Kernel, shape: Shape) -> None:
        from tvm.script.ir_builder import tirx as T

        self.k, self.shape = k, shape
        self.held = Registers(k, 64)
        self.rows = taps(shape.attrs, shape.height, shape.out_height)
        self.columns = taps(shape.attrs, shape.width, shape.out_width)
        self.weights_at = shape.table(k.lanes)
        self.rows_at = 2 * self.weights_at
        #: which row of x each stretched row is, -1 for none
        self.present = T.alloc_buffer((2,), "int64", scope="local")

    def write_tables(self) -> None:
        """First row read, and weight of the one after it, for every row of y."""
        k = self.k
        for at, table in ((0, self.rows[0]), (self.weights_at, self.rows[2])):
            if at and not self.shape.linear:
                continue
            for first in range(0, len(table), k.lanes):
                values = [float(v) for v in table[first : first + k.lanes]]
                values += [0.0] * (k.lanes - len(values))
                k.put(k.scratch, k.constant(at + first), _literal(values))

    def run(self, tile: Any) -> None:
        """Make one tile."""
        from tvm.script.ir_builder import tirx as T

        k, s = self.k, self.shape
        plane, band = (k.bind(f(tile, k.constant(s.bands))) for f in (T.truncdiv, T.truncmod))
        first = k.bind(band * s.band)
        read = k.bind(plane * (s.height * s.width))
        write = k.bind((plane * s.out_height + first) * s.out_width)
        count = k.bind(T.min(s.out_height - first, k.constant(s.band)))
        if s.linear:
            for slot in range(2):
                k.assign(self.present, slot, k.constant(-1))
        with k.loop(count) as i:
            row = k.bind(k.cast64(k.scratch[first + i]))
            goal = k.bind(write + i * s.out_width)
            if s.linear:
                self._blend(read, row, k.bind(k.scratch[self.weights_at + first + i]), goal)
            else:
                self._stretch(k.bind(read + row * s.width), k["y"], goal)

    def _blend(self, read: Any, row: Any, weight: Any, goal: Any) -> None:
        """One row of y from two stretched rows."""
        from tvm.script.ir_builder import tirx as T

        k, s = self.k, self.shape
        length = s.stretched(k.lanes)
        with k.loop(2) as i:
            mine = k.bind(T.min(row + i, k.constant(s.height - 1)))
            slot = k.bind(T.truncmod(mine, k.constant(2)))
            with k.when(self.present[slot] != mine):
                k.assign(self.present, slot, mine)
                self._stretch(k.bind(read + mine * s.width), k.scratch, k.bind(self.rows_at + slot * length))
        low = k.bind(self.rows_at + T.truncmod(row, k.constant(2)) * length)
        after = T.min(row + 1, k.constant(s.height - 1))
        high = k.bind(self.rows_at + T.truncmod(after, k.constant(2)) * length)
        for at, width in vectors(k, s.out_width, k.lanes):
            a = k.bind(k.vector(k.scratch, low + at, width))
            b = k.vector(k.scratch, high + at, width)
            k.put(k["y"], goal + at, a + (b - a) * k.splat(weight, width), width)

    def _stretch(self, read: Any, into: Any, goal: Any) -> None:
        """One row of x, as wide as y."""
        k, s = self.k, self.shape
        low, high, weight = self.columns
        narrow = min(s.width, s.out_width, k.lanes)
        for first, many, width in cover(s.out_width, 1 << (narrow.bit_length() - 1)):
            for begin in range(first, first + many * width, width):
                part = slice(begin, begin + width)
                self.held.forget()
                value = self._columns(read, low[part].tolist())
                if any(weight[part]):
                    other = self._columns(read, high[part].tolist())
                    value = k.bind(value)
                    value = value + (other - value) * _literal(weight[part].tolist())
                k.put(into, goal + begin, value, width)

    def _columns(self, read: Any, columns: Sequence[int]) -> Any:
        """Elements of a row of x at constant, ascending places."""
        from tvm.script.ir_builder import tirx as T

        k, x = self.k, self.k["x"]
        width, first = len(columns), columns[0]
        starts: list[int] = []
        for column in columns:
            if not starts or column >= starts[-1] + width:
                starts.append(min(column, self.shape.width - width))
        if width == 1:
            return x[read + first]
        if len(starts) > SOURCES:
            return T.Shuffle([x[read + c] for c in columns], list(range(width)))
        owner = [max(i for i, start in enumerate(starts) if start <= c) for c in columns]
        places = [o * width + c - starts[o] for o, c in zip(owner, columns, strict=True)]
        loads = [k.bind(k.vector(x, read + start, width)) for start in starts]
        return pick_spread(self.held, loads, places)


def _literal(values: Sequence[float]) -> Any:
    """A constant vector (one value: a number)."""
    from tvm.script.ir_builder import tirx as T

    if len(values) == 1:
        return T.float32(values[0])
    return T.Shuffle([T.float32(v) for v in values], list(range(len(values))))

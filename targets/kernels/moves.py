"""moves: boxes of row-major tensors copied into one another (:mod:`sparsec.targets.kernels.boxes`).

What is contiguous in both is copied in runs; where x and y are contiguous along different axes,
blocks are transposed in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sparsec.ir.dims import Size
from sparsec.targets.kernels.boxes import Move
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.shuffles import (
    QUARTER,
    Registers,
    pick_spread,
    strided,
    transpose_strip,
    vectors,
)
from sparsec.targets.kernels.tiles import Grid, Numbers, number
from sparsec.targets.target import Target

name = "moves"

#: elements that make one tile of work, and the side of a square block that is transposed
BLOCK, SIDE = 4096, 64

#: elements of a cache line
LINE = 16


def _crossing(move: Move) -> int | None:
    """The axis along which x is contiguous, where that is not y's last."""
    if move.argument is None or move.axes[-1].goal != 1 or move.axes[-1].source == 1:
        return None
    return next((i for i, axis in enumerate(move.axes) if axis.source == 1), None)


def _line_by_line(move: Move, crossing: int) -> bool:
    """Whether whole cache lines of y must be finished before the next.

    Otherwise y is written row by row, while a line of every row of x in the block waits in the
    cache: there is no room for them if they lie multiples of 1024 bytes apart, and no need if
    the rows are shorter than lines.
    """
    across, apart = move.axes[crossing].size, move.axes[-1].source
    short = isinstance(across, int) and across <= LINE
    return short or (isinstance(apart, int) and apart % 256 == 0)


def steps(move: Move) -> tuple[int, ...]:
    """Elements of each axis that belong to one tile."""
    crossing = _crossing(move)
    if crossing is not None:
        return _square_steps(move, crossing)
    found: list[int] = []
    room = BLOCK
    for axis in reversed(move.axes):
        if room and isinstance(axis.size, int) and axis.size <= room:
            found.append(axis.size)
            room //= axis.size
        else:
            found.append(max(1, room))
            room = 0
    return tuple(reversed(found))


def _square_steps(move: Move, crossing: int) -> tuple[int, ...]:
    across, along = move.axes[crossing].size, move.axes[-1].size
    high, wide = (n if isinstance(n, int) and n <= SIDE else SIDE for n in (across, along))
    if high < SIDE:
        wide = max(wide, BLOCK // high // SIDE * SIDE)
    elif wide < SIDE:
        high = max(high, BLOCK // wide // SIDE * SIDE)
    chosen = [1] * len(move.axes)
    chosen[crossing] = min(across, high) if isinstance(across, int) else high
    chosen[-1] = min(along, wide) if isinstance(along, int) else wide
    return tuple(chosen)


def grid(move: Move) -> tuple[tuple[Size, int], ...]:
    """(size, step) of each axis: tiles are the product of ``ceil(size / step)``."""
    return tuple((axis.size, step) for axis, step in zip(move.axes, steps(move), strict=True))


def numbers(moves: Sequence[Move]) -> Numbers:
    """The run-time sizes of a kernel's moves."""
    return Numbers(size for move in moves for size in move.sizes)


def emit(moves: Sequence[Move], arguments: int, target: Target, name: str) -> Any:
    """The TIR function: the moves' tiles one after another."""
    from tvm.script.ir_builder import tirx as T

    needed = numbers(moves)

    def body(k: Kernel) -> None:
        held = Registers(k, 64)
        first: Any = k.constant(0)
        for move in moves:
            tiles = _Tiles(k, held, move, needed)
            after = k.bind(first + tiles.grid.count)
            low = k.bind(T.max(k.tile_begin, first))
            with k.loop(low, k.bind(T.max(low, T.min(k.tile_end, after)))) as tile:
                tiles.run(tile - first)
            first = after

    pointers = [(f"x{i}", "float32") for i in range(arguments)] + [("y", "float32")]
    return prim_func(name, target.lanes, pointers, needed.labels, body)


class _Tiles:
    """The tiles of one move."""

    def __init__(self, k: Kernel, held: Registers, move: Move, needed: Numbers) -> None:
        self.k, self.held, self.move = k, held, move
        self.x: Any = None if move.argument is None else k[f"x{move.argument}"]
        self.y = k["y"]
        self.sizes = [needed.value(k, a.size) for a in move.axes]
        self.source = [needed.value(k, a.source) for a in move.axes]
        self.goal = [needed.value(k, a.goal) for a in move.axes]
        self.read, self.write = needed.value(k, move.read), needed.value(k, move.write)
        self.grid = Grid(k, self.sizes, steps(move))

    def run(self, tile: Any) -> None:
        """Move one tile."""
        starts = self.grid.starts(tile)
        crossing = _crossing(self.move)
        read, write = self.read, self.write
        for start, source, goal in zip(starts, self.source, self.goal, strict=True):
            read, write = read + start * source, write + start * goal
        read, write = self.k.bind(number(self.k, read)), self.k.bind(number(self.k, write))
        if crossing is None:
            self._nest(0, starts, read, write)
        else:
            self._cross(crossing, starts, read, write)

    def _nest(self, axis: int, starts: list[Any], read: Any, write: Any) -> None:
        """The tile's loops from ``axis`` inwards."""
        k = self.k
        count = self.grid.extent(axis, starts[axis])
        if axis == len(starts) - 1:
            self._line(read, write, count)
        elif isinstance(count, int) and count == 1:
            self._nest(axis + 1, starts, read, write)
        else:
            with k.loop(count) as i:
                inner = k.bind(read + i * self.source[axis]), k.bind(write + i * self.goal[axis])
                self._nest(axis + 1, starts, *inner)

    def _line(self, read: Any, write: Any, count: Any) -> None:
        """One run along the last axis."""
        k, last = self.k, self.move.axes[-1]
        if last.goal != 1:
            with k.loop(count) as i:
                k.assign(self.y, write + i * self.goal[-1], self._element(read + i * self.source[-1]))
            return
        for at, width in vectors(k, count, k.lanes):
            k.put(self.y, write + at, self._vector(read, at, width), width)

    def _element(self, offset: Any) -> Any:
        return self.k.splat(self.move.value, 1) if self.x is None else self.x[offset]

    def _vector(self, read: Any, at: Any, width: int) -> Any:
        k, stride = self.k, self.move.axes[-1].source
        if self.x is None:
            return k.splat(self.move.value, width)
        if width == 1:
            return self.x[read + at * self.source[-1]]
        if isinstance(stride, int) and stride <= QUARTER:
            self.held.forget()
            return strided(k, self.held, self.x, k.bind(read + at * stride), stride, width)
        return self._gathered(read + at * self.source[-1], width)

    def _gathered(self, offset: Any, width: int) -> Any:
        from tvm.script.ir_builder import tirx as T

        return T.Shuffle([self.x[offset + i * self.source[-1]] for i in range(width)], list(range(width)))

    def _cross(self, crossing: int, starts: list[Any], read: Any, write: Any) -> None:
        """A block whose rows along ``crossing`` are contiguous in x and along the last axis in y."""
        across, along = self.move.axes[crossing], self.move.axes[-1]
        if _thin(across.size) and along.source == across.size:
            self._spread_apart(crossing, starts, read, write)
        elif _thin(along.size) and across.goal == along.size:
            self._interleave(crossing, starts, read, write)
        else:
            self._turn(crossing, starts, read, write)

    def _spread_apart(self, crossing: int, starts: list[Any], read: Any, write: Any) -> None:
        """Two or three rows of y from x, where their elements alternate."""
        k, rows = self.k, self.sizes[crossing]
        for at, width in vectors(k, self.grid.extent(-1, starts[-1]), k.lanes):
            self.held.forget()
            base = k.bind(read + at * rows)
            parts = [k.bind(k.vector(self.x, base + i * width, width)) for i in range(rows)]
            for i in range(rows):
                places = [i + rows * j for j in range(width)]
                k.put(
                    self.y, write + i * self.goal[crossing] + at, pick_spread(self.held, parts, places), width
                )

    def _interleave(self, crossing: int, starts: list[Any], read: Any, write: Any) -> None:
        """Elements of two or three rows of x alternate in y."""
        k, rows = self.k, self.sizes[-1]
        for at, width in vectors(k, self.grid.extent(crossing, starts[crossing]), k.lanes):
            self.held.forget()
            base = k.bind(write + at * rows)
            parts = [k.bind(k.vector(self.x, read + i * self.source[-1] + at, width)) for i in range(rows)]
            for i in range(rows):
                places = [p % rows * width + p // rows for p in range(i * width, (i + 1) * width)]
                k.put(self.y, base + i * width, pick_spread(self.held, parts, places), width)

    def _turn(self, crossing: int, starts: list[Any], read: Any, write: Any) -> None:
        """Strips of four rows of y: transposed in registers, or element by element if too thin."""
        k = self.k
        high, wide = self.grid.extent(crossing, starts[crossing]), self.grid.extent(-1, starts[-1])
        across, along = self.sizes[crossing], self.sizes[-1]
        distances = (self.source[-1], self.goal[crossing])

        def strips(width: int) -> None:
            for down in self._covering(high, starts[crossing], across, QUARTER):
                for right in self._covering(wide, starts[-1], along, width):
                    self._strip(read, write, down, right, width, distances)

        def line_strips(reach: int) -> None:
            width = min(k.lanes, reach)
            for right in self._covering(wide, starts[-1], along, reach):
                for down in self._covering(high, starts[crossing], across, QUARTER):
                    for at in range(0, reach, width):
                        self._strip(read, write, down, right + at, width, distances)

        def singles() -> None:
            with k.loop(high) as down, k.loop(wide) as right:
                value = self._element(read + down + right * distances[0])
                k.assign(self.y, write + down * distances[1] + right, value)

        widths = dict.fromkeys((k.lanes, k.lanes // 2, QUARTER))
        cases = [(_at_least(along, w, across), partial(strips, w)) for w in widths if w >= QUARTER]
        if _line_by_line(self.move, crossing):
            cases.insert(0, (_at_least(along, LINE, across), partial(line_strips, LINE)))
        _first_of(k, cases, singles)

    def _covering(self, count: Any, start: Any, size: Any, width: int) -> Any:
        """Offsets into the block at which vectors cover it; the last may begin early, before the block."""
        from tvm.script.ir_builder import tirx as T

        k = self.k
        if isinstance(count, int) and count % width == 0:
            if count == width:
                yield k.constant(0)
                return
            with k.loop(count // width) as i:
                yield k.bind(i * width)
            return
        with k.loop(k.bind(T.truncdiv(number(k, count) + (width - 1), k.constant(width)))) as i:
            yield k.bind(T.min(i * width, number(k, size) - width - start))

    def _strip(
        self, read: Any, write: Any, down: Any, right: Any, width: int, distances: tuple[Any, Any]
    ) -> None:
        k = self.k
        self.held.forget()
        source = k.bind(read + down + right * distances[0])
        goal = k.bind(write + down * distances[1] + right)

        def load(j: int) -> Any:
            return k.vector(self.x, source + j * distances[0], QUARTER)

        for i, value in enumerate(transpose_strip(k, self.held, load, width)):
            k.put(self.y, goal + i * distances[1], value, width)


def _thin(size: Size) -> bool:
    return isinstance(size, int) and size < QUARTER


def _at_least(along: Any, width: int, across: Any) -> Any:
    """Whether strips of ``width`` fit: a bool where it is known, else an expression."""
    from tvm.script.ir_builder import tirx as T

    facts = [size >= least for size, least in ((along, width), (across, QUARTER))]
    if any(fact is False for fact in facts):
        return False
    open_facts = [fact for fact in facts if fact is not True]
    if not open_facts:
        return True
    return open_facts[0] if len(open_facts) == 1 else T.And(*open_facts)


def _first_of(
    k: Kernel, cases: Sequence[tuple[Any, Callable[[], None]]], otherwise: Callable[[], None]
) -> None:
    """Emit the first case whose condition holds."""
    from tvm.script.ir_builder import tirx as T

    if not cases:
        otherwise()
        return
    (condition, emit_case), *rest = cases
    if condition is False:
        _first_of(k, rest, otherwise)
    elif condition is True:
        emit_case()
    else:
        with T.If(condition):
            with T.Then():
                emit_case()
            with T.Else():
                _first_of(k, rest, otherwise)

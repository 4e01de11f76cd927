"""stencil: blocks of output positions of one channel, and the vectors of x that their taps read.

Depthwise convolution and pooling read every input element a few times only, so nothing is staged:
vectors are loaded from x where they lie, and shuffled where lanes are strided or padding.  A plane
is cut into blocks of ``rows`` x ``vectors`` accumulators; those at the border are emitted one by
one, those inside share loops.  All positions but a block's corner are constants.  Where that would
be too much code, ``rolled`` loops over the taps instead.

A map narrower than a vector takes one vector a row, whose last lanes hold what is about to be
overwritten: rows are stored in order, and the last one ends with the plane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.shuffles import QUARTER, Registers, pick, pick_spread

#: cycles of work that are worth a tile of their own
TILE_CYCLES = 4000

#: a lane that is padding, and one that nobody reads
FILL, ANY = None, "any"


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks along one axis: ``count`` of ``size`` outputs (rows, or vectors), the first at ``start``.

    ``count`` 1 is a block of its own; the blocks of longer runs read nothing but x.
    """

    start: int
    size: int
    count: int = 1

    @property
    def last(self) -> int:
        """Where the last block starts, in units of ``size`` from ``start``."""
        return self.start + (self.count - 1) * self.size


@dataclass(frozen=True)
class Stencil:
    """How a plane of ``geometry`` is cut for vectors of at most ``lanes``."""

    geometry: Geometry
    lanes: int
    rows: int
    vectors: int

    @cached_property
    def width(self) -> int:
        """Lanes of the vectors in use."""
        g = self.geometry
        if g.out_width >= self.lanes:
            return self.lanes
        wide = 1 << (g.out_width - 1).bit_length()
        return wide if wide == g.out_width or g.out_height > 1 else wide // 2

    @property
    def ragged(self) -> bool:
        """Whether rows are narrower than their vector."""
        return self.geometry.out_width < self.width

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Which of a vector's outputs each lane computes.

        With stride 2 the order is that of a shuffle within quarters of a register.
        """
        if self.geometry.strides[1] != 2 or self.width <= QUARTER:
            return tuple(range(self.width))
        half = self.width // 2
        return tuple(
            at for q in range(0, half, 2) for at in (q, q + 1, half + q, half + q + 1)
        )  # fmt: skip

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First output column of each vector of a row; the last may overlap the one before it."""
        wide = self.geometry.out_width
        if self.ragged:
            return (0,)
        found = list(range(0, wide - self.width + 1, self.width))
        return (*found, wide - self.width) if wide % self.width else tuple(found)

    @cached_property
    def down(self) -> tuple[Run, ...]:
        """Blocks of rows."""
        g, rows = self.geometry, self.rows
        whole, rest = divmod(g.out_height, rows)
        sizes = [rows] * whole + [rest] * (rest > 0)
        if self.ragged and sizes[-1] == 1:
            sizes[-2:] = [sizes[-2] + 1]
        runs, at = [], 0
        for size in sizes:
            first = at * g.strides[0] - g.padding[0]
            last = (at + size - 1) * g.strides[0] - g.padding[0] + (g.kernel[0] - 1) * g.dilation[0]
            # a vector of a narrow row reads on into the row below
            spare = -(-self.width * g.strides[1] // g.width) if self.ragged else 0
            runs.append((Run(at, size), size == rows and first >= 0 and last + spare < g.height))
            at += size
        return tuple(_joined(runs))

    @cached_property
    def across(self) -> tuple[Run, ...]:
        """Blocks of vectors, counted in vectors."""
        g, count = self.geometry, len(self.starts)
        runs = []
        for at in range(0, count, self.vectors):
            size = min(self.vectors, count - at)
            last = at + size - 1
            first = self.starts[at] * g.strides[1] - g.padding[1]
            end = (self.starts[last] + self.width - 1) * g.strides[1] - g.padding[1]
            inside = first >= 0 and end + (g.kernel[1] - 1) * g.dilation[1] < g.width
            whole = size == self.vectors and self.starts[last] == last * self.width
            runs.append((Run(at, size), inside and whole))
        return tuple(_joined(runs))

    @property
    def steps(self) -> int:
        """Multiply-adds (or comparisons) that are emitted."""
        return sum(d.size for d in self.down) * sum(a.size for a in self.across) * self.geometry.taps

    @property
    def groups(self) -> int:
        """Blocks of rows of a plane."""
        return sum(run.count for run in self.down)

    @property
    def accumulators(self) -> int:
        """Registers that hold the outputs of a block."""
        return max(run.size for run in self.down) * self.vectors


def choose(geometry: Geometry, lanes: int, most: int) -> Stencil | None:
    """Eight or nine accumulators, fewer where that would be more than ``most`` steps of code."""
    wide = len(Stencil(geometry, lanes, 1, 1).starts)
    rows, vectors = {1: (8, 1), 3: (3, 3)}.get(wide, (4, 2))
    rows = min(rows, geometry.out_height)
    best = rows, min(wide, max(vectors, 8 // rows))
    found = (Stencil(geometry, lanes, *size) for size in (best, (2, 2), (2, 1), (1, 1)))
    return next((s for s in found if s.steps <= most), None)


def _joined(runs: Sequence[tuple[Run, bool]]) -> Iterator[Run]:
    """Neighbouring blocks that read nothing but x, as runs."""
    held: Run | None = None
    for run, inside in runs:
        if inside and held is not None:
            held = Run(held.start, held.size, held.count + 1)
            continue
        if held is not None:
            yield held
        held = run if inside else None
        if not inside:
            yield run
    if held is not None:
        yield held


class Block:
    """A block under construction: where it lies in x and y, and the vectors it reads."""

    def __init__(
        self, k: Kernel, held: Registers, stencil: Stencil, down: Run, across: Run,
        place: tuple[Any, Any], planes: tuple[Any, Any], fill: float,
    ) -> None:  # fmt: skip
        g = stencil.geometry
        self._k, self._held, self._fill = k, held, fill
        self.stencil, self.down, self.across = stencil, down, across
        start = stencil.starts[across.start]
        self.starts = tuple(s - start for s in stencil.starts[across.start : across.start + across.size])
        row, column = place
        x_row, x_column = (row * g.strides[0] - g.padding[0]), (column * g.strides[1] - g.padding[1])
        self._x = k.bind(planes[0] + (x_row * g.width + x_column))
        self.y = k.bind(planes[1] + (row * g.out_width + column))
        first, last = ((at * g.strides[0] - g.padding[0]) * g.width for at in (down.start, down.last))
        left, right = (stencil.starts[at] * g.strides[1] - g.padding[1] for at in (across.start, across.last))
        #: offsets from the corner that lie inside the plane, wherever the block is
        self._range = -(first + left), g.height * g.width - (last + right)

    def row_inside(self, row: int) -> bool:
        """Whether input row ``row`` of the block lies inside x."""
        g = self.stencil.geometry
        return self.down.count > 1 or 0 <= self.down.start * g.strides[0] - g.padding[0] + row < g.height

    def rows_inside(self, i: int, low: int = 0, high: int | None = None) -> int:
        """How many tap rows of output row ``i`` lie at [low, high) (default: inside x)."""
        g = self.stencil.geometry
        if self.down.count > 1:
            return g.kernel[0]
        top = (self.down.start + i) * g.strides[0] - g.padding[0]
        end = g.height if high is None else high
        return sum(low <= top + r * g.dilation[0] < end for r in range(g.kernel[0]))

    def columns_inside(self, v: int, low: int = 0, high: int | None = None) -> tuple[int, ...]:
        """The same for the columns of vector ``v``: one number for each output, in order."""
        g, width = self.stencil.geometry, self.stencil.width
        if self.across.count > 1:
            return (g.kernel[1],) * width
        end = g.width if high is None else high
        start = self.stencil.starts[self.across.start + v]
        lefts = [(start + j) * g.strides[1] - g.padding[1] for j in range(width)]
        return tuple(sum(low <= x + s * g.dilation[1] < end for s in range(g.kernel[1])) for x in lefts)

    @property
    def reads(self) -> dict[int, list[tuple[int, int]]]:
        """For each input row that lies inside x: which output rows read it, with which row of taps."""
        g = self.stencil.geometry
        found: dict[int, list[tuple[int, int]]] = {}
        for i in range(self.down.size):
            for r in range(g.kernel[0]):
                found.setdefault(i * g.strides[0] + r * g.dilation[0], []).append((i, r))
        return {row: uses for row, uses in sorted(found.items()) if self.row_inside(row)}

    def vector(self, row: int, s: int, v: int) -> Any | None:
        """What column ``s`` of the taps reads of input row ``row``, for vector ``v``.

        Lanes are in the stencil's order; None where all of them are padding.
        """
        g, stencil = self.stencil.geometry, self.stencil
        start = stencil.starts[self.across.start] * g.strides[1] - g.padding[1]
        wanted: list[Any] = []
        for at in stencil.order:
            column = (self.starts[v] + at) * g.strides[1] + s * g.dilation[1]
            inside = self.across.count > 1 or 0 <= start + column < g.width
            beyond = stencil.ragged and at >= g.out_width
            wanted.append(ANY if beyond else row * g.width + column if inside else FILL)
        odd = s * g.dilation[1] % g.strides[1]
        return gather(self._k, self._held, self._x, wanted, self._range, odd, self._fill)

    def in_order(self, value: Any) -> Any:
        """A vector of outputs with its lanes in order."""
        order = self.stencil.order
        if order == tuple(range(len(order))):
            return value
        return self._held.hold(pick([value], [order.index(j) for j in range(len(order))]))

    def store(self, values: Callable[[int, int], Any], put: Callable[[Any, Any, int], None]) -> None:
        """Store ``values(i, v)`` (lanes in order) through ``put(value, offset in y, lanes)``."""
        g, stencil = self.stencil.geometry, self.stencil
        for i in range(self.down.size):
            for v, start in enumerate(self.starts):
                value, where = values(i, v), i * g.out_width + start
                if stencil.ragged and self.down.start + i == g.out_height - 1 and self.down.count == 1:
                    back = stencil.width - g.out_width
                    lanes = [g.out_width - back + j if j < back else stencil.width + j - back
                             for j in range(stencil.width)]  # fmt: skip
                    value = self._held.hold(pick([values(i - 1, v), value], lanes))
                    where -= back
                put(value, self._k.bind(self.y + where), stencil.width)
                self._held.forget()


def gather(
    k: Kernel, held: Registers, base: Any, wanted: Sequence[Any], inside: tuple[int, int], back: int,
    fill: float,
) -> Any | None:  # fmt: skip
    """The elements of x at ``base + wanted`` (or FILL, or ANY), from loads within ``base + inside``.

    ``back`` is how far before the first element loads should start, so that they serve others too.
    None where nothing but padding is wanted.
    """
    width, (low, high) = len(wanted), inside
    real = [w for w in wanted if isinstance(w, int)]
    if not real:
        return None
    if high - low < width or width == 1:
        numbers = [k.splat(fill, 1) if w in (FILL, ANY) else k.bind(k["x"][base + w]) for w in wanted]
        return numbers[0] if width == 1 else held.hold(pick(numbers, range(width)))
    starts = _loads(wanted, real, (low, high), back)
    loads = [k.bind(k.vector(k["x"], base + start, width)) for start in starts]
    positions = [_position(w, lane, starts, width) for lane, w in enumerate(wanted)]
    if len(loads) == 1 and positions == list(range(width)):
        return held.hold(loads[0])
    loads = [held.hold(load) for load in loads]
    if FILL in wanted:
        loads.append(k.splat(fill, width))
    return held.hold(pick(loads, positions)) if len(loads) <= 2 else pick_spread(held, loads, positions)


def _loads(wanted: Sequence[Any], real: Sequence[int], inside: tuple[int, int], back: int) -> list[int]:
    """Where vectors start that hold all of ``real``, the lanes in place if that can be."""
    width, (low, high) = len(wanted), inside
    first = next(w - lane for lane, w in enumerate(wanted) if isinstance(w, int))
    straight = all(w - lane == first for lane, w in enumerate(wanted) if isinstance(w, int))
    if straight and low <= first <= high - width:
        return [first]
    starts: list[int] = []
    for at in sorted(real):
        if not starts or at >= starts[-1] + width:
            # loads after the first follow it, so that neighbours need the same ones
            follows = starts[-1] + width if starts else at - (0 if straight else back)
            start = follows if at < follows + width else at
            starts.append(max(low, min(start, high - width)))
    return starts


def _position(wanted: Any, lane: int, starts: Sequence[int], width: int) -> int:
    """Where a lane finds its element in the loads, joined, padding after them."""
    if wanted is FILL:
        return len(starts) * width + lane
    if wanted is ANY:
        return lane
    number = next(i for i, start in enumerate(starts) if start <= wanted < start + width)
    return int(number * width + wanted - starts[number])


@dataclass(frozen=True, slots=True)
class Division:
    """How the planes of an image become tiles: ``planes`` to a tile, or ``parts`` tiles a plane."""

    planes: int
    parts: int

    def tiles(self, channels: int) -> int:
        """Tiles of an image."""
        return -(-channels // self.planes) * self.parts


def divide(stencil: Stencil | None, channels: int, cycles: float) -> Division:
    """Tiles of some thousand cycles, at least sixteen where there are as many planes."""
    if cycles < TILE_CYCLES:
        return Division(max(1, min(channels // 16, round(TILE_CYCLES / cycles))), 1)
    if stencil is None or stencil.ragged or channels >= 16:
        return Division(1, 1)
    return Division(1, max(1, min(stencil.groups, round(cycles / TILE_CYCLES))))


@contextmanager
def planes_of(k: Kernel, division: Division, channels: int) -> Iterator[tuple[Any, Any, Any]]:
    """The loops over tiles and their planes: yields image, channel, and which part of the plane."""
    from tvm.script.ir_builder import tirx as T

    per_image = division.tiles(channels)
    with k.tiles() as tile:
        image, within = k.bind(tile // per_image), k.bind(tile % per_image)
        if division.planes == 1:
            yield image, k.bind(within // division.parts), k.bind(within % division.parts)
            return
        first = k.bind(within * division.planes)
        count = k.constant(division.planes)
        if channels % division.planes:
            count = k.bind(T.min(count, channels - first))
        with k.loop(count) as j:
            yield image, k.bind(first + j), k.constant(0)


def sweep(
    k: Kernel, held: Registers, stencil: Stencil, planes: tuple[Any, Any], part: Any, parts: int, fill: float,
    emit: Callable[[Block], None],
) -> None:  # fmt: skip
    """Call ``emit`` for every block of part ``part`` of a plane; ``planes`` are offsets in x and y."""
    groups = stencil.groups
    low, high = [k.bind(p * groups // parts) for p in (part, part + 1)] if parts > 1 else [0, groups]

    def along(down: Run, row: Any) -> None:
        for across in stencil.across:
            start = stencil.starts[across.start]
            with _walk(k, across, k.constant(0), across.count) as i:
                column = k.constant(start) if i is None else k.bind(start + i * (across.size * stencil.width))
                emit(Block(k, held, stencil, down, across, (row, column), planes, fill))

    at = 0
    for down in stencil.down:
        with _part(k, down, at, low, high, parts) as i:
            if isinstance(i, bool):
                along(down, k.constant(down.start))
            else:
                along(down, k.bind(down.start + i * down.size))
        at += down.count


@contextmanager
def _walk(k: Kernel, run: Run, low: Any, high: Any) -> Iterator[Any]:
    if run.count == 1:
        yield None
        return
    with k.loop(low, high) as i:
        yield i


@contextmanager
def _part(k: Kernel, run: Run, at: int, low: Any, high: Any, parts: int) -> Iterator[Any]:
    """The blocks of a run, its first being number ``at``, that lie in [low, high)."""
    from tvm.script.ir_builder import tirx as T

    if run.count == 1:
        if parts == 1:
            yield True
            return
        with k.when(T.And(low <= at, at < high)):
            yield True
        return
    if parts == 1:
        with k.loop(run.count) as i:
            yield i
        return
    begin = k.bind(T.max(low - at, k.constant(0)))
    end = k.bind(T.max(begin, T.min(high - at, k.constant(run.count))))
    with k.loop(begin, end) as i:
        yield i

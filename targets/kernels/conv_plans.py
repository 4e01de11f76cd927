"""conv_plans: how a dense convolution may be cut into tiles and micro-tiles, and what that costs.

A tile of output positions is covered by micro-tiles of three kinds.  *Along*: MR output channels by
NV vectors of positions, a vector beginning anew with each row and the last of a row overlapping the
one before it.  *Flow*: the same, but vectors run over row ends where that leaves fewer of them.
*Across*: single positions by vectors of output channels, which waste nothing on maps of few
positions but leave results to be transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from sparsec.targets.cost import epilogue_cycles
from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.window import Window
from sparsec.targets.target import Problem, Target

#: most vectors of positions a tile is worth having, and most positions for micro-tiles across
_MOST_VECTORS = 64
_MOST_ACROSS = 256

#: most positions of a micro-tile across: each takes an address
_MOST_POSITIONS = 6

#: share of the work that staging x again for every unit of work may add
_STAGED_AGAIN = 0.04


@dataclass(frozen=True)
class Plan:
    """What a configuration means for a problem."""

    problem: Problem
    window: Window
    #: channels a block, output channels of a micro-tile, its vectors (or positions, if across)
    channels: int
    height: int
    vectors: int
    flow: bool
    across: bool
    #: x is read where it lies
    direct: bool
    #: weights come from beyond L2
    streamed: bool
    #: units of work the rows of a group are split into
    row_chunks: int

    @property
    def geometry(self) -> Geometry:
        return self.window.geometry

    @property
    def rows(self) -> int:
        """Output channels of a group."""
        return self.problem.rows // self.geometry.groups

    @property
    def row_tiles(self) -> int:
        return -(-self.rows // self.height)

    @property
    def tiles_per_chunk(self) -> int:
        return -(-self.row_tiles // self.row_chunks)

    @property
    def blocks(self) -> int:
        return -(-self.geometry.channels // self.channels)

    @cached_property
    def per_row(self) -> int:
        """Vectors in one row of the tile, where they follow rows."""
        return -(-self.window.columns // self.window.lanes)

    @cached_property
    def count(self) -> int:
        """Vectors of the tile; its positions, if across."""
        w = self.window
        if self.across:
            return w.rows * w.columns
        return w.vectors if self.flow else w.rows * self.per_row

    @property
    def line(self) -> int:
        """Elements of the resting accumulators of one row."""
        return self.count * self.window.lanes

    @cached_property
    def parts(self) -> tuple[tuple[int, int, int], ...]:
        """Micro-tiles side by side: runs of (first vector, number, vectors of each)."""
        return _parts(self.count, self.vectors)

    @property
    def listed(self) -> bool:
        """Whether the offsets of steps are read from a list."""
        return self.geometry.taps > 1

    @property
    def windows(self) -> int:
        """Scratch elements of the windows."""
        return 0 if self.direct else self.window.floats(self.channels)

    @property
    def resting_tile(self) -> int:
        """Scratch elements of the resting accumulators of a row tile."""
        return self.height * (self.count if self.across else self.line)

    @property
    def resting(self) -> int:
        """Scratch elements of all accumulators that rest at a time."""
        if self.blocks > 1:
            return self.tiles_per_chunk * self.resting_tile
        return self.resting_tile if self.flow or self.across else 0

    @property
    def accumulators(self) -> int:
        """Registers a micro-tile holds."""
        return self.held(self.height, self.vectors)

    def held(self, rows: int, width: int) -> int:
        """Accumulators of a micro-tile of so many rows."""
        return width * (-(-rows // self.window.lanes) if self.across else rows)


def plan_of(problem: Problem, config: Mapping[str, int], target: Target) -> Plan:
    """The plan a configuration names."""
    assert problem.conv is not None
    window = Window(flat(problem.conv), config["rows"], config["columns"], target.lanes)
    return Plan(
        problem, window, config["channels"], config["height"], config["vectors"], bool(config["flow"]),
        bool(config["across"]), bool(config["direct"]), problem.rows * problem.inner * 4 > 2 * target.l2,
        config["row_chunks"],
    )  # fmt: skip


def _parts(count: int, vectors: int) -> tuple[tuple[int, int, int], ...]:
    passes = -(-count // vectors)
    base, more = divmod(count, passes)
    runs = [(0, more, base + 1), (more * (base + 1), passes - more, base)]
    return tuple(run for run in runs if run[1])


def flat(g: Geometry) -> Geometry:
    """The geometry, in one row where neighbours in x are neighbours in y."""
    if not _pointwise(g):
        return g
    size = g.height * g.width
    return replace(g, height=1, width=size, out_height=1, out_width=size, dilation=(1, 1))


def _pointwise(g: Geometry) -> bool:
    plain = (g.kernel, g.strides, g.padding) == ((1, 1), (1, 1), (0, 0))
    return plain and (g.out_height, g.out_width) == (g.height, g.width)


def candidates(problem: Problem, target: Target) -> list[dict[str, int]]:
    """A configuration for every tile worth considering, with two sizes of blocks."""
    assert problem.conv is not None
    g = flat(problem.conv)
    rows = problem.rows // g.groups
    found = []
    for shape in _shapes(g, rows, target):
        window = shape.window
        height, vectors = _micro(rows, shape, target)
        for share in (0.5, 0.75):
            size = window.columns if shape.direct else window.size
            config = {
                "rows": window.rows, "columns": window.columns, "height": height, "vectors": vectors,
                "channels": _block(g, size, int(target.l1 * share)), "flow": int(shape.flow),
                "across": int(shape.across), "direct": int(shape.direct), "row_chunks": 1,
            }  # fmt: skip
            config["row_chunks"] = _row_chunks(plan_of(problem, config, target), target)
            if config not in found:
                found.append(config)
    return found


def possible(g: Geometry, target: Target) -> bool:
    """Whether any tile can be staged."""
    return any(True for _ in _shapes(flat(g), 1, target))


@dataclass(frozen=True, slots=True)
class _Shape:
    window: Window
    flow: bool = False
    across: bool = False
    direct: bool = False

    @property
    def crossing(self) -> float:
        """How often a vector of x takes two loads, since it crosses a cache line."""
        aligned = self.window.geometry.taps == 1 and not self.direct
        return 0.0 if aligned or self.across else (self.window.lanes * 4 - 4) / 64


def _shapes(g: Geometry, rows: int, target: Target) -> Iterator[_Shape]:
    """Tiles of parts of a row, and of whole rows."""
    lanes, wide = target.lanes, g.out_width
    sources = (False, True) if _pointwise(g) else (False,)
    for window in _windows(g, target):
        staged = window.floats(1) * 4 <= target.l2 // 2
        for direct in sources:
            if not (staged or direct):
                continue
            if window.columns >= lanes:
                yield _Shape(window, direct=direct)
            whole = window.columns == wide
            if whole and rows >= lanes and window.rows * wide <= _MOST_ACROSS:
                yield _Shape(window, across=True, direct=direct)
        if staged and (window.rows > 1 or window.columns < lanes):
            yield _Shape(window, flow=True)


def _windows(g: Geometry, target: Target) -> Iterator[Window]:
    lanes, wide = target.lanes, g.out_width
    whole = -(-wide // lanes)
    for vectors in sorted({-(-whole // n) for n in range(1, whole + 1)}):
        if vectors <= _MOST_VECTORS and (vectors == whole or vectors >= 4):
            yield Window(g, 1, min(wide, vectors * lanes), lanes)
    for height in sorted({-(-g.out_height // n) for n in range(1, g.out_height + 1)} - {1}):
        window = Window(g, height, wide, lanes)
        if window.vectors <= 2 * _MOST_VECTORS:
            yield window


def _block(g: Geometry, size: int, most: int) -> int:
    """Channels whose windows of ``size`` elements take at most so many bytes, in equal blocks."""
    blocks = -(-g.channels // max(1, most // (size * 4)))
    return -(-g.channels // blocks)


def _micro(rows: int, shape: _Shape, target: Target) -> tuple[int, int]:
    """Height and width of the micro-tile that takes the fewest cycles for a tile."""
    w, lanes = shape.window, target.lanes
    if shape.across:
        count, unit, widest = w.rows * w.columns, lanes, _MOST_POSITIONS
    else:
        count, unit, widest = w.vectors if shape.flow else w.rows * -(-w.columns // lanes), 1, 5
    fitting = []
    for width in range(1, min(count, widest) + 1):
        for high in range(1, min(-(-rows // unit), 12) + 1):
            if _registers(high, width, shape.across) <= target.registers:
                steps = _steps(rows, high * unit, _parts(count, width), shape, lanes)
                fitting.append((steps, -high * width, high * unit, width))
    return min(fitting)[2:]


def _registers(high: int, width: int, across: bool) -> int:
    """Accumulators, the operand that stays for a step, and one that does not."""
    if across:
        return high * width + (high if width > 1 else 1) + 1
    return high * width + width + 1


def _steps(
    rows: int, height: int, parts: tuple[tuple[int, int, int], ...], shape: _Shape, lanes: int
) -> float:
    """Cycles of one step of every micro-tile of a tile."""
    whole, left = divmod(rows, height)
    return sum(
        number * times * _step(high, width, shape, lanes)
        for high, times in ((height, whole), (left, 1 if left else 0))
        for _, number, width in parts
    )


def _step(rows: int, width: int, shape: _Shape, lanes: int) -> float:
    """Cycles of one step of a micro-tile: multiply-adds in two units of latency 4, two loads a cycle."""
    high = -(-rows // lanes) if shape.across else rows
    loads = high + width * (1 + shape.crossing)
    return max(high * width / 2, loads / 2, 4.0) + 0.1


def _row_chunks(plan: Plan, target: Target) -> int:
    """Units of work that a few threads find enough of, unless staging x again costs too much."""
    down, across = plan.window.tiles
    tiles = down * across * (plan.geometry.images or 1) * plan.geometry.groups
    wanted = min(-(-8 // tiles), plan.row_tiles)
    allowed = _STAGED_AGAIN * _work(plan, target)
    chunks = next((n for n in range(wanted, 1, -1) if (n - 1) * _staging(plan) < allowed), 1)
    if plan.blocks > 1:
        # what rests in scratch should stay in L2
        resting = plan.row_tiles * plan.resting_tile * 4
        chunks = max(chunks, min(plan.row_tiles, -(-resting // (target.l2 // 2))))
    return -(-plan.row_tiles // -(-plan.row_tiles // chunks))


def _staging(plan: Plan) -> float:
    """Cycles to stage the windows of a tile's channels once."""
    w = plan.window
    if plan.direct:
        return 0.0
    lines = sum(p.rows * (6 + 2.5 * -(-p.columns // w.lanes)) for p in w.phases)
    return plan.geometry.channels * lines


def _work(plan: Plan, target: Target) -> float:
    """Cycles of the micro-tiles of one tile of positions, of one group."""
    g, shape = plan.geometry, _Shape(plan.window, plan.flow, plan.across, plan.direct)
    whole, left = divmod(plan.rows, plan.height)
    visits = sum(
        number * times * (14 + (1.2 if plan.blocks > 1 else 0.6) * plan.held(rows, width))
        for rows, times in ((plan.height, whole), (left, 1 if left else 0))
        for _, number, width in plan.parts
    )
    steps = _steps(plan.rows, plan.height, plan.parts, shape, target.lanes)
    return g.channels * g.taps * steps + plan.blocks * visits


def cycles(plan: Plan, target: Target) -> float:
    """Cycles of one run on one core: staging, micro-tiles, weights waited for, lines taken apart."""
    g, w = plan.geometry, plan.window
    down, across = w.tiles
    stored, vectors = 0.0, plan.rows * plan.count
    if plan.flow:
        stored = plan.rows * w.rows * (4 + 2 * -(-w.columns // w.lanes))
    if plan.across:
        vectors = plan.rows * -(-plan.count // w.lanes)
        stored = 3 * vectors
    tile = _work(plan, target) + _waiting(plan, target) + plan.row_chunks * _staging(plan)
    tile += stored + vectors * epilogue_cycles(plan.problem)
    if plan.direct and g.channels * g.height * g.width * 4 > target.l2 // 2:
        tile += g.channels * w.columns * 4 / (target.l3_bytes / 2)
    return down * across * (g.images or 1) * g.groups * tile


def _waiting(plan: Plan, target: Target) -> float:
    """Cycles that the first micro-tile of every row tile waits for weights from beyond L2.

    Measured on Zen 3: broadcasts take an eighth of L3's bandwidth, vectors with prefetches half.
    """
    weight_bytes = 4 * plan.rows * plan.geometry.taps * plan.geometry.channels
    if weight_bytes < target.l2 // 2:
        return 0.0
    stream = weight_bytes / (target.l3_bytes / (2 if plan.across else 8))
    return max(0.0, stream - _work(plan, target) / sum(number for _, number, _ in plan.parts))

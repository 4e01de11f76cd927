"""dense_conv: convolution with dense weights.

The loop order of dense_gemm over windows of the input: for each tile of output positions and each
block of channels, micro-tiles of MR output channels by NV vectors of positions read tap (r, s) at
a constant offset from the output position (direct convolution, Zhang et al. 2018), and partial
sums rest in scratch between blocks.  A 1x1 convolution of neighbouring positions reads x where it
lies.  Vectors either follow the output's rows, the last of a row overlapping the one before it,
or run over row ends where that leaves fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np

from sparsec.pattern import Pattern
from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import epilogue_cost, extra_pointers, finish
from sparsec.targets.kernels.window import Window
from sparsec.targets.kernels.window_visits import place, run_time_sizes
from sparsec.targets.target import Packing, Problem, Target

name = "dense_conv"
format = "dense"

#: most vectors of positions a tile is worth having
_MOST_VECTORS = 64

#: taps written out one after another in the innermost loop
_MOST_TAPS = 12

#: configurations offered
_OFFERED = 4


@dataclass(frozen=True)
class _Plan:
    """What a configuration means for a problem."""

    problem: Problem
    window: Window
    #: channels a block, rows and vectors of a micro-tile
    channels: int
    height: int
    vectors: int
    #: vectors run over row ends; x is read where it lies
    flow: bool
    direct: bool
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
    def across(self) -> int:
        """Vectors in one row of the tile, where they follow rows."""
        return -(-self.window.columns // self.window.lanes)

    @cached_property
    def count(self) -> int:
        """Vectors of the tile."""
        return self.window.vectors if self.flow else self.window.rows * self.across

    @property
    def line(self) -> int:
        """Elements of a row of resting accumulators."""
        return self.count * self.window.lanes

    @cached_property
    def parts(self) -> tuple[tuple[int, int, int], ...]:
        """Micro-tiles side by side: runs of (first vector, number, vectors of each)."""
        return _parts(self.count, self.vectors)

    @property
    def windows(self) -> int:
        """Scratch elements of the windows."""
        return 0 if self.direct else self.window.floats(self.channels)

    @property
    def resting(self) -> int:
        """Rows that need a line in scratch."""
        if self.blocks > 1:
            return self.tiles_per_chunk * self.height
        return self.height if self.flow else 0


def _parts(count: int, vectors: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` vectors in runs of (first, number, width), ``vectors`` wide or narrower by one."""
    passes = -(-count // vectors)
    base, more = divmod(count, passes)
    runs = [(0, more, base + 1), (more * (base + 1), passes - more, base)]
    return tuple(run for run in runs if run[1])


def _flat(g: Geometry) -> Geometry:
    """The geometry, in one row where neighbours in x are neighbours in y."""
    if not _pointwise(g):
        return g
    size = g.height * g.width
    return replace(g, height=1, width=size, out_height=1, out_width=size, dilation=(1, 1))


def _pointwise(g: Geometry) -> bool:
    return (
        (g.kernel, g.strides, g.padding) == ((1, 1), (1, 1), (0, 0))
        and (g.out_height, g.out_width) == (g.height, g.width)
    )  # fmt: skip


def _plan(problem: Problem, config: Mapping[str, int], target: Target) -> _Plan:
    assert problem.conv is not None
    window = Window(_flat(problem.conv), config["rows"], config["columns"], target.lanes)
    return _Plan(
        problem, window, config["channels"], config["height"], config["vectors"], bool(config["flow"]),
        bool(config["direct"]), config["row_chunks"],
    )  # fmt: skip


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Any convolution whose window of one channel fits a part of L2."""
    return problem.conv is not None and bool(_shapes(_flat(problem.conv), target))


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that promise most, the best first."""
    assert problem.conv is not None
    g = _flat(problem.conv)
    found = []
    for window, flow, direct in _shapes(g, target):
        count = window.vectors if flow else window.rows * -(-window.columns // window.lanes)
        height, vectors = _micro(problem.rows // g.groups, count, g.taps > 1 or direct, target)
        for share in (0.5, 0.75):
            channels = _block(g, _stride(window, direct), int(target.l1 * share))
            config = {
                "rows": window.rows, "columns": window.columns, "channels": channels, "height": height,
                "vectors": vectors, "flow": int(flow), "direct": int(direct), "row_chunks": 1,
            }  # fmt: skip
            config["row_chunks"] = _row_chunks(_plan(problem, config, target), target)
            if config not in found:
                found.append(config)
    return tuple(sorted(found, key=lambda c: predict(problem, pattern, c, target))[:_OFFERED])


def _shapes(g: Geometry, target: Target) -> list[tuple[Window, bool, bool]]:
    """Tiles to choose from, each with whether vectors flow over row ends and x is read in place."""
    lanes, wide = target.lanes, g.out_width
    whole = -(-wide // lanes)
    found = []
    for vectors in {-(-whole // n) for n in range(1, whole + 1)}:
        if vectors <= _MOST_VECTORS and (vectors == whole or vectors >= 4):
            columns = min(wide, vectors * lanes)
            found.append((Window(g, 1, columns, lanes), columns < lanes, False))
            if _pointwise(g) and wide >= lanes:
                found.append((Window(g, 1, columns, lanes), False, True))
    for height in {-(-g.out_height // n) for n in range(1, g.out_height + 1)} - {1}:
        window = Window(g, height, wide, lanes)
        if window.vectors <= 2 * _MOST_VECTORS:
            found.append((window, True, False))
            if wide >= lanes:
                found.append((window, False, False))
    return [f for f in found if f[2] or f[0].floats(1) * 4 <= target.l2 // 2]


def _stride(window: Window, direct: bool) -> int:
    """Elements of one channel that a tile reads."""
    return window.columns if direct else window.size


def _block(g: Geometry, size: int, most: int) -> int:
    """Channels whose windows of ``size`` elements take at most so many bytes, in equal blocks."""
    blocks = -(-g.channels // max(1, most // (size * 4)))
    return -(-g.channels // blocks)


def _micro(rows: int, count: int, crossing: bool, target: Target) -> tuple[int, int]:
    """Height and width of the micro-tile that takes the fewest cycles for a tile."""
    fitting = []
    for vectors in range(1, min(count, 4 if target.registers < 32 else 5) + 1):
        for height in range(1, min(rows, 12) + 1):
            if (height + 1) * vectors + 1 <= target.registers:
                whole, left = divmod(rows, height)
                cycles = sum(
                    number * (whole * (_step(height, width, crossing, target)) + (
                        _step(left, width, crossing, target) if left else 0))
                    for _, number, width in _parts(count, vectors)
                )  # fmt: skip
                fitting.append((cycles, -height * vectors, height, vectors))
    return min(fitting)[2:]


def _step(height: int, vectors: int, crossing: bool, target: Target) -> float:
    """Cycles of one step of a micro-tile: multiply-adds in two units of latency 4, two loads a cycle."""
    loads = height + vectors * (1 + (target.lanes * 4 - 4) / 64 if crossing else 1)
    return max(height * vectors / 2, loads / 2, 4.0) + 0.1


def _row_chunks(plan: _Plan, target: Target) -> int:
    """Units of work that a few threads find enough of, unless staging x again costs too much."""
    down, across = plan.window.tiles
    tiles = down * across * (plan.geometry.images or 1) * plan.geometry.groups
    wanted = min(-(-8 // tiles), max(1, plan.row_tiles // 4))
    staged, work = _staging(plan), _work(plan, target)
    chunks = next((n for n in range(wanted, 1, -1) if (n - 1) * staged < 0.04 * work), 1)
    # what rests in scratch should stay in L2
    return -(-plan.row_tiles // -(-plan.row_tiles // max(chunks, _resting_chunks(plan, target))))


def _resting_chunks(plan: _Plan, target: Target) -> int:
    if plan.blocks == 1:
        return 1
    return min(plan.row_tiles, -(-plan.rows * plan.line * 4 // (target.l2 // 2)))


def _staging(plan: _Plan) -> float:
    """Cycles to stage the windows of a tile's channels once."""
    w = plan.window
    if plan.direct:
        return 0.0
    lines = sum(p.rows * (6 + 2.5 * -(-p.columns // w.lanes)) for p in w.phases)
    return plan.geometry.channels * lines


def _work(plan: _Plan, target: Target) -> float:
    """Cycles of the micro-tiles of one tile of positions, of one group."""
    g = plan.geometry
    crossing = g.taps > 1 or plan.direct
    whole, left = divmod(plan.rows, plan.height)
    steps = g.channels * g.taps
    cycles = 0.0
    for height, times in ((plan.height, whole), (left, 1 if left else 0)):
        for _, number, width in plan.parts:
            visit = 14 + (1.2 if plan.blocks > 1 else 0.6) * height * width
            cycles += times * number * (steps * _step(height, width, crossing, target) + plan.blocks * visit)
    return cycles


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core: staging, micro-tiles, lines taken apart, weights streamed."""
    plan = _plan(problem, config, target)
    g, w = plan.geometry, plan.window
    down, across = w.tiles
    stored = plan.rows * w.rows * (4 + 2 * -(-w.columns // w.lanes)) if plan.flow else 0
    ended = plan.rows * plan.count * epilogue_cost(problem)
    weight_bytes = nbytes(problem, pattern, config, target) / g.groups
    rate = target.l2_bytes if weight_bytes < target.l2 // 2 else target.l3_bytes
    stream = weight_bytes / rate
    tile = max(_work(plan, target), stream) + 0.15 * stream + plan.row_chunks * _staging(plan) + stored + ended
    return down * across * (g.images or 1) * g.groups * tile


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every weight."""
    return 4 * problem.rows * problem.inner


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight[M, R*S*C]`` as [group][block of channels][row tile][channel][tap][height]."""
    plan = _plan(problem, config, target)
    g, height = plan.geometry, plan.height
    padded = np.zeros((g.groups, plan.row_tiles * height, g.taps, g.channels), np.float32)
    padded[:, : plan.rows] = np.asarray(weight).reshape(g.groups, plan.rows, g.taps, g.channels)
    tiled = padded.reshape(g.groups, plan.row_tiles, height, g.taps, g.channels).transpose(0, 1, 4, 3, 2)
    blocks = [
        np.ascontiguousarray(tiled[group, :, start : start + plan.channels]).reshape(-1)
        for group in range(g.groups)
        for start in range(0, g.channels, plan.channels)
    ]
    down, across = plan.window.tiles
    chunks = down * across * g.groups * plan.row_chunks
    settings = {**config, "chunks": chunks}
    return Packing({"values": np.concatenate(blocks)}, chunks, tuple(sorted(settings.items())))


def scratch_floats(problem: Problem, packing: Packing, target: Target) -> int:
    """The windows of a block of channels, then the resting accumulators."""
    plan = _plan(problem, dict(packing.config), target)
    return max(16, plan.windows + plan.resting * plan.line)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the row tiles of one (tile of positions, block) read, rest and write."""

    buffer: Any
    #: the tile's first element of the block's first channel, and from one channel to the next
    x: Any
    stride: int
    channels: Any
    weights: Any
    #: first output channel of the group, its first row tile in this unit of work
    feature: Any
    first_tile: Any
    #: the element offset in y of the group's first channel, and the tile's corner in it
    y: Any
    corner: tuple[Any, Any]
    block: Any


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    plan = _plan(problem, dict(packing.config), target)

    def body(k: Kernel) -> None:
        registers = k.registers(plan.height * plan.vectors)
        if not plan.direct:
            plan.window.clear(k, k.scratch, 0, plan.channels)
        with k.tiles() as tile:
            _tile(k, plan, registers, tile)

    pointers = [("x", "float32"), ("values", "float32"), *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, target.lanes, pointers, run_time_sizes(problem), body)


def _tile(k: Kernel, plan: _Plan, registers: Any, tile: Any) -> None:
    """One unit of work: all channels of a tile of positions, for a chunk of rows of one group."""
    from tvm.script.ir_builder import tirx as T

    g, chunks = plan.geometry, plan.row_chunks
    image, part, corner = place(k, plan.window, tile, chunks * g.groups)
    group, chunk = (k.bind(part // chunks), k.bind(part % chunks)) if g.groups > 1 else (k.constant(0), part)
    plane = g.height * g.width
    x = k.bind((image * g.groups + group) * (g.channels * plane) + (corner[1] if plan.direct else 0))
    y = k.bind((image * g.groups + group) * (plan.rows * g.positions))
    per_group = plan.row_tiles * plan.height * g.taps * g.channels
    low = k.bind(chunk * plan.tiles_per_chunk)
    with k.loop(plan.blocks) as block:
        start = k.bind(block * plan.channels)
        channels = k.bind(T.min(k.constant(plan.channels), g.channels - start))
        source = k.bind(x + start * plane)
        if not plan.direct:
            plan.window.stage(k, k["x"], source, channels, k.scratch, 0, corner)
        at = _Place(
            k["x"] if plan.direct else k.scratch, source if plan.direct else k.constant(0),
            plane if plan.direct else plan.window.size, channels,
            k.bind(group * per_group + start * (plan.row_tiles * plan.height * g.taps)),
            k.bind(group * plan.rows), low, y, corner, block,
        )  # fmt: skip
        whole, left = divmod(plan.rows, plan.height)
        with k.loop(low, k.bind(T.min(low + plan.tiles_per_chunk, k.constant(whole)))) as row_tile:
            _row_tile(k, plan, registers, at, row_tile, plan.height)
        if left:
            with k.when(chunk == chunks - 1):
                _row_tile(k, plan, registers, at, k.constant(whole), left)


def _row_tile(k: Kernel, plan: _Plan, registers: Any, at: _Place, row_tile: Any, rows: int) -> None:
    """The micro-tiles of ``rows`` output channels, side by side."""
    weights = k.bind(at.weights + row_tile * (at.channels * (plan.geometry.taps * plan.height)))
    feature = k.bind(row_tile * plan.height)
    if plan.blocks > 1:
        rest = k.bind(plan.windows + (row_tile - at.first_tile) * (plan.height * plan.line))
    else:
        rest = k.constant(plan.windows)
    for first, number, width in plan.parts:
        with k.loop(number) as part:
            vector = k.bind(first + part * width)
            _start(k, plan, registers, at, rest, vector, rows, width)
            _multiply(k, plan, registers, at, weights, vector, rows, width)
            _end(k, plan, registers, at, rest, feature, vector, rows, width)
    if plan.flow:
        with _last(k, plan, at):
            _leave(k, plan, at, rest, feature, rows)


def _last(k: Kernel, plan: _Plan, at: _Place) -> Any:
    return k.when(at.block == plan.blocks - 1)


def _start(
    k: Kernel, plan: _Plan, registers: Any, at: _Place, rest: Any, vector: Any, rows: int, width: int
) -> None:
    """Accumulators from zero, or from where they rest."""
    from tvm.script.ir_builder import tirx as T

    def zero() -> None:
        for i in range(rows * width):
            k.assign(registers, i, k.splat(0.0))

    if plan.blocks == 1:
        zero()
        return
    with T.If(at.block == 0):
        with T.Then():
            zero()
        with T.Else():
            for i, where in enumerate(_resting(k, plan, rest, vector, rows, width)):
                k.assign(registers, i, k.vector(k.scratch, where))


def _end(
    k: Kernel, plan: _Plan, registers: Any, at: _Place, rest: Any, feature: Any, vector: Any, rows: int,
    width: int,
) -> None:  # fmt: skip
    """Accumulators to rest, or finished to y."""
    from tvm.script.ir_builder import tirx as T

    def keep() -> None:
        for i, where in enumerate(_resting(k, plan, rest, vector, rows, width)):
            k.put(k.scratch, where, registers[i])

    def leave() -> None:
        places = _outputs(k, plan, at, vector, width)
        for r in range(rows):
            row = k.bind(at.feature + feature + r)
            plane = k.bind((feature + r) * plan.geometry.positions)
            for v, place in enumerate(places):
                where = k.bind(plane + place)
                value = registers[r * width + v]
                k.put(k["y"], where, finish(k, plan.problem, value, row, where))

    if plan.flow:
        keep()
    elif plan.blocks == 1:
        leave()
    else:
        with T.If(at.block == plan.blocks - 1):
            with T.Then():
                leave()
            with T.Else():
                keep()


def _resting(k: Kernel, plan: _Plan, rest: Any, vector: Any, rows: int, width: int) -> Iterator[Any]:
    here = k.bind(rest + vector * k.lanes)
    for r in range(rows):
        for v in range(width):
            yield here + (r * plan.line + v * k.lanes)


def _leave(k: Kernel, plan: _Plan, at: _Place, rest: Any, feature: Any, rows: int) -> None:
    """Finished lines of positions, taken apart into rows of y."""
    with k.loop(rows) as r:
        row = k.bind(at.feature + feature + r)
        plane = k.bind(at.y + (feature + r) * plan.geometry.positions)

        def put(value: Any, where: Any, lanes: int, row: Any = row) -> None:
            k.put(k["y"], where, finish(k, plan.problem, value, row, where, lanes), lanes)

        plan.window.store(k, k.scratch, k.bind(rest + r * plan.line), plane, at.corner, put)


def _corners(k: Kernel, plan: _Plan, vector: Any, width: int) -> list[tuple[Any, Any]]:
    """(row, column) in the tile of each vector of a micro-tile, where vectors follow rows."""
    from tvm.script.ir_builder import tirx as T

    lanes, across, columns = k.lanes, plan.across, plan.window.columns
    found = []
    for v in range(width):
        number = k.bind(vector + v)
        row = k.constant(0) if plan.window.rows == 1 else k.bind(T.truncdiv(number, k.constant(across)))
        column = (number - row * across) * lanes
        if columns % lanes:
            column = T.min(column, k.constant(columns - lanes))
        found.append((row, k.bind(column)))
    return found


def _outputs(k: Kernel, plan: _Plan, at: _Place, vector: Any, width: int) -> list[Any]:
    """Offsets in y of a micro-tile's vectors, for the group's first channel."""
    wide = plan.geometry.out_width
    base = k.bind(at.y + at.corner[0] * wide + at.corner[1])
    return [k.bind(base + row * wide + column) for row, column in _corners(k, plan, vector, width)]


def _inputs(k: Kernel, plan: _Plan, at: _Place, vector: Any, width: int) -> list[Any]:
    """Offsets in the buffer of what tap (0, 0) of the block's first channel reads."""
    if plan.flow:
        here = k.bind(at.x + vector * k.lanes)
        return [here + v * k.lanes for v in range(width)]
    pitch = plan.window.pitch
    return [k.bind(at.x + row * pitch + column) for row, column in _corners(k, plan, vector, width)]


def _multiply(
    k: Kernel, plan: _Plan, registers: Any, at: _Place, weights: Any, vector: Any, rows: int, width: int
) -> None:
    """All channels and taps of one micro-tile."""
    g, height = plan.geometry, plan.height
    inputs = _inputs(k, plan, at, vector, width)
    with k.loop(at.channels) as c:
        window = k.bind(c * at.stride)
        panel = k.bind(weights + c * (g.taps * height))
        done = 0
        for number, offsets, further in _runs(plan.window, plan.direct):
            with k.loop(number) as i:
                for tap, offset in enumerate(offsets):
                    xs = [k.bind(k.vector(at.buffer, x + window + i * further + offset)) for x in inputs]
                    w = panel + (done + tap) * height + i * (len(offsets) * height)
                    for r in range(rows):
                        value = k.bind(k.splat(k["values"][w + r]))
                        for v in range(width):
                            j = r * width + v
                            k.assign(registers, j, registers[j] + value * xs[v])
            done += number * len(offsets)


def _runs(window: Window, direct: bool) -> Iterator[tuple[int, Sequence[int], int]]:
    """The taps in order, as loops of (times, offsets written out, step from one time to the next)."""
    g = window.geometry
    if direct:
        yield 1, [0], 0
        return
    high, wide = g.kernel
    rows = [[window.offset(r, s) for s in range(wide)] for r in range(high)]
    period = g.strides[0] // gcd(g.strides[0], g.dilation[0])
    if g.taps <= _MOST_TAPS or high < 2 * period:
        yield 1, [offset for row in rows for offset in row], 0
        return
    times, left = divmod(high, period)
    yield times, [offset for row in rows[:period] for offset in row], rows[period][0] - rows[0][0]
    if left:
        yield 1, [offset for row in rows[times * period :] for offset in row], 0

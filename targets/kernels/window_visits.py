"""window_visits: row_visits over the windows of a convolution, what csr_conv and bsr_conv share.

For each tile of output positions and each block of channels the windows are staged in L1; then
every row of the weight is visited as in a matrix product, since tap (r, s) of channel c lies at a
constant offset from the output position (direct sparse convolution: Park et al. 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import epilogue_cost, extra_pointers, finish
from sparsec.targets.kernels.row_packing import Columns, Grouping, Weight, pack_rows
from sparsec.targets.kernels.row_visits import POINTERS, RowVisits, Tile, step_cycles, visit_cycles
from sparsec.targets.kernels.window import Window
from sparsec.targets.target import Packing, Problem, Target

#: most vectors of positions a tile is worth having
_MOST_VECTORS = 32


def accepts(problem: Problem, target: Target) -> bool:
    """An ungrouped convolution whose single-channel window fits the offsets."""
    return problem.conv is not None and problem.conv.groups == 1 and bool(windows(problem.conv, target))


def windows(geometry: Geometry, target: Target) -> list[Window]:
    """Tiles worth considering: whole output rows, or equal parts of one row where rows are long."""
    lanes, wide = target.lanes, geometry.out_width
    most = _MOST_VECTORS * lanes
    found = []
    if wide <= most:
        heights = {-(-geometry.out_height // n) for n in range(1, geometry.out_height + 1)}
        found = [Window(geometry, h, wide, lanes) for h in sorted(heights)]
        found = [w for w in found if w.vectors <= _MOST_VECTORS or w.rows == 1]
    if wide > 4 * lanes:
        for vectors in (4, 6, 8, 12, 16):
            parts = -(-wide // (vectors * lanes))
            columns = min(wide, -(-wide // parts // lanes) * lanes)
            found.append(Window(geometry, 1, columns, lanes))
    found += [replace(w, by_row=True) for w in found]
    found = [w for w in dict.fromkeys(found) if w.floats(1) * 4 <= target.l2 // 2 and w.size < 65536]
    return sorted(found, key=lambda w: (_waste(w), w.vectors))[:8]


def _waste(w: Window) -> float:
    down, across = w.tiles
    return down * across * w.line / w.geometry.positions


def config_of(window: Window, problem: Problem, target: Target, group: int, shared: bool) -> dict[str, int]:
    """The settings for a tile: channels a block, vectors at a time, rows a chunk."""
    channels = channels_of(window, target)
    if not shared and group == 0:
        group = max(1, min(8 // window.vectors, problem.rows))
    most = (12 if target.registers < 32 else 24) // group
    if shared and target.registers < 32:
        # the group's loads of X live in registers beside the accumulators
        most = max(1, 12 // (group + 1))
    passes = -(-window.vectors // most)
    return {
        "rows": window.rows, "columns": window.columns, "by_row": int(window.by_row), "channels": channels, "group": group,
        "vectors": -(-window.vectors // passes), "chunk": chunk_of(window, problem, target, group),
        "shared": int(shared),
    }  # fmt: skip


def channels_of(window: Window, target: Target) -> int:
    """Channels whose windows take three quarters of L1 (offsets must also fit 16 bits)."""
    most = max(1, min(int(target.l1 * 0.75) // (window.size * 4), 65535 // window.size))
    blocks = -(-window.geometry.channels // most)
    return -(-window.geometry.channels // blocks)


def chunk_of(window: Window, problem: Problem, target: Target, group: int) -> int:
    """Rows a unit of work: their accumulators stay in L2, and a few threads find enough units."""
    down, across = window.tiles
    positions = down * across * (window.geometry.images or 1)
    wanted = min(-(-4 // positions), max(1, problem.rows // (8 * group)))
    chunks = max(wanted, -(-problem.rows * window.line * 4 // (target.l2 // 2)))
    rows = -(-problem.rows // chunks)
    return -(-rows // group) * group


def window_of(problem: Problem, config: Mapping[str, int], target: Target) -> Window:
    assert problem.conv is not None
    by_row = bool(config["by_row"])
    return Window(problem.conv, config["rows"], config["columns"], target.lanes, by_row)


def parts_of(window: Window, vectors: int) -> tuple[int, ...]:
    """The window's vectors in passes of nearly equal size."""
    passes = -(-window.vectors // vectors)
    base, more = divmod(window.vectors, passes)
    return tuple(base + (i < more) for i in range(passes))


def pack(weight: Weight, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, R*S*C]``."""
    window = window_of(problem, config, target)
    g = window.geometry
    tap, channel = np.divmod(np.arange(problem.inner), g.channels)
    taps = np.array([window.offset(r, s) for r in range(g.kernel[0]) for s in range(g.kernel[1])])
    block, place = np.divmod(channel, config["channels"])
    offsets = place * window.size + taps[tap]
    blocks = tuple(np.flatnonzero(block == b) for b in range(-(-g.channels // config["channels"])))
    grouping = Grouping(config["group"], config["chunk"], bool(config["shared"]))
    arrays, chunks = pack_rows(weight, grouping, Columns(blocks, offsets))
    down, across = window.tiles
    settings = {**config, "row_chunks": chunks, "chunks": chunks * down * across}
    return Packing(arrays, settings["chunks"], tuple(sorted(settings.items())))


def scratch_floats(problem: Problem, packing: Packing, target: Target) -> int:
    """The windows of a block of channels, then the resting accumulators of a chunk of rows."""
    config = dict(packing.config)
    window = window_of(problem, config, target)
    return window.floats(config["channels"]) + _resting(problem, config) * window.line


def _resting(problem: Problem, config: Mapping[str, int]) -> int:
    """Rows whose accumulators need a place: a chunk, or one visit where nothing rests."""
    assert problem.conv is not None
    return config["group"] if config["channels"] >= problem.conv.channels else config["chunk"]


@dataclass(frozen=True, slots=True)
class WindowRest:
    """Accumulators rest in scratch, one line of positions a row; at last they go to y row by row."""

    problem: Problem
    window: Window
    start: int
    #: the chunk's first row; None where nothing rests and a line serves one row after another
    first_row: Any
    #: element offset of the image in y
    base: Any
    corner: tuple[Any, Any]

    @property
    def straight(self) -> bool:
        """Whether a line's vectors are neighbours in y."""
        return self.window.rows == 1 and self.window.columns == self.window.line

    def at(self, k: Kernel, row: Any, member: int) -> Any:
        if self.first_row is None:
            return k.constant(self.start + member * self.window.line)
        return k.bind(self.start + (row - self.first_row) * self.window.line)

    def load(self, k: Kernel, offset: Any) -> Any:
        return k.vector(k.scratch, offset)

    def keep(self, k: Kernel, offset: Any, value: Any) -> None:
        k.put(k.scratch, offset, value)

    def finish(self, k: Kernel, row: Any, place: Any, lane: int, value: Any) -> None:
        if not self.straight:
            self.keep(k, place + lane, value)
            return
        g = self.window.geometry
        where = self._plane(row) + self.corner[0] * g.out_width + self.corner[1] + lane
        k.put(k["y"], where, finish(k, self.problem, value, row, where))

    def leave(self, k: Kernel, rows: Sequence[Any], places: Sequence[Any]) -> None:
        if self.straight:
            return
        for row, place in zip(rows, places, strict=True):

            def put(value: Any, where: Any, lanes: int, row: Any = row) -> None:
                k.put(k["y"], where, finish(k, self.problem, value, row, where, lanes), lanes)

            self.window.store(k, k.scratch, place, k.bind(self._plane(row)), self.corner, put)

    def _plane(self, row: Any) -> Any:
        return self.base + row * self.window.geometry.positions


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function for a packed weight."""
    config = dict(packing.config)
    window = window_of(problem, config, target)
    g, channels = window.geometry, config["channels"]
    blocks = -(-g.channels // channels)
    nest = RowVisits(
        problem.rows, config["group"], bool(config["shared"]), config["row_chunks"], blocks,
        parts_of(window, config["vectors"]), window.steps,
    )  # fmt: skip

    def body(k: Kernel) -> None:
        registers = k.registers(nest.accumulators)
        window.clear(k, k.scratch, 0, channels)
        with k.tiles() as tile:
            image, chunk, corner = place(k, window, tile, nest.chunks)
            x = k.bind(image * (g.channels * g.height * g.width))
            first_row = k.bind(chunk * config["chunk"]) if blocks > 1 else None
            y = k.bind(image * (problem.rows * g.positions))
            rest = WindowRest(problem, window, window.floats(channels), first_row, y, corner)
            for block, first, last in nest.block_loop(k):
                source = k.bind(x + block * (channels * g.height * g.width))
                count = g.channels - (blocks - 1) * channels if last else channels
                window.stage(k, k["x"], source, count, k.scratch, 0, corner)
                nest.cell(k, registers, Tile(k.scratch, 0, rest), chunk, block, (first, last))

    pointers = [("x", "float32"), *POINTERS, *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, target.lanes, pointers, run_time_sizes(problem), body)


def run_time_sizes(problem: Problem) -> tuple[str, ...]:
    """The size parameters of a convolution: the images, when they are not known beforehand."""
    assert problem.conv is not None
    return ("images",) if problem.conv.images is None else ()


def place(k: Kernel, window: Window, tile: Any, chunks: int) -> tuple[Any, Any, tuple[Any, Any]]:
    """Image, chunk of rows, and corner of unit of work ``tile``; chunks of a position are neighbours."""
    down, across = window.tiles
    position = k.bind(tile // chunks)
    image = k.bind(position // (down * across))
    return image, k.bind(tile % chunks), window.corner(k, k.bind(position % (down * across)))


def predict(
    problem: Problem, target: Target, config: Mapping[str, int], steps: float, visits: float,
    weight_bytes: float,
) -> float:  # fmt: skip
    """Cycles of one run: staging, steps, visits, rows taken apart, and weights from L2 or L3."""
    window = window_of(problem, config, target)
    g, group, lanes = window.geometry, config["group"], target.lanes
    down, across = window.tiles
    tiles = down * across * (g.images or 1)
    # a load that is not aligned often touches two cache lines, which takes two turns
    crossing = 1.0 if g.taps == 1 and not window.gap else 1 + (lanes * 4 - 4) / 64
    parts = parts_of(window, config["vectors"])
    per_step = sum(step_cycles(group, round(v * crossing), bool(config["shared"])) for v in parts)
    per_visit = sum(visit_cycles(group, v) for v in parts)
    store = window.rows * (4 + 2 * -(-window.columns // lanes)) + window.vectors
    out = problem.rows * (store + window.vectors * epilogue_cost(problem))
    staged = g.channels * len(window.phases) * window.phases[0].rows * (6 + 2.5 * -(-window.pitch // lanes))
    chunks = -(-problem.rows // config["chunk"])
    rate = target.l2_bytes if weight_bytes < target.l2 / 2 else target.l3_bytes
    work = steps * per_step + visits * per_visit
    return tiles * (max(work, weight_bytes / rate) + out + chunks * staged)

"""window_visits: row_visits over the windows of a convolution, what csr_conv and bsr_conv share.

For each tile of output positions and each block of channels the windows are staged in L1; then
every row of the weight is visited as in a matrix product, since tap (r, s) of channel c lies at a
constant offset from the output position (direct sparse convolution: Park et al. 2017).  Vectors
hold neighbouring positions of an image, or one position of as many images (image_window).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from sparsec.targets.cost import epilogue_cycles, step_cycles, stream_cycles, tile_cycles, visit_cycles
from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels import row_packing
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish
from sparsec.targets.kernels.image_moves import ImageMoves
from sparsec.targets.kernels.image_window import ImageWindow
from sparsec.targets.kernels.row_packing import Columns, Grouping, Weight, byte_scale, pack_rows, pointers
from sparsec.targets.kernels.row_visits import RowVisits, Tile
from sparsec.targets.kernels.window import Window
from sparsec.targets.kernels.window_moves import WindowMoves
from sparsec.targets.target import Packing, Problem, Target

#: most vectors of positions a tile is worth having
_MOST_VECTORS = 32

#: lanes of images are chosen where they win more than this, since caches may cost them more
_UNSURE = 1.05

#: outputs of a row that are worth a tile of their own
_FEW = 4

#: a window of either kind; they share all names used here
AnyWindow = Window | ImageWindow
_W = TypeVar("_W", Window, ImageWindow)
#: what stages and stores, of either kind
Moves = WindowMoves | ImageMoves


def accepts(problem: Problem, target: Target) -> bool:
    """An ungrouped convolution whose single-channel window fits the offsets."""
    return problem.conv is not None and problem.conv.groups == 1 and bool(windows(problem.conv, target))


def windows(geometry: Geometry, target: Target) -> list[AnyWindow]:
    """Tiles worth considering, of both kinds."""
    return [*_position_windows(geometry, target), *_image_windows(geometry, target)]


def _position_windows(geometry: Geometry, target: Target) -> list[Window]:
    """Whole output rows, or equal parts of one row where rows are long."""
    lanes, wide = target.lanes, geometry.out_width
    most = _MOST_VECTORS * lanes
    found = []
    if wide <= most:
        found = [Window(geometry, h, wide, lanes) for h in _parts(geometry.out_height)]
        found = [w for w in found if w.vectors <= _MOST_VECTORS or w.rows == 1]
    if wide > 4 * lanes:
        for vectors in (4, 6, 8, 12, 16):
            parts = -(-wide // (vectors * lanes))
            columns = min(wide, -(-wide // parts // lanes) * lanes)
            found.append(Window(geometry, 1, columns, lanes))
    found += [replace(w, by_row=True) for w in found]
    return _best(list(dict.fromkeys(found)), target)


def _image_windows(geometry: Geometry, target: Target) -> list[ImageWindow]:
    """Whole output rows, or parts of one, where there are images for every lane."""
    if (geometry.images or 0) < target.lanes:
        return []
    high, wide = geometry.out_height, geometry.out_width
    sizes = [(h, wide) for h in _parts(high)] + [(1, columns) for columns in _parts(wide)]
    found = [ImageWindow(geometry, *size, target.lanes) for size in dict.fromkeys(sizes)]
    found = [w for w in found if w.vectors <= _MOST_VECTORS and (w.columns >= _FEW or w.axes[1].whole)]
    return _best(found, target)


def _parts(size: int) -> list[int]:
    """The sizes that cut ``size`` into nearly equal parts."""
    return sorted({-(-size // n) for n in range(1, size + 1)})


def _best(found: list[_W], target: Target) -> list[_W]:
    """The windows that fit, those that compute least in vain."""
    fits = [w for w in found if w.floats(1) * 4 <= target.l2 // 2 and w.size < 65536]
    return sorted(fits, key=lambda w: (_waste(w), w.vectors))[:8]


def _waste(w: AnyWindow) -> float:
    down, across = w.tiles
    return down * across * w.line / w.geometry.positions


def config_of(
    window: AnyWindow, problem: Problem, target: Target, group: int, shared: bool
) -> dict[str, int]:
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
        "rows": window.rows, "columns": window.columns, "by_row": int(window.by_row), "images": window.images,
        "channels": channels, "group": group, "vectors": -(-window.vectors // passes),
        "chunk": chunk_of(window, problem, target, group), "shared": int(shared),
    }  # fmt: skip


def channels_of(window: AnyWindow, target: Target) -> int:
    """Channels whose windows take three quarters of L1 (offsets must also fit 16 bits)."""
    most = max(1, min(int(target.l1 * 0.75) // (window.size * 4), 65535 // window.size))
    blocks = -(-window.geometry.channels // most)
    return -(-window.geometry.channels // blocks)


def chunk_of(window: AnyWindow, problem: Problem, target: Target, group: int) -> int:
    """Rows a unit of work: their accumulators stay in L2, and a few threads find enough units."""
    down, across = window.tiles
    positions = down * across * window.repeats
    wanted = min(-(-4 // positions), max(1, problem.rows // (8 * group)))
    chunks = max(wanted, -(-problem.rows * window.line * 4 // (target.l2 // 2)))
    rows = -(-problem.rows // chunks)
    return -(-rows // group) * group


def window_of(problem: Problem, config: Mapping[str, int], target: Target) -> AnyWindow:
    """The window of a configuration; ``images`` says how many lanes hold, 0 if lanes are positions."""
    assert problem.conv is not None
    if config["images"]:
        geometry = replace(problem.conv, images=config["images"])
        return ImageWindow(geometry, config["rows"], config["columns"], target.lanes)
    by_row = bool(config["by_row"])
    return Window(problem.conv, config["rows"], config["columns"], target.lanes, by_row)


def parts_of(window: AnyWindow, vectors: int) -> tuple[int, ...]:
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
    arrays, chunks = pack_rows(weight, grouping, Columns(blocks, offsets, _scale(window, config)))
    return Packing(arrays, *finished(window, config, chunks))


def _scale(window: AnyWindow, config: Mapping[str, int]) -> int:
    """One tap: offsets are whole windows."""
    alone = window.geometry.kernel == (1, 1) and window.offset(0, 0) == 0
    return byte_scale(window.size, config["channels"]) if alone else 1


def stored_bytes(
    problem: Problem, config: Mapping[str, int], target: Target, values: float, offsets: float, visits: float
) -> int:
    """What a weight takes with so many values, offsets and visited rows."""
    scale = _scale(window_of(problem, config, target), config)
    return row_packing.stored_bytes(problem.rows, scale, values, offsets, visits)


def finished(
    window: AnyWindow, config: Mapping[str, int], row_chunks: int
) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Units of work, of an image or where lanes hold images of all, and the settings that say so."""
    down, across = window.tiles
    chunks = row_chunks * down * across * (window.repeats if window.images else 1)
    return chunks, tuple(sorted({**config, "row_chunks": row_chunks, "chunks": chunks}.items()))


def scratch_floats(problem: Problem, packing: Packing, target: Target) -> int:
    """The windows of a block of channels, then the resting accumulators of a chunk of rows."""
    config = dict(packing.config)
    window = window_of(problem, config, target)
    return window.floats(config["channels"]) + _resting(problem, config) * window.line


def _resting(problem: Problem, config: Mapping[str, int]) -> int:
    """Rows whose accumulators need a place: a chunk and rows left over, or one visit where nothing rests."""
    assert problem.conv is not None
    group = config["group"]
    return group if config["channels"] >= problem.conv.channels else config["chunk"] + problem.rows % group


@dataclass(frozen=True, slots=True)
class WindowRest:
    """Accumulators rest in scratch, one line of positions a row; at last they go to y row by row."""

    problem: Problem
    window: AnyWindow
    moves: Moves
    start: int
    #: the chunk's first row; None where nothing rests and a line serves one row after another
    first_row: Any
    #: element offset of the (first) image in y
    base: Any
    corner: tuple[Any, Any]

    @property
    def early(self) -> bool:
        """Whether vectors are finished before they are taken apart: nothing is read at y's offset."""
        return bool(self.window.images) and "full" not in self.problem.extras

    def at(self, k: Kernel, row: Any, member: int) -> Any:
        if self.first_row is None:
            return k.constant(self.start + member * self.window.line)
        return k.bind(self.start + (row - self.first_row) * self.window.line)

    def load(self, k: Kernel, offset: Any) -> Any:
        return k.vector(k.scratch, offset)

    def keep(self, k: Kernel, offset: Any, value: Any) -> None:
        k.put(k.scratch, offset, value)

    def finish(self, k: Kernel, row: Any, place: Any, lane: int, value: Any) -> None:
        if not self.window.straight:
            done = finish(k, self.problem, value, row, None) if self.early else value
            self.keep(k, place + lane, done)
            return
        g = self.window.geometry
        where = self._plane(row) + self.corner[0] * g.out_width + self.corner[1] + lane
        k.put(k["y"], where, finish(k, self.problem, value, row, where))

    def leave(self, k: Kernel, rows: Sequence[Any], places: Sequence[Any]) -> None:
        if self.window.straight:
            return
        for row, place in zip(rows, places, strict=True):

            def put(value: Any, where: Any, lanes: int, row: Any = row) -> None:
                done = value if self.early else finish(k, self.problem, value, row, where, lanes)
                k.put(k["y"], where, done, lanes)

            self.moves.store(k, k.scratch, place, k.bind(self._plane(row)), self.corner, put)

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
        parts_of(window, config["vectors"]), window.steps, _scale(window, config),
    )  # fmt: skip

    def body(k: Kernel) -> None:
        registers, moves = k.registers(nest.accumulators), window.moves(k, problem.rows)
        moves.clear(k, k.scratch, 0, channels)
        with k.tiles() as tile:
            image, chunk, corner = place(k, window, tile, nest.chunks)
            x = k.bind(image * (g.channels * g.height * g.width))
            first_row = k.bind(chunk * config["chunk"]) if blocks > 1 else None
            y = k.bind(image * (problem.rows * g.positions))
            rest = WindowRest(problem, window, moves, window.floats(channels), first_row, y, corner)
            for block, first, last in nest.block_loop(k):
                source = k.bind(x + block * (channels * g.height * g.width))
                count = g.channels - (blocks - 1) * channels if last else channels
                moves.stage(k, k["x"], source, count, k.scratch, 0, corner)
                nest.cell(k, registers, Tile(k.scratch, 0, rest), chunk, block, (first, last))

    packed = pointers(problem.rows, nest.scale)
    parameters = [("x", "float32"), *packed, *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, target.lanes, parameters, run_time_sizes(problem), body)


def run_time_sizes(problem: Problem) -> tuple[str, ...]:
    """The size parameters of a convolution: the images, when they are not known beforehand."""
    assert problem.conv is not None
    return ("images",) if problem.conv.images is None else ()


def place(k: Kernel, window: AnyWindow, tile: Any, chunks: int) -> tuple[Any, Any, tuple[Any, Any]]:
    """Image, chunk of rows, and corner of unit of work ``tile``; chunks of a position are neighbours."""
    down, across = window.tiles
    position = k.bind(tile // chunks)
    image = window.first_image(k, k.bind(position // (down * across)))
    return image, k.bind(tile % chunks), window.corner(k, k.bind(position % (down * across)))


def predict(
    problem: Problem, target: Target, config: Mapping[str, int], steps: float, visits: float,
    weight_bytes: float,
) -> float:  # fmt: skip
    """Cycles of one run: staging, steps, visits, rows taken apart, and weights from L2 or L3."""
    window = window_of(problem, config, target)
    group, (down, across) = config["group"], window.tiles
    tiles = down * across * window.repeats
    parts = parts_of(window, config["vectors"])
    shared = bool(config["shared"])
    per_step = sum(step_cycles(group, v, shared, target, window.turns) for v in parts)
    per_visit = sum(visit_cycles(group, v) for v in parts)
    out = problem.rows * (
        window.store_cycles(target, problem.rows) + window.vectors * epilogue_cycles(problem)
    )
    staged = window.geometry.channels * window.staging_cycles(target)
    chunks = -(-problem.rows // config["chunk"])
    work = steps * per_step + visits * per_visit + _rest_cycles(problem, target, config, visits)
    cycles = tiles * (max(work, stream_cycles(weight_bytes, target)) + out + chunks * staged)
    return cycles * (_UNSURE if window.images else 1.0)


def _rest_cycles(problem: Problem, target: Target, config: Mapping[str, int], visits: float) -> float:
    """Cycles that resting accumulators of one tile take where they do not stay in L1."""
    window = window_of(problem, config, target)
    blocks = -(-window.geometry.channels // config["channels"])
    if blocks == 1 or _resting(problem, config) * window.line * 4 < target.l1 // 4:
        return 0.0
    moved = min(visits * config["group"], blocks * problem.rows) * (blocks - 1) / blocks
    return 2 * moved * tile_cycles(window.line, target)

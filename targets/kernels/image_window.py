"""image_window: what a tile of output positions of several images reads, one image a lane.

Where maps are small, vectors of neighbouring positions are mostly padding and row ends.  Here a
vector holds one position of ``lanes`` images: a channel's window is ``[rows][columns][lanes]``,
so output (i, j) reads tap (r, s) ``offset(r, s)`` after its own step, every load is aligned, and
strides need no phases.  Staging transposes the images into place, storing transposes them back.
Images are taken ``lanes`` at a time; the last group starts early and computes some images again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.shuffles import QUARTER, Registers, pick, transpose_quarters, transpose_strip
from sparsec.targets.kernels.window import cover, spans, tile_start
from sparsec.targets.target import Target

#: maps of at most so many elements are staged by straight-line code
_FLAT = 64

#: elements of a cache line
_LINE = 16

#: cycles an element takes when four neighbours are moved together, and when it is moved alone
_MOVED, _MOVED_ALONE = 0.3, 1.2

#: cycles to read a cache line of one image from L2 and from L3; to write one takes twice as long
_NEAR, _FAR = 1.0, 3.0


@dataclass(frozen=True, slots=True)
class Axis:
    """Rows, or columns, of a window: element i is ``start + i * unit`` of the image.

    ``start`` depends on the tile: its first output's place times ``stride``, less ``padding``.
    """

    size: int
    stride: int
    padding: int
    outputs: int
    tile: int
    reach: int
    unit: int

    @property
    def count(self) -> int:
        """Elements of the window."""
        return ((self.tile - 1) * self.stride + self.reach) // self.unit + 1

    @property
    def whole(self) -> bool:
        """Whether one tile holds all outputs."""
        return self.tile == self.outputs

    @property
    def data(self) -> tuple[int, int]:
        """The elements [low, high) inside the image, for a tile that holds all outputs."""
        low = min(self.count, -(-self.padding // self.unit))
        return low, max(low, min(self.count, (self.size - 1 + self.padding) // self.unit + 1))

    @property
    def inside(self) -> bool:
        """Whether the window of every tile lies in the image."""
        last = (self.outputs - self.tile) * self.stride + (self.count - 1) * self.unit
        return self.padding == 0 and last < self.size

    def start(self, k: Kernel, corner: Any) -> Any:
        """Where in the image the window of a tile begins."""
        return k.bind(corner * self.stride - self.padding)


def _axis(g: Geometry, which: int, tile: int) -> Axis:
    stride, dilation, taps = g.strides[which], g.dilation[which], g.kernel[which]
    steps = gcd(stride if tile > 1 else 0, dilation if taps > 1 else 0)
    return Axis(
        (g.height, g.width)[which], stride, g.padding[which], (g.out_height, g.out_width)[which], tile,
        (taps - 1) * dilation, steps or 1,
    )  # fmt: skip


@dataclass(frozen=True)
class ImageWindow:
    """The window of a tile of ``rows`` x ``columns`` outputs of ``lanes`` images, their number known."""

    geometry: Geometry
    rows: int
    columns: int
    lanes: int

    @cached_property
    def images(self) -> int:
        """Images in all."""
        assert self.geometry.images is not None and self.geometry.images >= self.lanes
        return self.geometry.images

    @cached_property
    def repeats(self) -> int:
        """Groups of images."""
        return -(-self.images // self.lanes)

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns of the window."""
        return _axis(self.geometry, 0, self.rows), _axis(self.geometry, 1, self.columns)

    @cached_property
    def size(self) -> int:
        """Elements of one channel's window."""
        down, across = self.axes
        return down.count * across.count * self.lanes

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Where each vector begins, as elements from the tile's first output."""
        down, across = ([i * a.stride // a.unit for i in range(a.tile)] for a in self.axes)
        return tuple(self._at(i, j) for i in down for j in across)

    @property
    def vectors(self) -> int:
        """Vectors that cover the tile."""
        return self.rows * self.columns

    @property
    def line(self) -> int:
        """Elements of those vectors."""
        return self.vectors * self.lanes

    @property
    def by_row(self) -> bool:
        """Whether vectors begin anew with each row."""
        return True

    @property
    def straight(self) -> bool:
        """Whether vectors are neighbours in y."""
        return False

    @property
    def turns(self) -> float:
        """Turns a load takes: vectors that are whole cache lines apart want the same bank of L1."""
        across = self.axes[1]
        apart = across.stride // across.unit * self.lanes
        clash = self.columns > 1 and self.lanes < _LINE and apart % _LINE == 0
        return 2.0 if clash else 1.0

    @cached_property
    def tiles(self) -> tuple[int, int]:
        """Tiles down and across one group of images."""
        down, across = self.axes
        return -(-down.outputs // self.rows), -(-across.outputs // self.columns)

    def floats(self, channels: int) -> int:
        """Scratch elements of the windows of so many channels."""
        return channels * self.size

    def offset(self, r: int, s: int) -> int:
        """Where in a channel's window output (0, 0) finds tap (r, s)."""
        (down, across), (dh, dw) = self.axes, self.geometry.dilation
        return self._at(r * dh // down.unit, s * dw // across.unit)

    def _at(self, row: int, column: int) -> int:
        return (row * self.axes[1].count + column) * self.lanes

    @cached_property
    def flat(self) -> bool:
        """Whether whole maps are staged by straight-line code."""
        g = self.geometry
        whole = all(a.whole and a.unit == 1 for a in self.axes)
        return whole and QUARTER <= g.height * g.width <= _FLAT

    @property
    def run(self) -> int:
        """Positions of the tile that are neighbours in y."""
        return self.vectors if self.axes[1].whole else self.columns

    def first_image(self, k: Kernel, group: Any) -> Any:
        """The first image of a group."""
        return tile_start(k, group, self.repeats, self.lanes, self.images)

    def corner(self, k: Kernel, tile: Any) -> tuple[Any, Any]:
        """First output row and column of tile number ``tile`` of a group of images."""
        (down, across), (_, wide) = self.axes, self.tiles
        return (
            tile_start(k, k.bind(tile // wide), self.tiles[0], self.rows, down.outputs),
            tile_start(k, k.bind(tile % wide), wide, self.columns, across.outputs),
        )

    def staging_cycles(self, target: Target) -> float:
        """Rough cycles to stage one channel: shuffles, and every image's cache lines."""
        g, (down, across) = self.geometry, self.axes
        width = min(across.count * across.unit, g.width)
        if across.whole and across.unit == 1:
            lines = 1 + min(down.count, g.height) * width / _LINE
        else:
            lines = down.count * (1 + width / _LINE)
        touched = self._touch(target, g.channels * g.height * g.width) * lines
        if self.flat:
            return g.height * g.width * self.lanes * _MOVED + touched
        slow = 1.0 if not self._strips(across.count) else self._clipped
        element = across.unit * _MOVED * (1 - slow) + _MOVED_ALONE * slow
        return down.count * (5 + across.count * self.lanes * element) + touched

    @property
    def _clipped(self) -> float:
        """The share of tiles that end beyond the left or right of the image, not knowing where."""
        across = self.axes[1]
        return 0.0 if across.whole or across.inside else min(1.0, 2 / self.tiles[1])

    def _touch(self, target: Target, image: int) -> float:
        """Cycles to read a line of each lane's image; ``image`` are its elements."""
        return self.lanes * (_NEAR if self.images * image * 4 <= target.l2 else _FAR)

    def store_cycles(self, target: Target, rows: int) -> float:
        """Rough cycles to take one line of vectors apart: shuffles, and every image's cache lines."""
        moved = _MOVED if self.run >= QUARTER else _MOVED_ALONE
        lines = self.vectors / self.run * (1 + self.run / _LINE)
        touched = 2 * self._touch(target, rows * self.geometry.positions) * lines
        return self.vectors * self.lanes * moved + touched

    def _strips(self, count: int) -> int:
        """Elements of a row that so many columns span, if they are loaded in quarters of vectors; else 0."""
        unit = self.axes[1].unit
        span = (count - 1) * unit + 1
        return span if span >= QUARTER and QUARTER % unit == 0 else 0

    def moves(self, k: Kernel, outputs: int) -> ImageMoves:
        """What stages and stores in a kernel whose y has so many channels; made at its start."""
        return ImageMoves(self, Registers(k, 4 * QUARTER), outputs)


@dataclass(frozen=True, slots=True)
class ImageMoves:
    """Takes images into windows, and lines of vectors apart into images."""

    window: ImageWindow
    held: Registers
    outputs: int

    @property
    def _image(self) -> int:
        """Elements of x from one image to the next."""
        g = self.window.geometry
        return g.channels * g.height * g.width

    def clear(self, k: Kernel, buffer: Any, at: int, channels: int, fill: float = 0.0) -> None:
        """Fill the windows once; staging never touches what is padding in every tile."""
        with k.loop(self.window.floats(channels) // k.lanes) as i:
            k.put(buffer, at + i * k.lanes, k.splat(fill))

    def stage(
        self, k: Kernel, source: Any, base: Any, channels: Any, buffer: Any, at: Any, corner: tuple[Any, Any],
        fill: float = 0.0,
    ) -> None:  # fmt: skip
        """Copy the windows of ``channels`` channels of the tile at ``corner``, as Window.stage does.

        ``base`` is the element offset of the first channel's plane in the first image.
        """
        window, g = self.window, self.window.geometry
        with k.loop(channels) as c:
            plane = k.bind(base + c * (g.height * g.width))
            here = k.bind(at + c * window.size)
            if window.flat:
                self._stage_flat(k, source, plane, buffer, here)
            else:
                self._stage_rows(k, source, plane, buffer, here, corner, fill)

    def _stage_flat(self, k: Kernel, source: Any, plane: Any, buffer: Any, here: Any) -> None:
        """A whole map, four neighbours at a time whatever row they are in."""
        window, g, (down, across) = self.window, self.window.geometry, self.window.axes
        for first, count, _ in cover(g.height * g.width, QUARTER):
            for begin in range(first, first + count * QUARTER, QUARTER):
                for e, value in enumerate(self._strip(k, source, plane + begin)):
                    y, x = divmod(begin + e, g.width)
                    if y + down.padding < down.count and x + across.padding < across.count:
                        k.put(buffer, here + window._at(y + down.padding, x + across.padding), value)

    def _stage_rows(
        self, k: Kernel, source: Any, plane: Any, buffer: Any, here: Any, corner: tuple[Any, Any], fill: float
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        window, g, (down, across) = self.window, self.window.geometry, self.window.axes
        first = down.start(k, corner[0])
        low, high = down.data if down.whole else (0, down.count)
        with k.loop(low, high) as i:
            y = k.bind(first + i * down.unit)
            there = k.bind(here + i * (across.count * window.lanes))
            row = k.bind(plane + y * g.width)
            if down.whole or down.inside:
                self._stage_row(k, source, row, buffer, there, corner[1], fill)
                return
            with T.If(T.And(y >= 0, y < g.height)):
                with T.Then():
                    self._stage_row(k, source, row, buffer, there, corner[1], fill)
                with T.Else():
                    self._fill(k, buffer, there, across.data if across.whole else (0, across.count), fill)

    def _stage_row(
        self, k: Kernel, source: Any, row: Any, buffer: Any, here: Any, corner: Any, fill: float
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        across = self.window.axes[1]
        start = across.start(k, corner)
        if across.whole or across.inside:
            low, high = across.data if across.whole else (0, across.count)
            self._copy(k, source, row + start + low * across.unit, buffer, here + low * k.lanes, high - low)
            return
        end = start + (across.count - 1) * across.unit
        with T.If(T.And(start >= 0, end < across.size)):
            with T.Then():
                self._copy(k, source, row + start, buffer, here, across.count)
            with T.Else(), k.loop(across.count) as j:
                x = k.bind(start + j * across.unit)
                with T.If(T.And(x >= 0, x < across.size)):
                    with T.Then():
                        k.put(buffer, here + j * k.lanes, self._column(k, source, row + x))
                    with T.Else():
                        k.put(buffer, here + j * k.lanes, k.splat(fill))

    def _fill(self, k: Kernel, buffer: Any, here: Any, columns: tuple[int, int], fill: float) -> None:
        with k.loop(*columns) as j:
            k.put(buffer, here + j * k.lanes, k.splat(fill))

    def _copy(self, k: Kernel, source: Any, begin: Any, buffer: Any, here: Any, count: int) -> None:
        """So many columns of a row, the first ``begin`` elements into the first image."""
        unit = self.window.axes[1].unit
        span = self.window._strips(count)
        if not span:
            with k.loop(count) as j:
                k.put(buffer, here + j * k.lanes, self._column(k, source, begin + j * unit))
            return
        for first, strips, _ in cover(span, QUARTER):
            with k.loop(strips) as strip:
                values = self._strip(k, source, begin + (first + strip * QUARTER))
                for e, value in enumerate(values):
                    column, rest = divmod(first + e, unit)
                    if rest == 0:
                        k.put(buffer, here + (column + strip * (QUARTER // unit)) * k.lanes, value)

    def _column(self, k: Kernel, source: Any, begin: Any) -> Any:
        """One element of every image."""
        from tvm.script.ir_builder import tirx as T

        return source[T.Ramp(begin, self._image, k.lanes)]

    def _strip(self, k: Kernel, source: Any, begin: Any) -> list[Any]:
        """Four neighbours of every image, one vector each."""
        self.held.forget()
        return transpose_strip(
            k, self.held, lambda image: k.vector(source, begin + image * self._image, QUARTER), k.lanes
        )

    def store(
        self, k: Kernel, buffer: Any, at: Any, base: Any, corner: tuple[Any, Any],
        put: Callable[[Any, Any, int], None],
    ) -> None:  # fmt: skip
        """Take a finished line apart: ``put(value, offset in y, lanes)`` for each part of an image's row.

        ``base`` is the element offset of the line's channel plane of the first image in y.
        """
        window, g = self.window, self.window.geometry
        with k.loop(window.vectors // window.run) as i:
            here = k.bind(at + i * (window.run * k.lanes))
            there = k.bind(base + (corner[0] + i) * g.out_width + corner[1])
            for step, width in spans(k, window.run, QUARTER):
                for image, value in self._parts(k, buffer, here + step * k.lanes, width):
                    put(value, k.bind(there + step + image * (self.outputs * g.positions)), width)

    def _parts(self, k: Kernel, buffer: Any, at: Any, width: int) -> Iterator[tuple[int, Any]]:
        """Each image's elements of ``width`` vectors."""
        self.held.forget()
        rows = [k.bind(k.vector(buffer, at + j * k.lanes)) for j in range(width)]
        if width == QUARTER:
            for i, vector in enumerate(transpose_quarters(self.held, rows)):
                for image in range(i, k.lanes, QUARTER):
                    yield image, pick([vector], range(image - i, image - i + QUARTER))
            return
        for image in range(k.lanes):
            yield image, pick(rows, [image + j * k.lanes for j in range(width)])

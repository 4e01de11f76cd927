"""image_window: what a tile of output positions of several images reads, one image a lane.

Where maps are small, vectors of neighbouring positions are mostly padding and row ends.  Here a
vector holds one position of ``lanes`` images: a channel's window is ``[rows][columns][lanes]``,
so output (i, j) reads tap (r, s) ``offset(r, s)`` after its own step, every load is aligned, and
strides need no phases.  Staging transposes the images into place, storing transposes them back.
Images are taken ``lanes`` at a time; the last group starts early and computes some images again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.image_moves import ImageMoves
from sparsec.targets.kernels.shuffles import QUARTER, Registers
from sparsec.targets.kernels.spans import tile_start
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
        return tuple(self.at(i, j) for i in down for j in across)

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
        return self.at(r * dh // down.unit, s * dw // across.unit)

    def at(self, row: int, column: int) -> int:
        """Where element (row, column) of a channel's window is."""
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
        slow = 1.0 if not self.strips(across.count) else self._clipped
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

    def strips(self, count: int) -> int:
        """Elements of a row that so many columns span, if they are loaded in quarters of vectors; else 0."""
        unit = self.axes[1].unit
        span = (count - 1) * unit + 1
        return span if span >= QUARTER and QUARTER % unit == 0 else 0

    def moves(self, k: Kernel, outputs: int) -> ImageMoves:
        """What stages and stores in a kernel whose y has so many channels; made at its start."""
        return ImageMoves(self, Registers(k, 4 * QUARTER), outputs)

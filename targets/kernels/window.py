"""window: what a tile of output positions reads, staged as padded planes in scratch memory.

A tile is ``rows`` x ``columns`` outputs of one image.  For each channel its window holds the
inputs those outputs read, padding included, as one plane per *phase*: with stride 2 the even and
the odd input rows and columns are set apart while they are copied.  Planes have rows ``pitch``
apart, so output (i, j) reads tap (r, s) at ``offset(r, s) + i * pitch + j``: a convolution is a
sparse matrix product with constant offsets (direct sparse convolution, Park et al. 2017), on
vectors of ``lanes`` consecutive positions that run over row ends, or ``by_row`` begin anew with
each row.  All tiles have one shape: the last of a row or column starts early and computes some
outputs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.target import Target

#: from more phases than this on, staging them is a loop
_MANY_PHASES = 16


@dataclass(frozen=True, slots=True)
class Phase:
    """Input rows ``vertical + i * stride`` and columns ``horizontal + j * stride`` of a window."""

    vertical: int
    horizontal: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Window:
    """The window of a tile of ``rows`` x ``columns`` outputs for vectors of ``lanes``."""

    geometry: Geometry
    rows: int
    columns: int
    lanes: int
    by_row: bool = False

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that taps read."""
        g = self.geometry
        (high, wide), (sh, sw), (dh, dw) = g.kernel, g.strides, g.dilation
        vertical = _reach(high, sh, dh)
        horizontal = _reach(wide, sw, dw)
        return tuple(
            Phase(v, h, self.rows + down, self.columns + right)
            for v, down in vertical.items()
            for h, right in horizontal.items()
        )

    @cached_property
    def whole_rows(self) -> bool:
        """Whether a tile is as wide as the output."""
        return self.columns == self.geometry.out_width

    @cached_property
    def gap(self) -> int:
        """Zeros that end one row and begin the next, where rows can share them; else 0."""
        g = self.geometry
        left = g.padding[1]
        right = self.columns - 1 + (g.kernel[1] - 1) * g.dilation[1] + 1 - g.width - left
        if self.whole_rows and g.strides[1] == 1 and left > 0 and right > 0:
            return max(left, right)
        return 0

    @cached_property
    def pitch(self) -> int:
        """Elements from one row of a plane to the next."""
        return self.geometry.width + self.gap if self.gap else max(p.columns for p in self.phases)

    @cached_property
    def plane(self) -> int:
        """Elements of a plane."""
        return max(p.rows for p in self.phases) * self.pitch + (self.gap and self.geometry.padding[1])

    @cached_property
    def size(self) -> int:
        """Elements of one channel's window, rounded up to whole vectors."""
        return -(-len(self.phases) * self.plane // self.lanes) * self.lanes

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Where each vector of positions begins, as elements from the tile's first output."""
        if self.by_row:
            across = range(0, self.columns, self.lanes)
            return tuple(i * self.pitch + j for i in range(self.rows) for j in across)
        return tuple(range(0, (self.rows - 1) * self.pitch + self.columns, self.lanes))

    @cached_property
    def vectors(self) -> int:
        """Vectors that cover the tile."""
        return len(self.steps)

    @cached_property
    def line(self) -> int:
        """Elements of those vectors."""
        return self.vectors * self.lanes

    @cached_property
    def line_pitch(self) -> int:
        """Elements of those vectors from one row to the next."""
        return -(-self.columns // self.lanes) * self.lanes if self.by_row else self.pitch

    @property
    def straight(self) -> bool:
        """Whether vectors are neighbours in y."""
        return self.rows == 1 and self.columns == self.line

    @property
    def turns(self) -> float:
        """Turns a load takes: one that is not aligned often touches two cache lines."""
        aligned = self.geometry.taps == 1 and not self.gap
        return 1.0 if aligned else 1 + (self.lanes * 4 - 4) / 64

    @property
    def images(self) -> int:
        """Images whose number the code depends on."""
        return 0

    @property
    def repeats(self) -> int:
        """Images in all, one where only known at run time."""
        return self.geometry.images or 1

    @cached_property
    def tiles(self) -> tuple[int, int]:
        """Tiles down and across one image."""
        g = self.geometry
        return -(-g.out_height // self.rows), -(-g.out_width // self.columns)

    def floats(self, channels: int) -> int:
        """Scratch elements of the windows of so many channels, the last vectors' overrun included."""
        return channels * self.size + self.lanes

    def offset(self, r: int, s: int) -> int:
        """Where in a channel's window output (0, 0) finds tap (r, s)."""
        g = self.geometry
        (sh, sw), (dh, dw) = g.strides, g.dilation
        down, vertical = divmod(r * dh, sh)
        right, horizontal = divmod(s * dw, sw)
        places = [(p.vertical, p.horizontal) for p in self.phases]
        return places.index((vertical, horizontal)) * self.plane + down * self.pitch + right

    def first_image(self, k: Kernel, number: Any) -> Any:
        """The image whose tiles come ``number``-th."""
        return number

    def moves(self, k: Kernel, outputs: int) -> Window:
        """What stages and stores in a kernel whose y has so many channels."""
        return self

    def staging_cycles(self, target: Target) -> float:
        """Rough cycles to stage one channel."""
        return len(self.phases) * self.phases[0].rows * (1 + 2.5 * -(-self.pitch // self.lanes))

    def store_cycles(self, target: Target, rows: int) -> float:
        """Rough cycles to take one line of vectors apart; y has so many ``rows``."""
        return self.rows * (4 + 2 * -(-self.columns // self.lanes)) + self.vectors

    def corner(self, k: Kernel, tile: Any) -> tuple[Any, Any]:
        """First output row and column of tile number ``tile`` of an image."""
        g, (down, across) = self.geometry, self.tiles
        return (
            tile_start(k, k.bind(tile // across), down, self.rows, g.out_height),
            tile_start(k, k.bind(tile % across), across, self.columns, g.out_width),
        )

    def clear(self, k: Kernel, buffer: Any, at: int, channels: int, fill: float = 0.0) -> None:
        """Fill the windows once; staging never touches the padding between rows again."""
        count = self.floats(channels) // self.lanes
        with k.loop(count) as i:
            k.put(buffer, at + i * self.lanes, k.splat(fill))

    def stage(
        self, k: Kernel, source: Any, base: Any, channels: Any, buffer: Any, at: Any, corner: tuple[Any, Any],
        fill: float = 0.0,
    ) -> None:  # fmt: skip
        """Copy the windows of ``channels`` channels of the tile at ``corner``.

        ``base`` is the element offset of the first channel's plane in ``source``; the windows go
        to ``buffer`` from ``at`` on.
        """
        g = self.geometry
        with k.loop(channels) as c:
            plane = k.bind(base + c * (g.height * g.width))
            for first, count, phase in self._runs:
                # a long run of phases is a loop: strides of hundreds would make endless code
                with k.loop(count) as shift:
                    target = k.bind(at + c * self.size + (first + shift) * self.plane)
                    moved = shift if count > 1 else None
                    self._stage_phase(k, source, plane, buffer, target, phase, (*corner, moved), fill)

    @cached_property
    def _runs(self) -> list[tuple[int, int, Phase]]:
        """The phases one by one, or runs of neighbours where there are many: (first, count, phase)."""
        single = [(i, 1, p) for i, p in enumerate(self.phases)]
        wide = len({p.horizontal for p in self.phases})
        if len(self.phases) <= _MANY_PHASES or any(p.horizontal != i % wide for i, _, p in single):
            return single
        heads = [i for i, _, p in single if p.horizontal == 0]
        columns = max(p.columns for p in self.phases)
        return [(i, wide, replace(self.phases[i], columns=columns)) for i in heads]

    def _stage_phase(
        self, k: Kernel, source: Any, plane: Any, buffer: Any, target: Any, phase: Phase,
        corner: tuple[Any, Any, Any], fill: float,
    ) -> None:  # fmt: skip
        """One phase; the third of ``corner`` is the column the phase begins at, where a loop says."""
        from tvm.script.ir_builder import tirx as T

        g = self.geometry
        first = k.bind(corner[0] * g.strides[0] + (phase.vertical - g.padding[0]))
        lowest = (g.out_height - self.rows + phase.rows - 1) * g.strides[0] + phase.vertical - g.padding[0]
        inside = g.padding[0] == 0 and lowest < g.height

        def stage_row(row: Any, here: Any) -> None:
            if corner[2] is None:
                self._stage_row(k, source, row, buffer, here, phase, corner[1], fill)
            else:
                start = k.bind(corner[1] * g.strides[1] + (corner[2] - g.padding[1]))
                self._copy_clipped(k, source, row, start, buffer, here, phase, fill)

        with k.loop(phase.rows) as i:
            y = k.bind(first + i * g.strides[0])
            here = k.bind(target + i * self.pitch)
            row = k.bind(plane + y * g.width)
            if inside:
                stage_row(row, here)
            else:
                with T.If(T.And(y >= 0, y < g.height)):
                    with T.Then():
                        stage_row(row, here)
                    with T.Else():
                        self._fill_row(k, buffer, here, phase, fill, corner[2] is None)

    def _fill_row(self, k: Kernel, buffer: Any, here: Any, phase: Phase, fill: float, alone: bool) -> None:
        """A row that lies outside x."""
        low, high = self._data(phase) if self.whole_rows and alone else (0, phase.columns)
        for at, width in spans(k, high - low, self.lanes):
            k.put(buffer, here + low + at, k.splat(fill, width), width)

    def _data(self, phase: Phase) -> tuple[int, int]:
        """The columns [low, high) of a phase that lie inside x, for tiles of whole rows."""
        g = self.geometry
        stride, first = g.strides[1], phase.horizontal - g.padding[1]
        low = max(0, -(first // stride))
        # where rows share their padding, a row holds all of x, read or not
        columns = g.width + g.padding[1] if self.gap else phase.columns
        return low, max(low, min(columns, (g.width - 1 - first) // stride + 1))

    def _stage_row(
        self, k: Kernel, source: Any, row: Any, buffer: Any, here: Any, phase: Phase, x0: Any, fill: float
    ) -> None:
        g = self.geometry
        stride, first = g.strides[1], phase.horizontal - g.padding[1]
        if self.whole_rows:
            low, high = self._data(phase)
            self._copy(k, source, row + (first + low * stride), buffer, here + low, high - low, stride)
            return
        start = k.bind(x0 * stride + first)
        last = (g.out_width - self.columns) * stride + first + (phase.columns - 1) * stride
        if first >= 0 and last < g.width:
            self._copy(k, source, row + start, buffer, here, phase.columns, stride)
            return
        self._copy_clipped(k, source, row, start, buffer, here, phase, fill)

    def _copy_clipped(
        self, k: Kernel, source: Any, row: Any, start: Any, buffer: Any, here: Any, phase: Phase, fill: float
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        stride, width = self.geometry.strides[1], self.geometry.width
        end = start + (phase.columns - 1) * stride
        with T.If(T.And(start >= 0, end < width)):
            with T.Then():
                self._copy(k, source, row + start, buffer, here, phase.columns, stride)
            with T.Else():
                for at, lanes in spans(k, phase.columns, self.lanes):
                    k.put(buffer, here + at, k.splat(fill, lanes), lanes)
                zero, step = k.constant(0), k.constant(stride)
                low = k.bind(T.truncdiv(T.max(zero - start, zero) + (stride - 1), step))
                after = T.truncdiv(T.max(width - start + (stride - 1), zero), step)
                high = k.bind(T.min(after, k.constant(phase.columns)))
                with k.loop(low, high) as j:
                    k.put(buffer, here + j, source[row + start + j * stride], 1)

    def _copy(
        self, k: Kernel, source: Any, begin: Any, buffer: Any, here: Any, count: int, stride: int
    ) -> None:
        for at, width in spans(k, count, self.lanes):
            k.put(buffer, here + at, strided(k, source, begin + at * stride, stride, width), width)

    def store(
        self, k: Kernel, buffer: Any, at: Any, base: Any, corner: tuple[Any, Any],
        put: Callable[[Any, Any, int], None],
    ) -> None:  # fmt: skip
        """Take a finished line of positions apart: ``put(value, offset in y, lanes)`` for each vector.

        ``base`` is the element offset of the line's channel plane in y.
        """
        g = self.geometry
        with k.loop(self.rows) as i:
            here = k.bind(at + i * self.line_pitch)
            there = k.bind(base + (corner[0] + i) * g.out_width + corner[1])
            for step, width in spans(k, self.columns, self.lanes):
                put(k.vector(buffer, here + step, width), k.bind(there + step), width)


@cache
def _reach(taps: int, stride: int, dilation: int) -> dict[int, int]:
    """For each phase of one axis that taps read, how many steps beyond the tile they reach."""
    found: dict[int, int] = {}
    for tap in range(taps):
        step, phase = divmod(tap * dilation, stride)
        found[phase] = max(found.get(phase, 0), step)
    return dict(sorted(found.items()))


def tile_start(k: Kernel, number: Any, count: int, step: int, size: int) -> Any:
    """Where tile ``number`` of ``count`` begins, the last early enough to end at ``size``."""
    from tvm.script.ir_builder import tirx as T

    if count == 1:
        return k.constant(0)
    start = number * step
    return k.bind(start if size % step == 0 else T.min(start, k.constant(size - step)))


def cover(count: int, lanes: int) -> list[tuple[int, int, int]]:
    """Vectors that cover ``count`` elements and nothing else: runs of (first, vectors, width).

    The last overlaps the one before it; fewer elements than a vector take narrower ones.
    """
    if count <= 0:
        return []
    width = lanes
    while width > count:
        width //= 2
    whole, left = divmod(count, width)
    runs = [(0, whole, width)]
    if left:
        runs.append((count - width, 1, width))
    return runs


def spans(k: Kernel, count: int, lanes: int) -> Iterator[tuple[Any, int]]:
    """Emit the loops over :func:`cover`; yields (offset, width) inside them."""
    for first, vectors, width in cover(count, lanes):
        if vectors == 1:
            yield first, width
            continue
        with k.loop(vectors) as j:
            yield k.bind(first + j * width), width


def strided(k: Kernel, buffer: Any, offset: Any, stride: int, lanes: int) -> Any:
    """``lanes`` elements ``stride`` apart, without reading past the last."""
    from tvm.script.ir_builder import tirx as T

    if stride == 1 or lanes == 1:
        return k.vector(buffer, offset, lanes)
    if stride != 2:
        return buffer[T.Ramp(offset, stride, lanes)]
    first, second = (k.bind(k.vector(buffer, offset + start, lanes)) for start in (0, lanes - 1))
    half = lanes // 2
    return T.Shuffle([first, second], [2 * j if j < half else 2 * j + 1 for j in range(lanes)])

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

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.spans import tile_start
from sparsec.targets.kernels.window_moves import WindowMoves
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

    def moves(self, k: Kernel, outputs: int) -> WindowMoves:
        """What stages and stores in a kernel whose y has so many channels."""
        return WindowMoves(self)

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

    @cached_property
    def runs(self) -> list[tuple[int, int, Phase]]:
        """The phases one by one, or runs of neighbours where there are many: (first, count, phase)."""
        single = [(i, 1, p) for i, p in enumerate(self.phases)]
        wide = len({p.horizontal for p in self.phases})
        if len(self.phases) <= _MANY_PHASES or any(p.horizontal != i % wide for i, _, p in single):
            return single
        heads = [i for i, _, p in single if p.horizontal == 0]
        columns = max(p.columns for p in self.phases)
        return [(i, wide, replace(self.phases[i], columns=columns)) for i in heads]

    def data(self, phase: Phase) -> tuple[int, int]:
        """The columns [low, high) of a phase that lie inside x, for tiles of whole rows."""
        g = self.geometry
        stride, first = g.strides[1], phase.horizontal - g.padding[1]
        low = max(0, -(first // stride))
        # where rows share their padding, a row holds all of x, read or not
        columns = g.width + g.padding[1] if self.gap else phase.columns
        return low, max(low, min(columns, (g.width - 1 - first) // stride + 1))


@cache
def _reach(taps: int, stride: int, dilation: int) -> dict[int, int]:
    """For each phase of one axis that taps read, how many steps beyond the tile they reach."""
    found: dict[int, int] = {}
    for tap in range(taps):
        step, phase = divmod(tap * dilation, stride)
        found[phase] = max(found.get(phase, 0), step)
    return dict(sorted(found.items()))

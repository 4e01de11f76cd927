"""stencil: how a plane of one channel is cut into blocks of output positions.

Depthwise convolution and pooling read every input element a few times only, so nothing is staged:
vectors are loaded from x where they lie, and shuffled where lanes are strided or padding.  A plane
is cut into blocks of ``rows`` x ``vectors`` accumulators; those at the border are emitted one by
one, those inside share loops.  All positions but a block's corner are constants.  Where that would
be too much code, ``rolled`` loops over the taps instead.

A map narrower than a vector takes one vector a row, whose last lanes hold what is about to be
overwritten: rows are stored in order, and the last one ends with the plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.shuffles import QUARTER


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

"""strips: sliding windows over single channels, a strip of a column of outputs a thread.

Neighbouring threads make neighbouring columns, so that a load of a warp reads neighbours in memory, and a
thread makes several rows of one column: an input row that serves several of them is read once.  For rows
of D outputs and windows of R by S that is ``S (D + R - 1) / D`` loads an output, 3.75 for D = 8 and 3x3:
an L1 that gives 32 numbers a cycle keeps ahead of memory, which has 5 halves or 2.5 floats to give to a
multiprocessor of an H200.  Columns of all channels and images are one row of threads: no map is too small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import Array, Kernel, int64
from sparsec.targets.cuda.parts.positions import inside, unravel
from sparsec.targets.cuda.tir import T
from sparsec.targets.geometry import Geometry

#: threads of a block
THREADS = 128

#: most rows a strip has, and most multiply-adds of straight code
_MOST_ROWS, _MOST_STEPS = 8, 600

#: threads that keep a GPU busy: shorter strips while there are fewer
_ENOUGH = 132 * 1024

#: takes (row of the strip, tap, value), the tap a number or an expression
Visit: TypeAlias = Callable[[int, Any, Any], None]


@dataclass(frozen=True, slots=True)
class Strips:
    """How planes of outputs are cut.

    ``planes`` of outputs an image has, each read from a plane of x (``planes`` a multiple of
    ``geometry.groups``); ``down`` rows a strip.
    """

    geometry: Geometry
    planes: int
    down: int

    @property
    def count(self) -> int:
        """Strips of a column."""
        return -(-self.geometry.out_height // self.down)

    @property
    def threads_per_image(self) -> int:
        """Threads that an image takes."""
        return self.planes * self.count * self.geometry.out_width

    @property
    def straight(self) -> bool:
        """Whether taps are written out."""
        return self.geometry.taps * self.down <= _MOST_STEPS


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thread works: its image (int64), plane, first row and column (int32).

    ``source`` and ``result`` are the planes' first elements in x and in y, int64.
    """

    image: Any
    plane: Any
    row: Any
    column: Any
    source: Any
    result: Any


def choose(geometry: Geometry, planes: int) -> Strips:
    """Strips as tall as leaves enough threads."""
    columns = planes * (geometry.images or 1) * geometry.out_width
    down = min(_MOST_ROWS, geometry.out_height, max(1, _MOST_STEPS // geometry.taps))
    while down > 1 and columns * -(-geometry.out_height // down) < _ENOUGH:
        down -= 1
    if geometry.taps * down > _MOST_STEPS:
        down = 1
    strips = -(-geometry.out_height // down)
    return Strips(geometry, planes, -(-geometry.out_height // strips))


def run(k: Kernel, strips: Strips, body: Callable[[Place], None]) -> None:
    """Emit ``body`` for the strip of each thread; the kernel's size ``images`` says how many there are."""
    g = strips.geometry
    sizes = [strips.planes, strips.count, g.out_width]
    image, plane, strip, column = unravel(k, k.bind(k.block * THREADS), k.thread, sizes)
    with k.when(image < k.sizes["images"]):
        shared = strips.planes // g.groups
        source = plane if shared == 1 else k.bind(T.truncdiv(plane, shared))
        body(
            Place(
                image, plane, k.bind(strip * strips.down), column,
                k.bind((image * g.groups + int64(source)) * (g.height * g.width)),
                k.bind((image * strips.planes + int64(plane)) * g.positions),
            )
        )  # fmt: skip


def taps(k: Kernel, strips: Strips, place: Place, fill: float, visit: Visit) -> None:
    """Emit ``visit`` for every row of the strip and every tap of it; what lies outside x is ``fill``."""
    if strips.straight:
        _straight(k, strips, place, fill, visit)
    else:
        _rolled(k, strips, place, fill, visit)


def _straight(k: Kernel, strips: Strips, place: Place, fill: float, visit: Visit) -> None:
    """Each input row once, for all rows of the strip that read it."""
    g, (high, wide) = strips.geometry, strips.geometry.kernel
    top = k.bind(place.row * g.strides[0] - g.padding[0])
    left = k.bind(place.column * g.strides[1] - g.padding[1])
    columns = [k.bind(left + s * g.dilation[1]) for s in range(wide)]
    # conditions that a row shares, and those a column shares, are worked out once
    across = [k.bind(inside(column, g.width)) for column in columns]
    uses: dict[int, list[tuple[int, int]]] = {}
    for i in range(strips.down):
        for r in range(high):
            uses.setdefault(i * g.strides[0] + r * g.dilation[0], []).append((i, r))
    for row, users in sorted(uses.items()):
        y = k.bind(top + row)
        down = k.bind(inside(y, g.height))
        start = k.bind(place.source + int64(y * g.width))
        for s in range(wide):
            value = _read(k, k["x"], start + int64(columns[s]), T.And(down, across[s]), fill)
            for i, r in users:
                visit(i, r * wide + s, value)


def _rolled(k: Kernel, strips: Strips, place: Place, fill: float, visit: Visit) -> None:
    """Loops over the taps, for one row."""
    assert strips.down == 1
    g = strips.geometry
    with k.loop(g.kernel[0]) as r:
        y = k.bind(place.row * g.strides[0] - g.padding[0] + r * g.dilation[0])
        with k.when(inside(y, g.height)), k.loop(g.kernel[1]) as s:
            x = k.bind(place.column * g.strides[1] - g.padding[1] + s * g.dilation[1])
            at = k.bind(place.source + int64(y * g.width + x))
            visit(0, k.bind(r * g.kernel[1] + s), _read(k, k["x"], at, inside(x, g.width), fill))


def _read(k: Kernel, x: Array, index: Any, condition: Any, fill: float) -> Any:
    value = x[index] if x.dtype == "float32" else T.cast(x[index], "float32")
    return k.bind(T.if_then_else(condition, value, expressions.constant(fill)))

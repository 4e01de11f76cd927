"""stencil_planes: how the planes of an image become tiles, and the loops over a plane's blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.shuffles import Registers
from sparsec.targets.kernels.stencil import Run, Stencil
from sparsec.targets.kernels.stencil_block import Block

#: cycles of work that are worth a tile of their own
TILE_CYCLES = 4000


@dataclass(frozen=True, slots=True)
class Division:
    """How the planes of an image become tiles: ``planes`` to a tile, or ``parts`` tiles a plane."""

    planes: int
    parts: int

    def tiles(self, channels: int) -> int:
        """Tiles of an image."""
        return -(-channels // self.planes) * self.parts


def divide(stencil: Stencil | None, channels: int, cycles: float) -> Division:
    """Tiles of some thousand cycles, at least sixteen where there are as many planes."""
    if cycles < TILE_CYCLES:
        return Division(max(1, min(channels // 16, round(TILE_CYCLES / cycles))), 1)
    if stencil is None or stencil.ragged or channels >= 16:
        return Division(1, 1)
    return Division(1, max(1, min(stencil.groups, round(cycles / TILE_CYCLES))))


@contextmanager
def planes_of(k: Kernel, division: Division, channels: int) -> Iterator[tuple[Any, Any, Any]]:
    """The loops over tiles and their planes: yields image, channel, and which part of the plane."""
    from tvm.script.ir_builder import tirx as T

    per_image = division.tiles(channels)
    with k.tiles() as tile:
        image, within = k.bind(tile // per_image), k.bind(tile % per_image)
        if division.planes == 1:
            yield image, k.bind(within // division.parts), k.bind(within % division.parts)
            return
        first = k.bind(within * division.planes)
        count = k.constant(division.planes)
        if channels % division.planes:
            count = k.bind(T.min(count, channels - first))
        with k.loop(count) as j:
            yield image, k.bind(first + j), k.constant(0)


def sweep(
    k: Kernel, held: Registers, stencil: Stencil, planes: tuple[Any, Any], part: Any, parts: int, fill: float,
    emit: Callable[[Block], None],
) -> None:  # fmt: skip
    """Call ``emit`` for every block of part ``part`` of a plane; ``planes`` are offsets in x and y."""
    groups = stencil.groups
    low, high = [k.bind(p * groups // parts) for p in (part, part + 1)] if parts > 1 else [0, groups]

    def along(down: Run, row: Any) -> None:
        for across in stencil.across:
            start = stencil.starts[across.start]
            with _walk(k, across, k.constant(0), across.count) as i:
                column = k.constant(start) if i is None else k.bind(start + i * (across.size * stencil.width))
                emit(Block(k, held, stencil, down, across, (row, column), planes, fill))

    at = 0
    for down in stencil.down:
        with _part(k, down, at, low, high, parts) as i:
            if isinstance(i, bool):
                along(down, k.constant(down.start))
            else:
                along(down, k.bind(down.start + i * down.size))
        at += down.count


@contextmanager
def _walk(k: Kernel, run: Run, low: Any, high: Any) -> Iterator[Any]:
    if run.count == 1:
        yield None
        return
    with k.loop(low, high) as i:
        yield i


@contextmanager
def _part(k: Kernel, run: Run, at: int, low: Any, high: Any, parts: int) -> Iterator[Any]:
    """The blocks of a run, its first being number ``at``, that lie in [low, high)."""
    from tvm.script.ir_builder import tirx as T

    if run.count == 1:
        if parts == 1:
            yield True
            return
        with k.when(T.And(low <= at, at < high)):
            yield True
        return
    if parts == 1:
        with k.loop(run.count) as i:
            yield i
        return
    begin = k.bind(T.max(low - at, k.constant(0)))
    end = k.bind(T.max(begin, T.min(high - at, k.constant(run.count))))
    with k.loop(begin, end) as i:
        yield i

"""float_tiles: products of float32 tiles by plain multiply-adds, for layers that tensor cores would round.

A thread makes ``high`` x ``wide`` elements.  Per four of K it reads four neighbours of each of its rows of
A and four of its columns of B at each of them, 16 bytes each: 16 multiply-adds a read for 8 x 8, four times
what shared memory needs to keep the units busy.  A warp is 4 x 8 threads: eight read the same rows of A,
four the same columns of B, and what differs lies in different banks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda.builder import Array, Kernel
from sparsec.targets.cuda.parts.mma_tiles import Staged
from sparsec.targets.cuda.tir import tirx

#: elements of 16 bytes, and what lines of A are padded with against bank conflicts
QUAD = 4


@dataclass(frozen=True, slots=True)
class FloatTiling:
    """A block makes ``rows`` x ``columns``, ``depth`` a step; a thread ``high`` x ``wide`` of them.

    ``rows / high`` must be a multiple of 4 and ``columns / wide`` one of 8, ``wide`` and ``depth`` of 4.
    """

    rows: int
    columns: int
    depth: int
    high: int
    wide: int
    stages: int

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return self.rows // self.high * (self.columns // self.wide)

    @property
    def accumulators(self) -> int:
        """Accumulators of a thread: [high][wide]."""
        return self.high * self.wide


def staged(k: Kernel, tiling: FloatTiling) -> tuple[Staged, Staged]:
    """Shared memory for A, whose lines are rows with K along them, and B, whose lines are K."""
    return (
        Staged(k, tiling.rows, tiling.depth, tiling.stages, "float32", padding=QUAD),
        Staged(k, tiling.depth, tiling.columns, tiling.stages, "float32", padding=0),
    )


def zeros(k: Kernel, tiling: FloatTiling) -> Array:
    """A thread's accumulators, all 0."""
    accumulators = k.registers(tiling.accumulators)
    for i in range(tiling.accumulators):
        accumulators.put(i, tirx.FloatImm("float32", 0.0))
    return accumulators


def _thread_place(k: Kernel, tiling: FloatTiling) -> tuple[Any, Any]:
    """The thread's number along rows and along columns."""
    across = tiling.columns // tiling.wide // 8
    return k.bind(k.lane // 8 + k.warp // across * 4), k.bind(k.lane % 8 + k.warp % across * 8)


def multiplier(
    k: Kernel, tiling: FloatTiling, a: Staged, b: Staged, accumulators: Array
) -> Callable[[Any], None]:
    """Prepare the multiplication of two tiles; the result, ``multiply(stage)``, adds a step's products."""
    high, wide = tiling.high, tiling.wide
    row, column = _thread_place(k, tiling)
    between_rows, between_columns = tiling.rows // high, tiling.columns // wide * QUAD
    starts = k.bind(row * a.pitch), k.bind(column * QUAD)
    left, right = k.registers(high * QUAD), k.registers(wide)

    def multiply(stage: Any) -> None:
        from_a, from_b = k.bind(starts[0] + stage * a.size), k.bind(starts[1] + stage * b.size)
        for quad in range(0, tiling.depth, QUAD):
            for i in range(high):
                at = from_a + i * between_rows * a.pitch + quad
                left.put(i * QUAD, a.array.vector(at, QUAD), QUAD)
            for part in range(QUAD):
                for j in range(0, wide, QUAD):
                    at = from_b + (quad + part) * b.pitch + j // QUAD * between_columns
                    right.put(j, b.array.vector(at, QUAD), QUAD)
                for i in range(high):
                    for j in range(wide):
                        to = i * wide + j
                        accumulators.put(to, accumulators[to] + left[i * QUAD + part] * right[j])

    return multiply


def deliver(
    k: Kernel,
    tiling: FloatTiling,
    accumulators: Array,
    store: Callable[[Any, Any, list[Any]], None],
    lanes: int,
) -> None:
    """Hand out what a block has made, ``lanes`` (1, 2 or 4) neighbours of a row at a time.

    ``store(line, first, values)`` as in :func:`sparsec.targets.cuda.parts.mma_epilogue.deliver`.
    """
    row, column = _thread_place(k, tiling)
    for i in range(tiling.high):
        for j in range(0, tiling.wide, lanes):
            first = column * QUAD + j // QUAD * (tiling.columns // tiling.wide * QUAD) + j % QUAD
            values = [accumulators[i * tiling.wide + j + e] for e in range(lanes)]
            store(row + i * (tiling.rows // tiling.high), first, values)

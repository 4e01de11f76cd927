"""mma_tiles: what matrix products on tensor cores are built of.

A block makes a tile of ``D[rows, columns] = A[rows, depth] B[depth, columns]`` in float32 accumulators,
step by step of ``depth``.  The tiles of A and B go from memory to shared memory by asynchronous copies of
16 bytes that run several steps ahead (:func:`pipeline`), from there to registers by ``ldmatrix``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Array, Kernel
from sparsec.targets.cuda.parts.staging import CHUNK, Place, Reader, Source, Staged, copier, matrix
from sparsec.targets.cuda.tir import tirx

__all__ = [
    "ACCUMULATORS", "CHUNK", "SLAB", "Fragments", "Place", "Reader", "Source", "Staged", "Tiling", "copier",
    "matrix", "multiplier", "pipeline", "warp_place", "zeros",
]  # fmt: skip

#: lines and elements of a fragment
SLAB = 16
#: the accumulators of one multiply instruction in a thread: 16 rows by 8 columns in 32 threads
ACCUMULATORS = 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """What a block makes: ``rows`` x ``columns``, ``depth`` a step, by ``high`` x ``wide`` warps.

    A warp's part is a multiple of 16 rows by a multiple of 16 columns; ``stages`` steps are in shared
    memory. ``grouped``: four warps each make 64 rows together, 16 of every 64 each, as ``wgmma`` does;
    ``high`` is a multiple of 4 then.
    """

    rows: int
    columns: int
    depth: int
    high: int
    wide: int
    stages: int
    grouped: bool = False

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return 32 * self.high * self.wide

    @property
    def warp_rows(self) -> int:
        """Rows of one warp."""
        return self.rows // self.high

    @property
    def warp_columns(self) -> int:
        """Columns of one warp."""
        return self.columns // self.wide

    @property
    def accumulators(self) -> int:
        """Accumulators of a thread."""
        return self.warp_rows * self.warp_columns // 32

    @property
    def slab_step(self) -> int:
        """Rows from one of a warp's 16 to the next."""
        return 4 * SLAB if self.grouped else SLAB

    def first_row(self, warp: Any) -> Any:
        """The first row of the ``warp``-th of ``high`` warps."""
        if self.grouped:
            return warp // 4 * (4 * self.warp_rows) + warp % 4 * SLAB
        return warp * self.warp_rows


class Fragments:
    """A warp's part of a tile as the registers of multiply instructions.

    Args of the constructor:
        k: the kernel.
        staged: the tile.  Its lines are rows of A or columns of B, and K runs along them; with ``across``
            its lines are K, and rows or columns run along them.
        first: the warp's first row or column, a multiple of 16.
        slabs: how many times 16 rows or columns.
        second: whether they are B's.
        across: see ``staged``.
    """

    def __init__(
        self, k: Kernel, staged: Staged, first: Any, slabs: int, second: bool, across: bool = False
    ) -> None:
        self._k, self._staged, self._slabs, self._across = k, staged, slabs, across
        self.words = k.registers(2 * slabs * 4, "uint32")
        # eight lanes point at the eight lines of each of four 8x8 matrices: which of the four are 8 lines
        # on, and which a chunk on, makes the registers come in the order of A's or of B's fragments
        by_line, by_chunk = k.lane // 8 % 2, k.lane // 16
        if second != across:
            by_line, by_chunk = by_chunk, by_line
        line, chunk = k.bind(k.lane % 8 + by_line * 8), k.bind(by_chunk)
        if across:
            self._starts = [k.bind(staged.place(line, first // CHUNK + 2 * i + chunk)) for i in range(slabs)]
        else:
            count = staged.width // SLAB
            self._starts = [k.bind(staged.place(first + line, 2 * i + chunk)) for i in range(count)]

    def load(self, base: Any, part: int, turn: int) -> None:
        """Read the fragments of the ``part``-th 16 of K of the stage that begins at element ``base``."""
        load = instructions.ldmatrix_x4_trans if self._across else instructions.ldmatrix_x4
        for i in range(self._slabs):
            step = SLAB * self._staged.width
            at = self._starts[i] + part * step if self._across else self._starts[part] + i * step
            self._k.call(load, self.words.pointer(self._at(turn, i)), self._staged.array.pointer(base + at))

    def slab(self, turn: int, i: int) -> Any:
        """The four words of 16 rows of A, for ``mma``."""
        return self.words.pointer(self._at(turn, i))

    def half(self, turn: int, j: int) -> Any:
        """The two words of 8 columns of B."""
        return self.words.pointer(self._at(turn, j // 2) + j % 2 * 2)

    def _at(self, turn: int, i: int) -> int:
        return (turn % 2 * self._slabs + i) * 4


def zeros(k: Kernel, tiling: Tiling) -> Array:
    """A thread's accumulators, all 0: [16 rows][8 columns][4], of the warp's part."""
    accumulators = k.registers(tiling.accumulators)
    for i in range(tiling.accumulators):
        accumulators.put(i, tirx.FloatImm("float32", 0.0))
    return accumulators


def multiplier(
    k: Kernel, tiling: Tiling, a: tuple[Staged, bool], b: tuple[Staged, bool], accumulators: Array,
    right: Fragments | None = None,
) -> Callable[[Any], None]:  # fmt: skip
    """Prepare the multiplication of two tiles; the result, ``multiply(stage)``, adds a step's products.

    ``a`` and ``b`` are the tiles, and whether they are *across* (see :class:`Fragments`); ``right`` reads the
    latter's fragments otherwise than from stages.
    """
    row, column = warp_place(k, tiling)
    left = Fragments(k, a[0], row, tiling.warp_rows // SLAB, second=False, across=a[1])
    right = right or Fragments(k, b[0], column, tiling.warp_columns // SLAB, second=True, across=b[1])
    mma = instructions.mma_m16n8k16(a[0].array.dtype)
    halves = tiling.warp_columns // 8

    def multiply(stage: Any) -> None:
        bases = k.bind(stage * a[0].size), k.bind(stage * b[0].size)
        parts = tiling.depth // SLAB
        left.load(bases[0], 0, 0)
        right.load(bases[1], 0, 0)
        for part in range(parts):
            if part + 1 < parts:
                left.load(bases[0], part + 1, part + 1)
                right.load(bases[1], part + 1, part + 1)
            for i in range(tiling.warp_rows // SLAB):
                # to and fro, so that neighbours share an operand
                for j in range(halves) if i % 2 == 0 else reversed(range(halves)):
                    to = accumulators.pointer((i * halves + j) * ACCUMULATORS)
                    k.call(mma, to, left.slab(part, i), right.half(part, j))

    return multiply


def warp_place(k: Kernel, tiling: Tiling) -> tuple[Any, Any]:
    """The first row and column of the warp's part of the tile."""
    row = k.bind(tiling.first_row(k.warp % tiling.high))
    return row, k.bind(k.warp // tiling.high * tiling.warp_columns)


def pipeline(
    k: Kernel, stages: int, steps: Any, fetch: Callable[[Any, Any], None], compute: Callable[[Any], None]
) -> None:
    """All steps: ``fetch(stage, step)`` issues a step's copies, ``compute(stage)`` uses them.

    ``steps`` is an int32 expression or a number, 0 included; copies run ``stages - 1`` steps ahead.
    """
    ahead = stages - 1
    for step in range(ahead):
        if isinstance(steps, int):
            if step < steps:
                fetch(step, step)
        else:
            with k.when(steps > step):
                fetch(step, step)
        k.call(instructions.cp_async_commit)
    with k.loop(steps, dtype="int32") as step:
        k.call(instructions.cp_async_wait(ahead - 1))
        # all threads' copies of this step are there, and all have done with the stage that is written next
        k.sync()
        with k.when(step + ahead < steps):
            fetch((step + ahead) % stages, step + ahead)
        k.call(instructions.cp_async_commit)
        compute(step % stages)

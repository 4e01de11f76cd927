"""sparse_tiles: 2:4 weights as the operand A of sparse matrix instructions (``mma.sp``).

Of every four neighbours along K a row keeps two values and two 2-bit positions: half the bytes, and an
eighth of those again, of a dense weight of halves, and twice its operations a cycle.  A weight is cut into
tiles of 64 rows by 64 of K, each stored in the order the threads of a warp take it to registers, so that
tiles are copied as they are and fragments are read from shared memory 16 bytes a lane, without conflicts
and without ldmatrix:

* ``values`` [row tile][K tile][half of K][16 rows][lane][8]: lane ``4 g + t`` holds, of rows g and g + 8,
  the kept values 2 t, 2 t + 1 and 2 t + 8, 2 t + 9 of the 16 that a row has in 32 of K: (g, low), (g + 8,
  low), (g, high), (g + 8, high).
* ``positions`` uint32 [row tile][K tile][lane][4]: the ``i``-th word is of the ``i``-th 16 rows; lanes with
  t = 0, 1 hold it for the first 32 of K (selector 0), those with t = 2, 3 for the others (selector 1).  A
  lane's word is 16 of K, the first or second by t's parity: row g in its low half, g + 8 in its high half,
  four bits for four neighbours, the lower position in the lower two (PTX ISA, "Sparse matrix storage").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Array, Kernel, int64
from sparsec.targets.cuda.parts.mma_tiles import (
    ACCUMULATORS,
    SLAB,
    Place,
    Reader,
    Source,
    Staged,
    Tiling,
    copier,
    warp_place,
)  # fmt: skip

#: rows and K of a packed tile
TILE = 64
#: K of one instruction
DEEP = 32
#: what a packed tile has: values and words of positions
VALUES, WORDS = TILE * TILE // 2, 128


def pack(weight: Any, high: int) -> dict[str, Any]:
    """A 2:4 weight [M, K] in tiles; rows are padded with zeros to a multiple of ``high`` (a multiple of 64).

    Args:
        weight: at most two of every aligned four neighbours of a row are not 0.
        high: rows of the tile that a block makes.

    Returns:
        ``values``, of the weight's dtype, and ``positions``, uint32, both of one axis.
    """
    rows, inner = weight.shape
    down, deep = -(-rows // high) * high // TILE, -(-inner // TILE)
    padded = np.zeros((down * TILE, deep * TILE), weight.dtype)
    padded[:rows, :inner] = weight
    fours = padded.reshape(down * TILE, deep * TILE // 4, 4)
    # what is not 0 first, then zeros; in order, as the instruction wants it
    kept = np.sort(np.argsort(fours == 0, axis=2, kind="stable")[:, :, :2], axis=2)
    values = np.take_along_axis(fours, kept, axis=2)
    # [tile][16 rows][upper 8][g] [tile][32 of K][upper 8 of 16 kept][t][2]
    cut = values.reshape(down, 4, 2, 8, deep, 2, 2, 4, 2)
    ordered = cut.transpose(0, 4, 5, 1, 3, 7, 6, 2, 8)
    bits = (kept[:, :, 0] | kept[:, :, 1] << 2).astype(np.uint32)
    # [tile][16 rows][upper 8][g] [tile][32 of K][16 of K][four neighbours]: four of them are 16 bits
    nibbles = bits.reshape(down, 4, 2, 8, deep, 2, 2, 4)
    shorts = (nibbles << (4 * np.arange(4, dtype=np.uint32))).sum(axis=-1, dtype=np.uint32)
    words = shorts[:, :, 0] | shorts[:, :, 1] << np.uint32(16)
    lanes = words.transpose(0, 3, 2, 4, 5, 1)
    return {
        "values": np.ascontiguousarray(ordered).reshape(-1),
        "positions": np.ascontiguousarray(lanes).reshape(-1),
    }


def nbytes(rows: int, inner: int, high: int) -> int:
    """Bytes of a packed weight."""
    return -(-rows // high) * high // TILE * -(-inner // TILE) * (2 * VALUES + 4 * WORDS)


class PackedTiles:
    """A block's rows of a packed weight in shared memory, ``TILE`` of K a step."""

    def __init__(self, k: Kernel, tiling: Tiling, dtype: str) -> None:
        tiles = tiling.rows // TILE
        self.values = Staged(k, tiles, VALUES, tiling.stages, dtype, padding=0)
        self.positions = Staged(k, tiles, WORDS, tiling.stages, "uint32", padding=0)

    def copier(
        self, k: Kernel, values: Array, positions: Array, first: Any, deep: int
    ) -> Callable[[Any, Any], None]:
        """Prepare copying (``staging.copier``) of the tiles from ``first`` (int64) on, ``deep`` along K."""
        copy_values = copier(k, self.values, _stream(k, values, first, deep, VALUES))
        copy_positions = copier(k, self.positions, _stream(k, positions, first, deep, WORDS), 4)

        def copy(stage: Any, step: Any) -> None:
            copy_values(stage, step)
            copy_positions(stage, step)

        return copy


def _stream(k: Kernel, array: Array, first: Any, deep: int, size: int) -> Source:
    """Each line is a tile; each step the next tile along K."""

    def source(line: Any, element: Any) -> Reader:
        start = k.bind((first + int64(line)) * (deep * size) + int64(element))
        return lambda step: Place(array, start + step * size)

    return source


class DeepFragments:
    """A warp's part of B as the registers of sparse multiply instructions: 8 columns by 32 of K each.

    As :class:`sparsec.targets.cuda.parts.mma_tiles.Fragments`, whose arguments ``slabs`` counts in eights.
    """

    def __init__(self, k: Kernel, staged: Staged, first: Any, slabs: int, across: bool = False) -> None:
        self._k, self._staged, self._slabs, self._across = k, staged, slabs, across
        self.words = k.registers(2 * slabs * 4, "uint32")
        if across:
            self._starts = [k.bind(staged.place(k.lane, first // 8 + i)) for i in range(slabs)]
        else:
            line, count = first + k.lane % 8, staged.width // DEEP
            self._starts = [k.bind(staged.place(line, 4 * i + k.lane // 8)) for i in range(count)]

    def load(self, base: Any, part: int, turn: int) -> None:
        """Read the fragments of the ``part``-th 32 of K of the stage that begins at element ``base``."""
        load = instructions.ldmatrix_x4_trans if self._across else instructions.ldmatrix_x4
        for i in range(self._slabs):
            at = (
                self._starts[i] + part * DEEP * self._staged.width if self._across
                else self._starts[part] + i * 8 * self._staged.width
            )  # fmt: skip
            self._k.call(load, self.pointer(turn, i), self._staged.array.pointer(base + at))

    def pointer(self, turn: int, i: int) -> Any:
        """The four words of the ``i``-th 8 columns."""
        return self.words.pointer((turn % 2 * self._slabs + i) * 4)


def multiplier(
    k: Kernel, tiling: Tiling, a: PackedTiles, b: tuple[Staged, bool], accumulators: Array,
    right: DeepFragments | None = None,
) -> Callable[[Any], None]:  # fmt: skip
    """As ``mma_tiles.multiplier``, A being 2:4; the tiling's depth is ``TILE``, its rows a multiple of it."""
    row, column = warp_place(k, tiling)
    slabs, eights = tiling.warp_rows // SLAB, tiling.warp_columns // 8
    right = right or DeepFragments(k, b[0], column, eights, b[1])
    left, words = k.registers(2 * slabs * 4, "uint32"), k.registers(slabs, "uint32")
    tile, slab = row // TILE, row % TILE // SLAB
    stored = k.words(a.values.array)
    at_values = k.bind(tile * (VALUES // 2) + slab * 128 + k.lane * 4)
    at_words = k.bind(tile * WORDS + k.lane * 4 + slab)

    def load(stage: Any, part: int) -> None:
        base = at_values + stage * (a.values.size // 2)
        for i in range(slabs):
            # whole tiles when a warp has more than one's rows
            place = base + i // 4 * (VALUES // 2) + part * 512 + i % 4 * 128
            left.put((part % 2 * slabs + i) * 4, stored.vector(place, 4), 4)
        right.load(stage * b[0].size, part, part)

    def multiply(stage: Any) -> None:
        for i in range(0, slabs, 4):
            place = at_words + stage * a.positions.size + i // 4 * WORDS
            width = min(4, slabs)
            words.put(i, a.positions.array.vector(place, width), width)
        load(stage, 0)
        for part in range(2):
            if part == 0:
                load(stage, 1)
            mma = instructions.mma_sp_m16n8k32(b[0].array.dtype, part)
            for i in range(slabs):
                for j in range(eights) if i % 2 == 0 else reversed(range(eights)):
                    to = accumulators.pointer((i * eights + j) * ACCUMULATORS)
                    k.call(mma, to, left.pointer((part * slabs + i) * 4), right.pointer(part, j), words[i])

    return multiply

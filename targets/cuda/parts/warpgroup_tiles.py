"""warpgroup_tiles: tiles multiplied by Hopper's asynchronous matrix instructions (``wgmma``).

The tiles are those of :mod:`sparsec.targets.cuda.parts.mma_tiles`, 64 of K a step.  B always, and a dense
A, are read from shared memory by the instructions themselves; a 2:4 A goes through registers, so that one
packing of it serves ``mma.sp`` too, and what shared memory has to give is B's part: 128 bytes a cycle at
the full rate of the sparse units, all there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.targets.cuda import instructions, warpgroup
from sparsec.targets.cuda.builder import Array, Kernel
from sparsec.targets.cuda.parts.mma_tiles import ACCUMULATORS, SLAB, Staged, Tiling, warp_place
from sparsec.targets.cuda.parts.sparse_tiles import DEEP, TILE, VALUES, WORDS, PackedTiles

#: ``issue(stage, turn)``: begin a step's multiplications; what ``turn`` 0 holds in registers, 1 does not
Issue = Callable[[Any, int], None]


def pipeline(k: Kernel, stages: int, steps: int, fetch: Callable[[Any, Any], None], issue: Issue) -> None:
    """All steps, as ``mma_tiles.pipeline``; the multiplications of one step run beneath the next's copies.

    Copies run ``stages - 2`` steps ahead: the stage that is written is that of the last step but one, whose
    multiplications all warps have waited for before the barrier.
    """
    ahead = stages - 2
    for step in range(ahead):
        if step < steps:
            fetch(step, step)
        k.call(instructions.cp_async_commit)

    def one(step: Any, turn: int) -> None:
        k.call(instructions.cp_async_wait(ahead - 1))
        k.call(warpgroup.fence_shared)
        k.sync()
        if not isinstance(step, int):
            with k.when(step + ahead < steps):
                fetch((step + ahead) % stages, step + ahead)
        k.call(instructions.cp_async_commit)
        issue(step % stages, turn)
        k.call(warpgroup.commit)
        k.call(warpgroup.wait(1))

    with k.loop(steps // 2) as pair:
        for turn in range(2):
            one(k.bind(pair * 2 + turn), turn)
    if steps % 2:
        # nothing is left to copy
        one(steps - 1, 0)
    k.call(warpgroup.wait(0))


def _checked(staged: Staged) -> Staged:
    """A tile as the instructions read it."""
    bytes_before = staged.array.start * 2
    if staged.width != warpgroup.LINE or staged.padding is not None or bytes_before % 1024:
        raise ValueError("wgmma reads lines of 64 halves, swizzled, that begin at a multiple of 1024 bytes")
    return staged


def dense_issuer(k: Kernel, tiling: Tiling, a: Staged, b: Staged, accumulators: Array) -> Issue:
    """Multiplications of two dense tiles, whose lines are rows of A and columns of B."""
    left, right = _checked(a), _checked(b)
    row, column = _group_place(k, tiling)
    slabs, columns = tiling.warp_rows // SLAB, tiling.warp_columns
    instruction = warpgroup.multiply(a.array.dtype, columns)
    starts = k.bind(row * left.width), k.bind(column * right.width)

    def issue(stage: Any, turn: int) -> None:
        from_a, from_b = k.bind(starts[0] + stage * left.size), k.bind(starts[1] + stage * right.size)
        k.call(warpgroup.fence)
        for part in range(0, tiling.depth, SLAB):
            for i in range(slabs):
                to = accumulators.pointer(i * (columns // 8) * ACCUMULATORS)
                at = left.array.pointer(from_a + i * warpgroup.ROWS * left.width + part)
                k.call(instruction, to, at, right.array.pointer(from_b + part))

    return issue


def sparse_issuer(k: Kernel, tiling: Tiling, a: PackedTiles, b: Staged, accumulators: Array) -> Issue:
    """Multiplications of a 2:4 tile and a dense one, whose lines are columns of B.

    Warp w of the block's ``high`` makes rows 32 w to 32 w + 31, 16 of them in each of two instructions:
    which rows a warp supplies is its own affair, and neighbours make longer stores
    (``mma_epilogue.deliver_rows``).
    """
    right = _checked(b)
    _, column = _group_place(k, tiling)
    slabs, columns = tiling.warp_rows // SLAB, tiling.warp_columns
    if slabs != 2:
        raise ValueError(f"a warp of {tiling} does not make 32 rows")
    held, words = k.registers(2 * slabs * 2 * 4, "uint32"), k.registers(2 * slabs, "uint32")
    stored = k.words(a.values.array)
    row = k.bind(k.warp % tiling.high * tiling.warp_rows)
    tile, slab = row // TILE, row % TILE // SLAB
    at_values = k.bind(tile * (VALUES // 2) + slab * 128 + k.lane * 4)
    at_words = k.bind(tile * WORDS + k.lane * 4 + slab)
    start = k.bind(column * right.width)
    parts = TILE // DEEP

    def issue(stage: Any, turn: int) -> None:
        from_values = k.bind(at_values + stage * (a.values.size // 2))
        from_words = at_words + stage * a.positions.size
        words.put(turn * slabs, a.positions.array.vector(from_words, slabs), slabs)
        for i in range(slabs):
            for part in range(parts):
                vector = stored.vector(from_values + part * 512 + i * 128, 4)
                held.put(((turn * slabs + i) * parts + part) * 4, vector, 4)
        from_b = k.bind(start + stage * right.size)
        k.call(warpgroup.fence)
        for part in range(parts):
            instruction = warpgroup.multiply_sparse(b.array.dtype, columns, part)
            for i in range(slabs):
                to = accumulators.pointer(i * (columns // 8) * ACCUMULATORS)
                values = held.pointer(((turn * slabs + i) * parts + part) * 4)
                at = right.array.pointer(from_b + part * DEEP)
                k.call(instruction, to, values, at, words[turn * slabs + i])

    return issue


def _group_place(k: Kernel, tiling: Tiling) -> tuple[Any, Any]:
    """The first row and column of the four warps' part of the tile."""
    if not tiling.grouped or tiling.depth != warpgroup.LINE:
        raise ValueError(f"{tiling} is not made by groups of four warps, 64 of K a step")
    row, column = warp_place(k, tiling)
    return k.bind(row - k.warp % 4 * SLAB), column

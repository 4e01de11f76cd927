"""block_steps: a weight of dense blocks as the steps that thread blocks of bsr_spmm take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda.parts.mma_tiles import Tiling
from sparsec.targets.cuda.parts.operand_order import ELEMENTS, SIDE, as_second

#: inputs of a step
DEPTH = 32
#: numbers of a step: its first input, the mask of its blocks, its first tile, its tiles
STEP = 4
#: blocks of one step that its mask has bits for
MOST_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """A configuration: blocks, the thread block's tile, warps and stages; ``groups`` what packing found."""

    block_rows: int
    block_columns: int
    together: int
    tokens: int
    warps: int
    stages: int
    groups: int = 0

    @classmethod
    def of(cls, config: Mapping[str, int]) -> Shape:
        """From a configuration's dictionary."""
        return cls(**config)

    @property
    def features(self) -> int:
        """Output features of the tile."""
        return self.block_rows * self.together

    @property
    def parts(self) -> int:
        """Blocks of a block row in a step."""
        return DEPTH // self.block_columns

    @property
    def tiles(self) -> int:
        """16 x 16 tiles of a block."""
        return self.block_rows * self.block_columns // ELEMENTS

    @property
    def resident(self) -> int:
        """Thread blocks that a multiprocessor's registers hold."""
        return max(1, 32768 // (self.features * self.tokens)) if self.features * self.tokens > 8192 else 4

    @property
    def tiling(self) -> Tiling:
        """As the parts that tensor core kernels share see it."""
        return Tiling(self.tokens, self.features, DEPTH, self.warps, 1, self.stages)


def arrays_of(weight: NDArray[Any], s: Shape) -> dict[str, NDArray[Any]]:
    """A weight [features, inputs] as the arrays that bsr_spmm reads.

    ``values`` [tiles, 32, 8]: the tiles of a step's blocks one after the other (see operand_order);
    ``steps`` int32 [steps + 1, 4] (see STEP): those of a thread block one after the other;
    ``starts`` int32 [groups + 1]: where each thread block's begin;
    ``rows`` int32 [groups * together]: the first output feature of each block row.
    """
    blocks = _cut(weight, s)
    stored: NDArray[Any] = np.asarray((blocks != 0).any(axis=(2, 3)))
    slabs: NDArray[Any] = np.asarray(stored.reshape(len(stored), -1, s.parts).any(axis=2))
    order = grouped(slabs, s.together)
    # the block row past the last has no blocks
    stored = np.concatenate([stored, np.zeros((1, stored.shape[1]), bool)])
    there = stored[order].reshape(*order.shape, -1, s.parts).transpose(0, 2, 1, 3)
    group, slab = np.nonzero(there.any(axis=(2, 3)))
    bits = there[group, slab].reshape(len(group), s.together * s.parts)
    step, place = np.nonzero(bits)
    rows = order[group[step], place // s.parts]
    columns = slab[step] * s.parts + place % s.parts
    return {
        "values": _tiles(blocks, rows, columns),
        "steps": _steps(slab, bits, s),
        "starts": np.searchsorted(group, np.arange(len(order) + 1)).astype(np.int32),
        "rows": (order.reshape(-1) * s.block_rows).astype(np.int32),
    }


def _cut(weight: NDArray[Any], s: Shape) -> NDArray[Any]:
    """The weight as blocks: [block rows, block columns, features, inputs], padded with zeros."""
    tall, wide = (-(-n // by) * by for n, by in zip(weight.shape, (s.block_rows, DEPTH), strict=True))
    padded = np.zeros((tall, wide), weight.dtype)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    split = padded.reshape(tall // s.block_rows, s.block_rows, wide // s.block_columns, s.block_columns)
    return split.transpose(0, 2, 1, 3)


def grouped(slabs: NDArray[Any], together: int) -> NDArray[Any]:
    """Block rows [groups, together] that share many of their slabs [block rows, slabs], most steps first.

    Greedy: the fullest block row left, then again and again the one that shares most with those taken.
    Missing ones are the number of block rows.
    """
    count = len(slabs)
    weights = slabs.astype(np.float32)
    left = np.ones(count, bool)
    fullest = np.argsort(-slabs.sum(axis=1), kind="stable")
    order = np.full((-(-count // together), together), count)
    for group in order:
        first = int(fullest[np.argmax(left[fullest])])
        union = slabs[first].copy()
        group[0], left[first] = first, False
        for i in range(1, min(together, 1 + int(left.sum()))):
            shared = np.where(left, weights @ union.astype(np.float32), -1)
            group[i] = chosen = int(np.argmax(shared))
            left[chosen] = False
            union |= slabs[chosen]
    whole = np.concatenate([slabs, np.zeros((1, slabs.shape[1]), bool)])
    steps = whole[order].any(axis=1).sum(axis=1)
    return np.asarray(order[np.argsort(-steps, kind="stable")])


def _tiles(blocks: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
    """The elements of stored blocks as tiles: within a block inputs before features, as they are used."""
    high, wide = blocks.shape[2] // SIDE, blocks.shape[3] // SIDE
    taken = blocks[rows, columns].reshape(-1, high, SIDE, wide, SIDE)
    tiles = as_second(taken.transpose(0, 3, 1, 2, 4).reshape(-1, SIDE, SIDE))
    return tiles if len(tiles) else np.zeros((1, 32, 8), blocks.dtype)


def _steps(slab: NDArray[Any], bits: NDArray[Any], s: Shape) -> NDArray[Any]:
    """The table of steps, and one more that is read but not used."""
    table = np.zeros((len(slab) + 1, STEP), np.int64)
    counts = bits.sum(axis=1) * s.tiles
    table[:-1, 0] = slab * DEPTH
    table[:-1, 1] = (bits * (1 << np.arange(bits.shape[1], dtype=np.int64))).sum(axis=1)
    table[:-1, 2] = np.cumsum(counts) - counts
    table[:-1, 3] = counts
    return table.astype(np.uint32).view(np.int32)

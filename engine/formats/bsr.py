"""bsr (block sparse row): dense r x c blocks on a fixed grid; blocks of zeros are dropped.

A matrix whose shape is no multiple of the block is padded with zeros at its ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.formats.matrix import (
    Array,
    Entries,
    Fit,
    MatrixLike,
    as_index,
    as_offsets,
    entries,
    positive,
    row_offsets,
    total_bytes,
)


@dataclass(frozen=True, slots=True, eq=False)
class Bsr:
    """Block row ``i`` is ``columns[offsets[i]:offsets[i + 1]]`` and the same range of ``values``.

    ``block`` (r, c); ``offsets`` int32 [ceil(rows / r) + 1]; ``columns`` [blocks], the block
    column, uint16 or int32; ``values`` [blocks, r, c].
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    offsets: Array
    columns: Array
    values: Array


def pack(array: MatrixLike, block: tuple[int, int] = (4, 4)) -> Bsr:
    """Pack a 2-D array or a scipy.sparse matrix in blocks of ``block`` rows x columns.

    Raises:
        InputError: the array has not two axes.
        ConfigError: the block's sizes are no positive integers.
    """
    r, c = _checked(block)
    found = entries(array)
    stored = _stored_blocks(found, r, c)
    slots = np.cumsum(stored.ravel()) - 1
    values = np.zeros((int(stored.sum()), r, c), found.values.dtype)
    rows, columns = found.rows, found.columns
    slot = slots[(rows // r) * stored.shape[1] + columns // c]
    values[slot, rows % r, columns % c] = found.values
    offsets = as_offsets(row_offsets(np.count_nonzero(stored, axis=1)))
    return Bsr(found.shape, (r, c), offsets, as_index(np.nonzero(stored)[1], stored.shape[1]), values)


def _checked(block: tuple[int, int]) -> tuple[int, int]:
    return positive("block rows", block[0]), positive("block columns", block[1])


def _stored_blocks(found: Entries, r: int, c: int) -> Array:
    rows, columns = found.shape
    stored = np.zeros((-(-rows // r), -(-columns // c)), bool)
    stored[found.rows // r, found.columns // c] = True
    return stored


def unpack(packed: Bsr) -> Array:
    """The matrix [rows, columns], padding cut off."""
    r, c = packed.block
    rows, columns = packed.shape
    grid = (len(packed.offsets) - 1, -(-columns // c))
    blocks = np.zeros((*grid, r, c), packed.values.dtype)
    block_rows = np.repeat(np.arange(grid[0]), np.diff(packed.offsets))
    blocks[block_rows, packed.columns] = packed.values
    whole = blocks.transpose(0, 2, 1, 3).reshape(grid[0] * r, grid[1] * c)
    return np.ascontiguousarray(whole[:rows, :columns])


def nbytes(packed: Bsr) -> int:
    """Bytes of offsets, block columns and blocks."""
    return total_bytes(packed.offsets, packed.columns, packed.values)


def fits(array: MatrixLike, block: tuple[int, int] = (4, 4), fill: float = 0.5) -> Fit:
    """Whether at least ``fill`` of the stored elements would be nonzeros."""
    r, c = _checked(block)
    found = entries(array)
    elements = int(_stored_blocks(found, r, c).sum()) * r * c
    share = len(found.values) / elements if elements else 1.0
    return Fit(share >= fill, f"blocks of {r}x{c} are {100 * share:.0f} % full, {100 * fill:.0f} % wanted")

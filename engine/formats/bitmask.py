"""bitmask: one bit per element, little-endian along the row, and the nonzeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.formats.matrix import Array, Fit, MatrixLike, as_offsets, entries, total_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Bitmask:
    """Bit ``j % 8`` of ``bits[i, j // 8]`` says whether element (i, j) is stored.

    ``bits`` uint8 [rows, ceil(columns / 8)], spare bits clear; ``values`` [nonzeros] row by row;
    ``offsets`` int32 [rows + 1], where each row's values begin.
    """

    shape: tuple[int, int]
    bits: Array
    offsets: Array
    values: Array


def pack(array: MatrixLike) -> Bitmask:
    """Pack a 2-D array or a scipy.sparse matrix (duplicate coordinates are summed).

    Raises:
        InputError: the array has not two axes.
    """
    found = entries(array)
    stored = np.zeros(found.shape, bool)
    stored[found.rows, found.columns] = True
    bits = np.packbits(stored, axis=1, bitorder="little")
    return Bitmask(found.shape, bits, as_offsets(found.offsets), found.values)


def unpack(packed: Bitmask) -> Array:
    """The matrix [rows, columns]."""
    stored = np.unpackbits(packed.bits, axis=1, count=packed.shape[1], bitorder="little")
    matrix = np.zeros(packed.shape, packed.values.dtype)
    matrix[stored.astype(bool)] = packed.values
    return matrix


def nbytes(packed: Bitmask) -> int:
    """Bytes of bits, offsets and values."""
    return total_bytes(packed.bits, packed.offsets, packed.values)


def fits(array: MatrixLike) -> Fit:
    """Always: a bit mask holds any matrix."""
    return Fit(True, f"a bit mask holds any matrix; {len(entries(array).values)} nonzeros")

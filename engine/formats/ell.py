"""ell (ELLPACK): as many slots for every row as the fullest row needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.formats.matrix import Array, Fit, MatrixLike, entries, index_type, total_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Ell:
    """``columns`` and ``values`` [rows, width]; nonzeros first, by ascending column.

    A spare slot holds +0.0 and the column ``shape[1]``, one past the last: a kernel points it
    at a row of zeros.  Columns are uint16 where ``shape[1]`` is below 65536, else int32.
    """

    shape: tuple[int, int]
    columns: Array
    values: Array

    @property
    def width(self) -> int:
        """Slots a row."""
        return int(self.values.shape[1])


def pack(array: MatrixLike) -> Ell:
    """Pack a 2-D array or a scipy.sparse matrix (duplicate coordinates are summed).

    Raises:
        InputError: the array has not two axes.
    """
    found = entries(array)
    width = int(np.diff(found.offsets).max(initial=0))
    columns = np.full((found.shape[0], width), found.shape[1], index_type(found.shape[1]))
    values = np.zeros(columns.shape, found.values.dtype)
    rows = found.rows
    slots = np.arange(len(rows)) - found.offsets[rows]
    columns[rows, slots] = found.columns
    values[rows, slots] = found.values
    return Ell(found.shape, columns, values)


def unpack(packed: Ell) -> Array:
    """The matrix [rows, columns]."""
    matrix = np.zeros(packed.shape, packed.values.dtype)
    rows, slots = np.nonzero(packed.columns < packed.shape[1])
    matrix[rows, packed.columns[rows, slots]] = packed.values[rows, slots]
    return matrix


def nbytes(packed: Ell) -> int:
    """Bytes of columns and values, spare slots included."""
    return total_bytes(packed.columns, packed.values)


def fits(array: MatrixLike, fill: float = 0.5) -> Fit:
    """Whether at least ``fill`` of the slots would hold nonzeros."""
    found = entries(array)
    slots = int(np.diff(found.offsets).max(initial=0)) * found.shape[0]
    share = len(found.values) / slots if slots else 1.0
    return Fit(share >= fill, f"rows fill {100 * share:.0f} % of the widest, {100 * fill:.0f} % wanted")

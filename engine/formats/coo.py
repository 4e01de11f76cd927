"""coo: the coordinates of each nonzero, row by row and by ascending column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.formats.matrix import Array, Fit, MatrixLike, as_index, entries, total_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Coo:
    """``rows``, ``columns`` and ``values``, each [nonzeros].

    Indices are uint16 on an axis of at most 65536, int32 on a longer one.
    """

    shape: tuple[int, int]
    rows: Array
    columns: Array
    values: Array


def pack(array: MatrixLike) -> Coo:
    """Pack a 2-D array or a scipy.sparse matrix (duplicate coordinates are summed).

    Raises:
        InputError: the array has not two axes.
    """
    found = entries(array)
    rows = as_index(found.rows, found.shape[0])
    return Coo(found.shape, rows, as_index(found.columns, found.shape[1]), found.values)


def unpack(packed: Coo) -> Array:
    """The matrix [rows, columns]."""
    matrix = np.zeros(packed.shape, packed.values.dtype)
    matrix[packed.rows, packed.columns] = packed.values
    return matrix


def nbytes(packed: Coo) -> int:
    """Bytes of coordinates and values."""
    return total_bytes(packed.rows, packed.columns, packed.values)


def fits(array: MatrixLike) -> Fit:
    """Always: coo holds any matrix."""
    return Fit(True, f"coo holds any matrix; {len(entries(array).values)} nonzeros")

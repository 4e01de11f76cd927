"""csc (compressed sparse column): the nonzeros of each column, by ascending row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.formats.matrix import (
    Array,
    Fit,
    MatrixLike,
    as_index,
    as_matrix,
    as_offsets,
    entries,
    is_scipy,
    total_bytes,
)


@dataclass(frozen=True, slots=True, eq=False)
class Csc:
    """Column ``j`` is ``rows[offsets[j]:offsets[j + 1]]`` and the same range of ``values``.

    ``offsets`` int32 [columns + 1]; ``rows`` uint16 [nonzeros] where the matrix has at most
    65536 rows, else int32; ``values`` [nonzeros].
    """

    shape: tuple[int, int]
    offsets: Array
    rows: Array
    values: Array


def pack(array: MatrixLike) -> Csc:
    """Pack a 2-D array or a scipy.sparse matrix (duplicate coordinates are summed).

    Raises:
        InputError: the array has not two axes.
    """
    turned = entries(array.T if is_scipy(array) else as_matrix(array).T)
    columns, rows = turned.shape
    return Csc((rows, columns), as_offsets(turned.offsets), as_index(turned.columns, rows), turned.values)


def unpack(packed: Csc) -> Array:
    """The matrix [rows, columns]."""
    matrix = np.zeros(packed.shape, packed.values.dtype)
    columns = np.repeat(np.arange(packed.shape[1]), np.diff(packed.offsets))
    matrix[packed.rows, columns] = packed.values
    return matrix


def nbytes(packed: Csc) -> int:
    """Bytes of offsets, rows and values."""
    return total_bytes(packed.offsets, packed.rows, packed.values)


def fits(array: MatrixLike) -> Fit:
    """Always: csc holds any matrix."""
    return Fit(True, f"csc holds any matrix; {len(entries(array).values)} nonzeros")

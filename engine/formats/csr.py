"""csr (compressed sparse row): the nonzeros of each row, by ascending column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.formats.matrix import Array, Fit, MatrixLike, as_index, as_offsets, entries, total_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Csr:
    """Row ``i`` is ``columns[offsets[i]:offsets[i + 1]]`` and the same range of ``values``.

    ``offsets`` int32 [rows + 1]; ``columns`` uint16 [nonzeros] where the matrix has at most
    65536 columns, else int32; ``values`` [nonzeros].
    """

    shape: tuple[int, int]
    offsets: Array
    columns: Array
    values: Array


def pack(array: MatrixLike) -> Csr:
    """Pack a 2-D array or a scipy.sparse matrix (duplicate coordinates are summed).

    Raises:
        InputError: the array has not two axes.
    """
    found = entries(array)
    return Csr(found.shape, as_offsets(found.offsets), as_index(found.columns, found.shape[1]), found.values)


def unpack(packed: Csr) -> Array:
    """The matrix [rows, columns]."""
    matrix = np.zeros(packed.shape, packed.values.dtype)
    rows = np.repeat(np.arange(packed.shape[0]), np.diff(packed.offsets))
    matrix[rows, packed.columns] = packed.values
    return matrix


def nbytes(packed: Csr) -> int:
    """Bytes of offsets, columns and values."""
    return total_bytes(packed.offsets, packed.columns, packed.values)


def fits(array: MatrixLike) -> Fit:
    """Always: csr holds any matrix."""
    return Fit(True, f"csr holds any matrix; {len(entries(array).values)} nonzeros")

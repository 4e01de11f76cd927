"""hybrid: the dense rows, the columns that are dense among the long rows, and csr for all else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.formats import csr
from sparsec.formats.csr import Csr
from sparsec.formats.matrix import (
    Array,
    Fit,
    MatrixLike,
    as_index,
    as_matrix,
    total_bytes,
    without_negative_zero,
)

#: a line with a larger share of nonzeros runs faster as a dense one (measured break-even 0.68)
DENSE = 0.7
#: nonzeros a row that dense columns must save: what a second visit of the row costs
SECOND_VISIT = 5.0
#: a row is short with fewer nonzeros than a first and one more for so many columns (see docs/journal.md)
SHORT, WIDTH = 16, 40
#: fewer long rows than this have no columns of their own
FEW = 16


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows that are ``dense``, ``long`` or ``short``, and ``columns`` dense among the long; ascending."""

    dense: Array
    long: Array
    short: Array
    columns: Array


@dataclass(frozen=True, slots=True, eq=False)
class Hybrid:
    """Three ascending lists of indices: ``rows`` and ``columns`` that are dense, and ``long`` rows.

    ``dense`` [rows, all columns]; ``strip`` [long, columns]; ``rest`` the matrix with zeros there.
    """

    shape: tuple[int, int]
    rows: Array
    long: Array
    columns: Array
    dense: Array
    strip: Array
    rest: Csr


def split(mask: Array, by_row: Array | None = None, by_column: Array | None = None) -> Split:
    """Part the lines of ``mask``, bool [rows, columns]; pass the nonzeros a line if they are known."""
    by_row = np.count_nonzero(mask, axis=1) if by_row is None else by_row
    dense = by_row > DENSE * mask.shape[1]
    short = ~dense & (by_row < SHORT + mask.shape[1] // WIDTH)
    long = ~dense & ~short
    columns = _dense_columns(mask, long, by_column)
    return Split(np.flatnonzero(dense), np.flatnonzero(long), np.flatnonzero(short), columns)


def _dense_columns(mask: Array, long: Array, by_column: Array | None) -> Array:
    count = np.count_nonzero(long)
    none = np.zeros(0, np.int64)
    if count < FEW or (by_column is not None and by_column.max(initial=0) <= DENSE * count):
        return none
    share = np.count_nonzero(mask[long], axis=0) / count
    found = np.flatnonzero(share > DENSE)
    return found if (share[found] - DENSE).sum() > SECOND_VISIT else none


def pack(array: MatrixLike) -> Hybrid:
    """Pack a 2-D array or a scipy.sparse matrix.

    Raises:
        InputError: the array has not two axes.
    """
    matrix = without_negative_zero(as_matrix(array))
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    found = split(matrix != 0)
    inside = np.ix_(found.long, found.columns)
    dense, strip = matrix[found.dense], matrix[inside]
    matrix[found.dense] = 0
    matrix[inside] = 0
    rows, long = (as_index(i, shape[0]) for i in (found.dense, found.long))
    return Hybrid(shape, rows, long, as_index(found.columns, shape[1]), dense, strip, csr.pack(matrix))


def unpack(packed: Hybrid) -> Array:
    """The matrix [rows, columns]."""
    matrix = csr.unpack(packed.rest)
    matrix[packed.rows] = packed.dense
    matrix[np.ix_(packed.long, packed.columns)] = packed.strip
    return matrix


def nbytes(packed: Hybrid) -> int:
    """Bytes of the dense rows and columns, of their indices, and of the csr."""
    indices = total_bytes(packed.rows, packed.long, packed.columns)
    return indices + total_bytes(packed.dense, packed.strip) + csr.nbytes(packed.rest)


def fits(array: MatrixLike) -> Fit:
    """Whether it has dense rows, or columns that are dense among its long rows."""
    found = split(as_matrix(array) != 0)
    rows, columns = len(found.dense), len(found.columns)
    reason = f"{rows} rows and {columns} columns are more than {100 * DENSE:.0f} % full"
    return Fit(bool(rows or columns), reason)

"""What every format shares: reading a matrix, its nonzeros in row order, and index types.

A *stored value* is one that compares unequal to zero: NaN and infinities are stored, and -0.0
is a zero like any other, so every sparse format gives it back as +0.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import ConfigError, InputError

Array: TypeAlias = NDArray[Any]
#: a NumPy array, or any scipy.sparse matrix or array (recognised without importing scipy)
MatrixLike: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a format suits a matrix, and why; true in a condition when it does."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """The stored values of ``shape``, row by row and by ascending column.

    ``offsets`` int64 [rows + 1], ``columns`` int64 [stored], ``values`` [stored].
    """

    shape: tuple[int, int]
    offsets: Array
    columns: Array
    values: Array

    @property
    def rows(self) -> Array:
        """The row of each stored value, int64 [stored]."""
        return np.repeat(np.arange(self.shape[0]), np.diff(self.offsets))


def is_scipy(array: MatrixLike) -> bool:
    """Whether ``array`` is a scipy.sparse matrix or array."""
    return hasattr(array, "tocsr") and hasattr(array, "toarray")


def as_matrix(array: MatrixLike) -> Array:
    """``array`` as a 2-D NumPy array; not copied when it is one already.

    Raises:
        InputError: it has not two axes.
    """
    matrix = np.asarray(array.toarray() if is_scipy(array) else array)
    if matrix.ndim != 2:
        raise InputError(
            f"a format packs a matrix [rows, columns], not shape {matrix.shape}; "
            "flatten a weight to [outputs, everything else] first"
        )
    return matrix


def entries(array: MatrixLike) -> Entries:
    """The stored values of a 2-D array or scipy.sparse matrix (duplicates summed).

    Raises:
        InputError: it has not two axes.
    """
    if is_scipy(array) and array.ndim == 2:
        return _scipy_entries(array)
    matrix = as_matrix(array)
    stored = matrix != 0
    offsets = row_offsets(np.count_nonzero(stored, axis=1))
    return Entries(_shape(matrix), offsets, np.nonzero(stored)[1], matrix[stored])


def _scipy_entries(array: Any) -> Entries:
    csr = array.tocsr(copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return Entries(_shape(csr), csr.indptr.astype(np.int64), csr.indices.astype(np.int64), csr.data)


def _shape(matrix: Any) -> tuple[int, int]:
    return int(matrix.shape[0]), int(matrix.shape[1])


def row_offsets(counts: Array) -> Array:
    """int64 [len(counts) + 1]: where each row begins, and the total."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def index_type(largest: int) -> np.dtype[Any]:
    """The index type for 0..largest: uint16 where it fits, else int32, else int64."""
    if largest <= np.iinfo(np.uint16).max:
        return np.dtype(np.uint16)
    return offset_type(largest)


def offset_type(largest: int) -> np.dtype[Any]:
    """The type of row offsets: int32, or int64 past two thousand million stored values."""
    return np.dtype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)


def as_index(indices: Array, size: int) -> Array:
    """``indices`` into an axis of ``size`` in the smallest index type."""
    return indices.astype(index_type(max(size - 1, 0)))


def as_offsets(offsets: Array) -> Array:
    """Offsets in the smallest offset type."""
    return offsets.astype(offset_type(int(offsets[-1])))


def without_negative_zero(values: Array) -> Array:
    """A copy in which every value that equals zero is +0.0; all other bits are kept."""
    return np.where(values != 0, values, np.zeros((), values.dtype))


def padded(matrix: Array, rows: int, columns: int) -> Array:
    """``matrix`` with zeros at the ends, so that its shape is a multiple of rows x columns."""
    extra = ((0, -matrix.shape[0] % rows), (0, -matrix.shape[1] % columns))
    return np.pad(matrix, extra) if any(after for _, after in extra) else matrix


def positive(name: str, value: int, most: int | None = None) -> int:
    """``value`` checked to be a whole number of at least 1, and at most ``most``.

    Raises:
        ConfigError: names the option.
    """
    if not isinstance(value, int | np.integer) or value < 1 or (most is not None and value > most):
        allowed = "a positive integer" if most is None else f"an integer from 1 to {most}"
        raise ConfigError(f"{name} must be {allowed}, not {value!r}")
    return int(value)


def total_bytes(*arrays: Array) -> int:
    """Bytes of all the arrays."""
    return sum(int(a.nbytes) for a in arrays)

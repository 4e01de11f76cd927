"""dense: every element, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.formats.matrix import Array, Fit, MatrixLike, as_matrix, total_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``values`` [rows, columns], C-contiguous."""

    shape: tuple[int, int]
    values: Array


def pack(array: MatrixLike) -> Dense:
    """Pack a 2-D array; shares its memory when that is C-contiguous already.

    Raises:
        InputError: the array has not two axes.
    """
    values = np.ascontiguousarray(as_matrix(array))
    return Dense((values.shape[0], values.shape[1]), values)


def unpack(packed: Dense) -> Array:
    """The matrix [rows, columns], a copy."""
    return packed.values.copy()


def nbytes(packed: Dense) -> int:
    """Bytes of the values."""
    return total_bytes(packed.values)


def fits(array: MatrixLike) -> Fit:
    """Always: dense holds any matrix."""
    rows, columns = as_matrix(array).shape
    return Fit(True, f"dense holds all {rows} x {columns} elements")

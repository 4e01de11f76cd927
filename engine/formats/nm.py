"""nm: at most N nonzeros in each group of M neighbours, kept as N values and N positions.

Groups run along ``axis``: 1 (the inputs of a weight [outputs, inputs], what tensor cores call
2:4) or 0.  An axis that is no multiple of M is padded with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.errors import ConfigError, InputError
from sparsec.formats.matrix import (
    Array,
    Fit,
    MatrixLike,
    as_matrix,
    padded,
    positive,
    total_bytes,
    without_negative_zero,
)


@dataclass(frozen=True, slots=True, eq=False)
class Nm:
    """``values`` [lines, groups, n] and ``positions`` uint8 of the same shape.

    Lines are rows (axis 1) or columns (axis 0).  The positions of a group ascend and differ;
    spare slots hold +0.0 at positions of zeros, which may lie in the padding of the last group.
    """

    shape: tuple[int, int]
    n: int
    m: int
    axis: int
    values: Array
    positions: Array


def pack(array: MatrixLike, n: int | None = None, m: int = 4, axis: int = 1) -> Nm:
    """Pack a 2-D array; without ``n``, the smallest that holds it (at least 1).

    Raises:
        InputError: the array has not two axes, or a group has more than ``n`` nonzeros.
        ConfigError: 1 <= n <= m <= 256 does not hold, or the axis is not 0 or 1.
    """
    matrix = as_matrix(array)
    groups = _groups(matrix, m, axis)
    needed = _most(groups)
    kept = max(needed, 1) if n is None else positive("n", n, m)
    if needed > kept:
        raise InputError(f"{_excess(needed, kept, m, axis)}; pack with n={needed} or in another format")
    positions = _positions(groups != 0, kept)
    values = without_negative_zero(np.take_along_axis(groups, positions, axis=2))
    return Nm((matrix.shape[0], matrix.shape[1]), kept, m, axis, values, positions.astype(np.uint8))


def _groups(matrix: Array, m: int, axis: int) -> Array:
    positive("m", m, 256)
    if axis not in (0, 1):
        raise ConfigError(f"axis must be 1 (along the inputs) or 0 (along the outputs), not {axis!r}")
    lines = padded(matrix if axis else matrix.T, 1, m)
    return np.ascontiguousarray(lines).reshape(lines.shape[0], lines.shape[1] // m, m)


def _most(groups: Array) -> int:
    return int(np.count_nonzero(groups, axis=2).max(initial=0))


def _positions(stored: Array, n: int) -> Array:
    """Ascending positions [lines, groups, n] of all that is stored and of the first zeros."""
    spare = n - np.count_nonzero(stored, axis=2, keepdims=True)
    zeros_so_far = np.cumsum(~stored, axis=2, dtype=np.int16)
    taken = stored | (zeros_so_far <= spare)
    return np.nonzero(taken)[2].reshape(*stored.shape[:2], n)


def _excess(needed: int, n: int, m: int, axis: int) -> str:
    along = "inputs" if axis else "outputs"
    return f"a group of {m} along the {along} has {needed} nonzeros, more than {n}"


def unpack(packed: Nm) -> Array:
    """The matrix [rows, columns], padding cut off."""
    lines, groups, _ = packed.values.shape
    spread = np.zeros((lines, groups, packed.m), packed.values.dtype)
    np.put_along_axis(spread, packed.positions.astype(np.intp), packed.values, axis=2)
    whole = spread.reshape(lines, groups * packed.m)[:, : packed.shape[packed.axis]]
    return np.ascontiguousarray(whole if packed.axis else whole.T)


def nbytes(packed: Nm) -> int:
    """Bytes of values and positions (one byte each; hardware packs two bits for M = 4)."""
    return total_bytes(packed.values, packed.positions)


def fits(array: MatrixLike, n: int = 2, m: int = 4, axis: int = 1) -> Fit:
    """Whether no group of ``m`` along ``axis`` has more than ``n`` nonzeros."""
    needed = _most(_groups(as_matrix(array), m, axis))
    if needed > n:
        return Fit(False, _excess(needed, n, m, axis))
    return Fit(True, f"every group of {m} has at most {needed} nonzeros")

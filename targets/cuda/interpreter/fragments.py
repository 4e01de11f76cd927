"""fragments: which thread of a warp holds which element of the operands of matrix instructions.

As in NVIDIA's PTX ISA manual, "Warp Level Matrix Instructions".  With ``group = lane // 4`` and
``quad = lane % 4``, sixteen-bit operands of ``mma.m16n8k16`` (two to a register, the lower half first) are

- A[16, 16]: register 0: row group, columns 2 quad, 2 quad + 1; 1: row group + 8; 2: row group, columns
  2 quad + 8, + 9; 3: row group + 8, those columns,
- B[16, 8]: register 0: rows 2 quad, 2 quad + 1 of column group; 1: rows 2 quad + 8, + 9,
- C and D[16, 8], float32: registers 0 and 1: row group, columns 2 quad, 2 quad + 1; 2 and 3: row group + 8.

``mma.sp.m16n8k32`` takes the nonzeros of A[16, 32], two of every four neighbours of a row, as A[16, 16]
above, and B[32, 8] in four registers: rows 2 quad + 8 r and the next.  Which two of the four they are is
*metadata*: 16 bits for the eight nonzeros of half a row, two for each, the first lowest.  A thread has those
of row ``group`` (low half) and ``group + 8`` (high half); for columns 0 to 15 of A where its quad is even,
16 to 31 where it is odd.  The *selector* says whether threads of quads 0 and 1 (selector 0) or 2 and 3
(selector 1) supply them; the others' registers are ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.targets.cuda.interpreter.memory import InterpreterError

_LANE = np.arange(32)
_GROUP, _QUAD = _LANE[:, None] // 4, _LANE[:, None] % 4

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def _places(rows: Indices, columns: Indices) -> Indices:
    """For each element of a matrix which of what the lanes hold it is, lane by lane.

    Args:
        rows: ``[32, n]``, or what broadcasts to it: the row of each lane's n elements.
        columns: likewise.
    """
    rows, columns = np.broadcast_arrays(rows, columns)
    places = np.empty((int(rows.max()) + 1, int(columns.max()) + 1), np.int64)
    places[rows, columns] = np.arange(rows.size).reshape(rows.shape)
    return places


_PAIR, _QUARTET, _OCTET = np.arange(2), np.arange(4), np.arange(8)
_A16 = _places(_GROUP + 8 * (_OCTET // 2 % 2), 2 * _QUAD + _OCTET % 2 + 8 * (_OCTET // 4))
_A8 = _places(_GROUP + 8 * (_QUARTET % 2), _QUAD + 4 * (_QUARTET // 2))
_B8 = _places(_QUAD + 4 * _PAIR, _GROUP)
#: of two registers of halves a lane, and of four
_B16, _B32 = (_places(2 * _QUAD + np.arange(n) % 2 + 8 * (np.arange(n) // 2), _GROUP) for n in (4, 8))
#: of C and D: where each lane's element is in the matrix
_D = 8 * (_GROUP + 8 * (_QUARTET // 2)) + 2 * _QUAD + _QUARTET % 2


def _arranged(held: NDArray[Any], places: Indices) -> Floats:
    """The last two axes as one, then its elements at ``places``."""
    joined = held.reshape(*held.shape[:-2], -1)
    return joined.take(places, axis=-1).astype(np.float32, copy=False)


def halves(registers: NDArray[np.uint32], kind: Any) -> NDArray[Any]:
    """Registers ``[..., n]`` as the ``2 n`` sixteen-bit floats in them, the lower first."""
    return np.ascontiguousarray(registers).view(np.dtype(kind))


def a_of_halves(registers: NDArray[np.uint32], kind: Any) -> Floats:
    """A[..., 16, 16] of four registers a lane, ``[..., 32, 4]``."""
    return _arranged(halves(registers, kind), _A16)


def b_of_halves(registers: NDArray[np.uint32], kind: Any) -> Floats:
    """B[..., 16, 8] of two registers a lane, ``[..., 32, 2]``, or B[..., 32, 8] of four."""
    return _arranged(halves(registers, kind), _B16 if registers.shape[-1] == 2 else _B32)


def a_of_tf32(registers: NDArray[np.uint32]) -> Floats:
    """A[..., 16, 8] of four registers a lane, of which the thirteen lowest bits do not count.

    They are rows group and group + 8 of column quad, then the same rows of column quad + 4.
    """
    return _arranged(_tf32(registers), _A8)


def b_of_tf32(registers: NDArray[np.uint32]) -> Floats:
    """B[..., 8, 8] of two registers a lane: rows quad and quad + 4 of column group."""
    return _arranged(_tf32(registers), _B8)


def _tf32(registers: NDArray[np.uint32]) -> Floats:
    return np.ascontiguousarray(registers & np.uint32(0xFFFFE000)).view(np.float32)


def d_of(matrix: Floats) -> Floats:
    """The four float32 registers a lane, ``[..., 32, 4]``, of C or D[..., 16, 8]."""
    return _arranged(matrix, _D)


def sparse_metadata(indices: ArrayLike) -> NDArray[np.uint32]:
    """The metadata registers ``[..., 32]`` of 2:4 sparse tiles.

    Args:
        indices: ``[..., 16, 16]``: which of its four neighbours (0 to 3) each nonzero of a row of A is; both
            of a pair (2 i, 2 i + 1) are of columns 4 i to 4 i + 3, the first less than the second.

    Returns:
        A register for every lane, valid for both selectors: lanes of quads 2 and 3 repeat quads 0 and 1.

    Raises:
        ValueError: a pair is not in order, or an index is not in 0 to 3.
    """
    places = np.asarray(indices, np.uint32)
    if places.size and (places.max() > 3 or (places[..., 0::2] >= places[..., 1::2]).any()):
        raise ValueError("the two nonzeros of four neighbours must be in order, their indices 0 to 3")
    half_rows = places.reshape(*places.shape[:-2], 16, 2, 8)
    words = (half_rows << (2 * np.arange(8, dtype=np.uint32))).sum(axis=-1, dtype=np.uint32)
    group, half = _LANE // 4, _LANE % 2
    low, high = words[..., group, half], words[..., group + 8, half]
    by_lane: NDArray[np.uint32] = low | (high << np.uint32(16))
    return by_lane


def sparse_indices(registers: NDArray[np.uint32], selector: int) -> NDArray[np.int64]:
    """The inverse of :func:`sparse_metadata`: ``[..., 16, 16]`` of the lanes that the selector names.

    Raises:
        InterpreterError: the two indices of a pair are not in order, which the hardware leaves undefined.
    """
    row, nonzero = np.arange(16)[:, None], np.arange(16)[None, :]
    lane = row % 8 * 4 + 2 * selector + nonzero // 8
    shift = (16 * (row // 8) + 2 * (nonzero % 8)).astype(np.uint32)
    found = (registers[..., lane] >> shift & np.uint32(3)).astype(np.int64)
    if (found[..., 0::2] >= found[..., 1::2]).any():
        raise InterpreterError(
            "metadata of mma.sp::ordered_metadata must name two neighbours in increasing order"
        )
    return found


def expanded(compressed: Floats, indices: NDArray[np.int64]) -> Floats:
    """A[..., 16, 32] of its nonzeros ``[..., 16, 16]`` and which of four neighbours each is."""
    columns = np.arange(16) // 2 * 4 + indices
    matrix = np.zeros((*compressed.shape[:-1], 32), np.float32)
    np.put_along_axis(matrix, columns, compressed, axis=-1)
    return matrix

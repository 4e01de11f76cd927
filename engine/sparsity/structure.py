"""Blocks and N:M groups in a matrix of zeros and nonzeros: counting them, and finding the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.sparsity.evidence import CERTAIN, block_evidence, group_evidence

Array: TypeAlias = NDArray[Any]

#: rows and columns of the blocks that are looked for
BLOCK_SIZES = (1, 2, 4, 8, 16, 32)
#: M of the N:M groups that are looked for
GROUP_SIZES = (4, 8, 16, 32)
#: share of nonzeros from which an area counts as full: allows for accidental zeros
FULL = 0.97
_LARGEST = 32


@dataclass(frozen=True, slots=True)
class BlockFit:
    """Cost of storing the matrix as dense blocks of ``rows`` x ``columns``.

    ``fill``: nonzeros over the elements of stored blocks that lie inside the matrix;
    ``stored`` blocks; ``padded_elements``: the zeros they store, those past the ends included.
    """

    rows: int
    columns: int
    fill: float
    stored: int
    padded_elements: int


@dataclass(frozen=True, slots=True)
class NmFit:
    """No aligned group of ``m`` has more than ``n`` nonzeros; axis 1: inputs, 0: outputs."""

    n: int
    m: int
    axis: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m} along {'inputs' if self.axis else 'outputs'}"


@dataclass(frozen=True, slots=True)
class Counted:
    """A matrix as the finders read it.

    ``flags`` uint8 0/1 with both sizes padded to multiples of 32; ``by_row`` int64 [rows] and
    ``by_column`` int64 [columns]: the nonzeros of each line.
    """

    shape: tuple[int, int]
    flags: Array
    by_row: Array
    by_column: Array

    @property
    def nonzeros(self) -> int:
        """How many there are."""
        return int(self.by_row.sum())


def count(mask: Array) -> Counted:
    """Count the nonzeros of ``mask``, bool [rows, columns]."""
    flags = padded_mask(mask)
    return Counted((mask.shape[0], mask.shape[1]), flags, *line_counts(flags, mask.shape))


def padded_mask(mask: Array) -> Array:
    """``mask`` as C-contiguous uint8 0/1, both sizes rounded up to multiples of 32 with zeros."""
    rows, columns = mask.shape
    if rows % _LARGEST == 0 and columns % _LARGEST == 0 and mask.flags.c_contiguous:
        return mask.view(np.uint8)
    wide = np.zeros((rows + -rows % _LARGEST, columns + -columns % _LARGEST), np.uint8)
    wide[:rows, :columns] = mask
    return wide


def _sum_bytes(counts: Array, width: int) -> Array:
    """Sums of ``width`` (2, 4 or 8) neighbouring bytes of a row, as bytes.

    Multiplying by 0x0101... adds all bytes of a word into its highest: 16 million flags take
    milliseconds where a reduction over so short an axis takes a tenth of a second.
    """
    word = np.dtype(f"<u{width}")
    ones = word.type(int("01" * width, 16))
    shift = word.type(8 * (width - 1))
    sums: Array = ((counts.view(word) * ones) >> shift).astype(np.uint8)
    return sums


def group_counts(flags: Array, axis: int) -> Iterator[tuple[int, Array]]:
    """For each m of GROUP_SIZES, the nonzeros of the groups along ``axis``, as uint8.

    ``flags`` is what padded_mask makes; the groups of an axis that was padded include padding.
    """
    if axis == 1:
        counts = _sum_bytes(flags, 4)
        yield 4, counts
    else:
        pairs = flags[0::2] + flags[1::2]
        counts = pairs[0::2] + pairs[1::2]
        yield 4, counts
    for m in GROUP_SIZES[1:]:
        counts = _sum_bytes(counts, 2) if axis == 1 else counts[0::2] + counts[1::2]
        yield m, counts


def line_counts(flags: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Nonzeros of each row int64 [rows] and of each column int64 [columns]."""
    rows, columns = shape
    by_row = _sum_bytes(flags, 8).sum(axis=1, dtype=np.int64)[:rows]
    folded = flags
    while len(folded) > len(flags) // _LARGEST:
        folded = folded[0::2] + folded[1::2]
    return by_row, folded.sum(axis=0, dtype=np.int64)[:columns]


def occupied_blocks(flags: Array) -> Iterator[tuple[int, int, Array]]:
    """(r, c, which blocks hold a nonzero: bool [block rows, block columns]) for every block size.

    Each size is derived from a smaller one: rows pair by an or of whole rows; columns by reading
    2, 4 or 8 flags as one word and comparing it with zero.
    """
    band = flags
    for r in BLOCK_SIZES:
        if r > 1:
            band = band[0::2] | band[1::2]
        eights: Array = band.view(np.uint64) != 0
        yield r, 1, band.view(bool)
        yield r, 2, band.view(np.uint16) != 0
        yield r, 4, band.view(np.uint32) != 0
        yield r, 8, eights
        yield r, 16, eights.view(np.uint16) != 0
        yield r, 32, eights.view(np.uint32) != 0


def elements_inside(occupied: Array, block: tuple[int, int], shape: tuple[int, int]) -> int:
    """Elements of the occupied blocks that lie inside a matrix of ``shape``."""
    (r, c), (rows, columns) = block, shape
    grid = occupied[: -(-rows // r), : -(-columns // c)]
    stored = int(np.count_nonzero(grid))
    short, narrow = -rows % r, -columns % c
    elements = stored * r * c
    if short:
        elements -= short * c * int(np.count_nonzero(grid[-1:]))
    if narrow:
        elements -= narrow * r * int(np.count_nonzero(grid[:, -1:]))
    return elements + short * narrow * int(np.count_nonzero(grid[-1:, -1:]))


def find_blocks(counted: Counted) -> tuple[tuple[BlockFit, ...], BlockFit | None]:
    """Every candidate, and the block size that is real structure.

    Of sizes at least 97 % full the one random zeros explain worst is taken: parts of a true block
    are as full but likelier, and whatever is larger stores zeros.
    """
    fits, best, best_evidence = [], None, CERTAIN
    for r, c, occupied in occupied_blocks(counted.flags):
        if r * c == 1:
            continue
        stored = int(np.count_nonzero(occupied))
        inside = elements_inside(occupied, (r, c), counted.shape)
        fill = counted.nonzeros / inside if inside else 0.0
        fit = BlockFit(r, c, fill, stored, stored * r * c - counted.nonzeros)
        fits.append(fit)
        evidence = _evidence(fit, inside, counted) if fill >= FULL else 0.0
        if evidence < best_evidence:
            best, best_evidence = fit, evidence
    if best and not _beyond_full_lines(best, counted):
        best = None
    return tuple(fits), best


def _evidence(fit: BlockFit, inside: int, counted: Counted) -> float:
    """Only lines that are alive count: a dead line alone is no block structure."""
    if fit.rows >= 2 * counted.shape[0] or fit.columns >= 2 * counted.shape[1]:
        return 0.0
    rows, columns = np.flatnonzero(counted.by_row), np.flatnonzero(counted.by_column)
    blocks = len(np.unique(rows // fit.rows)) * len(np.unique(columns // fit.columns))
    return block_evidence(fit.stored, blocks, inside, len(rows) * len(columns), counted.nonzeros)


def _beyond_full_lines(fit: BlockFit, counted: Counted) -> bool:
    """Whether blocks are still full without the rows and columns that are full of themselves."""
    alive_rows, alive_columns = np.count_nonzero(counted.by_row), np.count_nonzero(counted.by_column)
    full_rows = np.flatnonzero(counted.by_row >= FULL * alive_columns)
    full_columns = np.flatnonzero(counted.by_column >= FULL * alive_rows)
    if not len(full_rows) and not len(full_columns):
        return True
    rest = counted.flags.copy()
    rest[full_rows], rest[:, full_columns] = 0, 0
    sizes = (fit.rows, fit.columns)
    occupied = next(o for r, c, o in occupied_blocks(rest) if (r, c) == sizes)
    nonzeros = int(np.count_nonzero(rest))
    return nonzeros > 0 and nonzeros >= FULL * elements_inside(occupied, sizes, counted.shape)


def find_groups(counted: Counted, block: BlockFit | None) -> tuple[tuple[NmFit, ...], NmFit | None]:
    """The smallest n for every m along both axes, and the N:M that is real structure.

    A 2:4 matrix is also 4:8 and 8:16; the fit that random zeros explain worst is the tightest.
    """
    fits, best, best_evidence = [], None, CERTAIN
    # nonzeros of one block come and go together: they are one witness, not many
    witnesses = block.rows * block.columns if block else 1
    lines = ((1, counted.by_row, counted.by_column), (0, counted.by_column, counted.by_row))
    for axis, along, crossing in lines:
        for m, counts in group_counts(counted.flags, axis):
            fit = NmFit(int(counts.max(initial=0)), m, axis)
            fits.append(fit)
            evidence = group_evidence(fit.n, m, along, crossing) / witnesses
            if evidence < best_evidence:
                evidence /= max(_copies(counted.flags, axis) / witnesses, 1.0)
            if evidence < best_evidence:
                best, best_evidence = fit, evidence
    return tuple(fits), best


def _copies(flags: Array, axis: int) -> float:
    """How often a line with nonzeros repeats on average: copies of one line are one witness."""
    lines = flags if axis == 1 else flags.T
    packed = np.ascontiguousarray(np.packbits(lines[lines.any(axis=1)], axis=1))
    distinct = np.unique(packed.view(np.dtype((np.void, packed.shape[1]))))
    return len(packed) / max(len(distinct), 1)

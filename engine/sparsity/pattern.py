"""What the zeros of a weight look like, measured from the array alone.

A weight is a matrix [outputs, inputs]; a convolution's [outputs, channels, height, width] is
read as [outputs, everything else].  ``infer`` calls something structure only where random zeros
of the same density would show it less than once in a million times (see sparsec.sparsity.evidence).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparsec.formats import hybrid
from sparsec.formats.matrix import Array, MatrixLike, is_scipy
from sparsec.sparsity.evidence import CERTAIN, even_rows_evidence
from sparsec.sparsity.structure import (
    BLOCK_SIZES,
    FULL,
    GROUP_SIZES,
    BlockFit,
    Counted,
    NmFit,
    count,
    find_blocks,
    find_groups,
)

#: a hub has more than this many times the median, and as many standard deviations above it
HUB_TIMES, HUB_DEVIATIONS = 4.0, 8.0
#: share of the nonzeros in hubs that makes them the matrix's character
HUB_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Spread:
    """Nonzeros a line (row or column), over all lines, dead ones included."""

    minimum: int = 0
    mean: float = 0.0
    maximum: int = 0
    deviation: float = 0.0

    @property
    def variation(self) -> float:
        """Coefficient of variation: deviation over mean, 0 for no nonzeros."""
        return self.deviation / self.mean if self.mean else 0.0


@dataclass(frozen=True, slots=True)
class Lines:
    """Some rows, or columns, and the nonzeros in them."""

    count: int = 0
    nonzeros: int = 0


@dataclass(frozen=True, slots=True)
class Uneven:
    """Lines worth running apart (see sparsec.formats.hybrid).

    ``dense`` rows; ``short`` rows; ``columns`` dense among the rows that are neither, counted there only.
    """

    dense: Lines = Lines()
    short: Lines = Lines()
    columns: Lines = Lines()

    def describe(self) -> str:
        """``64 dense rows, 2 dense columns and 128 short rows``; empty if there are none."""
        kinds = (self.dense, "dense row"), (self.columns, "dense column"), (self.short, "short row")
        found = [_count(lines.count, what) for lines, what in kinds if lines.count]
        return " and ".join(([", ".join(found[:-1])] if found[1:] else []) + found[-1:])


@dataclass(frozen=True, slots=True)
class Pattern:
    """Facts about the zeros of one weight; hashable.

    ``shape`` is (outputs, inputs), ``array_shape`` that of the array measured.  ``fan_in`` is the
    nonzeros of every row that has any, where all agree.  ``blocks`` and ``nm`` hold every
    candidate; ``block`` and ``nm_best`` what is real structure, or None.  ``kind`` is one of
    empty, dense, dead (full but for dead rows or columns), blocks, nm, fan_in, hubs,
    unstructured.  ``live`` is the pattern without dead rows and columns where only that one
    shows structure.  ``uneven``: lines worth running apart.
    """

    shape: tuple[int, int]
    array_shape: tuple[int, ...]
    dtype: str
    nonzeros: int
    rows: Spread = Spread()
    columns: Spread = Spread()
    dead_rows: int = 0
    dead_columns: int = 0
    fan_in: int | None = None
    blocks: tuple[BlockFit, ...] = ()
    block: BlockFit | None = None
    nm: tuple[NmFit, ...] = ()
    nm_best: NmFit | None = None
    hub_rows: int = 0
    hub_columns: int = 0
    hub_share: float = 0.0
    uneven: Uneven = Uneven()
    kind: str = "empty"
    live: Pattern | None = None

    @property
    def density(self) -> float:
        """Nonzeros over elements; 0 for a matrix of no elements."""
        elements = self.shape[0] * self.shape[1]
        return self.nonzeros / elements if elements else 0.0

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1.0 - self.density

    @property
    def live_density(self) -> float:
        """Density without dead rows and columns."""
        alive = (self.shape[0] - self.dead_rows) * (self.shape[1] - self.dead_columns)
        return self.nonzeros / alive if alive else 0.0

    @property
    def row_variation(self) -> float:
        """Coefficient of variation of nonzeros a row."""
        return self.rows.variation

    @property
    def column_variation(self) -> float:
        """Coefficient of variation of nonzeros a column."""
        return self.columns.variation

    def block_fit(self, rows: int, columns: int) -> BlockFit | None:
        """The fit of one block size, None if it was no candidate."""
        return next((b for b in self.blocks if (b.rows, b.columns) == (rows, columns)), None)

    def nm_fit(self, m: int, axis: int = 1) -> NmFit | None:
        """The smallest n for groups of m, None if it was no candidate."""
        return next((f for f in self.nm if (f.m, f.axis) == (m, axis)), None)

    def describe(self) -> str:
        """One fragment of a sentence: ``90.0 % zero, unstructured, 307 nonzeros a row (sd 17)``."""
        parts = [f"{percent(self.sparsity)} zero", *_character(self), *_dead(self)]
        if self.live:
            parts.append(f"without them {_character(self.live)[0]}")
        return ", ".join(parts)


def percent(share: float) -> str:
    """One decimal, more where rounding would claim all or none."""
    digits = 1
    while digits < 6 and 0 < share < 1 and round(100 * share, digits) in (0, 100):
        digits += 1
    return f"{100 * share:.{digits}f} %"


def _character(p: Pattern) -> list[str]:
    if p.kind == "blocks" and p.block:
        return [f"blocks {p.block.rows}x{p.block.columns} (fill {100 * p.block.fill:.0f} %)"]
    if p.kind == "nm":
        return [str(p.nm_best)]
    if p.kind == "fan_in":
        return [f"fan-in {p.fan_in}"]
    if p.kind == "hubs":
        return [_hubs(p), _nonzeros_a_row(p)]
    if p.kind == "unstructured":
        return [p.kind, _nonzeros_a_row(p)]
    return ["dense but for dead lines" if p.kind == "dead" else p.kind]


def _nonzeros_a_row(p: Pattern) -> str:
    digits = 0 if p.rows.mean >= 10 else 1
    return f"{p.rows.mean:.{digits}f} nonzeros a row (sd {p.rows.deviation:.{digits}f})"


def _hubs(p: Pattern) -> str:
    hubs = " and ".join(_count(n, f"hub {what}") for n, what in _lines(p.hub_rows, p.hub_columns))
    return f"{hubs} with {percent(p.hub_share)} of the nonzeros"


def _dead(p: Pattern) -> list[str]:
    if p.kind == "empty":
        return []
    return [_count(n, f"dead {what}") for n, what in _lines(p.dead_rows, p.dead_columns)]


def _lines(rows: int, columns: int) -> list[tuple[int, str]]:
    return [(n, what) for n, what in ((rows, "row"), (columns, "column")) if n]


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def infer(array: MatrixLike) -> Pattern:
    """Measure a weight of any rank and dtype (rank 1 is one row), or a scipy.sparse matrix."""
    weight = np.asarray(array.toarray() if is_scipy(array) else array)
    mask = as_mask(weight)
    found = _measure(mask, weight.shape, str(weight.dtype))
    if not (found.dead_rows or found.dead_columns) or found.kind in ("empty", "dead", "blocks"):
        return found
    alive = mask[mask.any(axis=1)][:, mask.any(axis=0)]
    live = _measure(alive, alive.shape, found.dtype)
    return replace(found, live=live) if _shows_more(live, found) else found


def _shows_more(live: Pattern, found: Pattern) -> bool:
    """Dead lines shift true groups apart, yet what is left may still be even enough for wide ones."""
    if live.kind == "nm" and live.nm_best and found.nm_best:
        return live.nm_best.m < found.nm_best.m
    return live.kind in ("blocks", "nm")


def as_mask(array: MatrixLike) -> Array:
    """Where a weight is not zero: bool [outputs, everything else]."""
    weight = np.asarray(array.toarray() if is_scipy(array) else array)
    outputs = weight.shape[0] if weight.ndim > 1 else 1
    inner = int(np.prod(weight.shape[1:] if weight.ndim > 1 else weight.shape))
    return np.ascontiguousarray((weight != 0).reshape(outputs, inner))


def dead_rows(array: MatrixLike) -> Array:
    """Indices of the rows (outputs) of zeros, int64, ascending."""
    return np.flatnonzero(~as_mask(array).any(axis=1))


def dead_columns(array: MatrixLike) -> Array:
    """Indices of the columns (inputs, after flattening) of zeros, int64, ascending."""
    return np.flatnonzero(~as_mask(array).any(axis=0))


def padded_slots(array: MatrixLike, rows: int, columns: int) -> int:
    """Slots a kernel visits that runs ``rows`` rows together on slabs of ``columns`` columns.

    Every row of a group is padded to the fullest of the group within the slab: the sum over
    groups and slabs of ``rows`` times the most nonzeros of any one row.
    """
    mask = as_mask(array)
    grown = np.pad(mask, ((0, -mask.shape[0] % rows), (0, -mask.shape[1] % columns)))
    slabs = np.count_nonzero(grown.reshape(grown.shape[0], -1, columns), axis=2) if grown.size else grown
    return rows * int(slabs.reshape(-1, rows, slabs.shape[1]).max(axis=1).sum()) if grown.size else 0


def _measure(mask: Array, array_shape: tuple[int, ...], dtype: str) -> Pattern:
    counted = count(mask)
    blocks, block = find_blocks(counted)
    nm, nm_best = find_groups(counted, block)
    hub_rows, hub_columns, hub_share = _hub_facts(mask, counted)
    found = Pattern(
        counted.shape, tuple(array_shape), dtype, counted.nonzeros,
        rows=_spread(counted.by_row), columns=_spread(counted.by_column),
        dead_rows=int(np.count_nonzero(counted.by_row == 0)),
        dead_columns=int(np.count_nonzero(counted.by_column == 0)),
        fan_in=_fan_in(counted.by_row), blocks=blocks, block=block, nm=nm, nm_best=nm_best,
        hub_rows=hub_rows, hub_columns=hub_columns, hub_share=hub_share,
        uneven=_uneven(mask, counted),
    )  # fmt: skip
    return replace(found, kind=_kind(found))


def _spread(counts: Array) -> Spread:
    if not len(counts):
        return Spread()
    return Spread(int(counts.min()), float(counts.mean()), int(counts.max()), float(counts.std()))


def _fan_in(by_row: Array) -> int | None:
    alive = by_row[by_row > 0]
    return int(alive[0]) if len(alive) and alive.min() == alive.max() else None


def _hub_facts(mask: Array, counted: Counted) -> tuple[int, int, float]:
    """Hub rows, hub columns, and the share of the nonzeros that lie in either."""
    rows, columns = _hub_lines(counted.by_row), _hub_lines(counted.by_column)
    twice = np.count_nonzero(mask[np.ix_(rows, columns)])
    inside = int(counted.by_row[rows].sum() + counted.by_column[columns].sum()) - int(twice)
    return len(rows), len(columns), inside / max(counted.nonzeros, 1)


def _hub_lines(counts: Array) -> Array:
    """Lines far above the others, by median and median absolute deviation (robust to the hubs)."""
    alive = counts[counts > 0]
    if not len(alive):
        return np.zeros(0, np.int64)
    median = float(np.median(alive))
    # 1.4826: median absolute deviation to standard deviation; a count varies by its root at least
    deviation = max(1.4826 * float(np.median(np.abs(alive - median))), median**0.5)
    return np.flatnonzero((counts > HUB_TIMES * median) & (counts > median + HUB_DEVIATIONS * deviation))


def _uneven(mask: Array, counted: Counted) -> Uneven:
    parts = hybrid.split(mask, counted.by_row, counted.by_column)
    strip = mask[np.ix_(parts.long, parts.columns)]
    dense, short = (Lines(len(rows), int(counted.by_row[rows].sum())) for rows in (parts.dense, parts.short))
    return Uneven(dense, short, Lines(len(parts.columns), int(np.count_nonzero(strip))))


def _kind(p: Pattern) -> str:
    if not p.nonzeros:
        return "empty"
    if p.live_density >= FULL:
        return "dead" if p.dead_rows or p.dead_columns else "dense"
    if p.block:
        return "blocks"
    if p.nm_best:
        return "nm"
    alive = p.shape[0] - p.dead_rows
    if p.fan_in and even_rows_evidence(p.fan_in, alive, *p.shape) < CERTAIN:
        return "fan_in"
    return "hubs" if p.hub_share >= HUB_SHARE else "unstructured"


__all__ = [
    "BLOCK_SIZES", "GROUP_SIZES", "BlockFit", "Lines", "NmFit", "Pattern", "Spread", "Uneven", "as_mask",
    "dead_columns", "dead_rows", "infer", "padded_slots",
]  # fmt: skip

"""row_packing: the arrays that row_visits reads.

``values`` [steps, R]; ``offsets`` [steps, R or 1] into the tile of X, uint16 in elements or uint8 in
multiples of a scale; ``rows`` uint16 (int32 where there are more than 65536) [groups, R]; ``runs``
int32 [runs, 4]: steps a visit, visits, first step, first group; ``cells`` int32: first run of each
(chunk, block); ``tails`` int32 [blocks, 2]: first step and steps of the M % R rows left over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weight = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Grouping:
    """``group`` rows a visit, ``chunk`` rows a unit of work; ``shared``: a group shares its columns."""

    group: int
    chunk: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a kernel finds the inner dimension: the indices of each block, and each one's offset.

    ``offsets`` [K] are element offsets into the tile of X of the index's block, below 65536; above
    a ``scale`` of 1 they are multiples of it, below 256 times the scale.
    """

    blocks: tuple[Weight, ...]
    offsets: Weight
    scale: int = 1


def byte_scale(step: int, count: int) -> int:
    """The scale for ``count`` offsets that are multiples of ``step``: 1 where a byte cannot hold them."""
    return step if count <= 256 else 1


def offset_type(scale: int) -> str:
    """The dtype of offsets."""
    return "uint8" if scale > 1 else "uint16"


def row_type(rows: int) -> str:
    """The dtype of row numbers of a weight of so many rows."""
    return "uint16" if rows <= 1 << 16 else "int32"


def pointers(rows: int, scale: int) -> list[tuple[str, str]]:
    """The pointer parameters that hold a packed weight, in order."""
    return [
        ("values", "float32"), ("offsets", offset_type(scale)), ("rows", row_type(rows)), ("runs", "int32"),
        ("cells", "int32"), ("tails", "int32"),
    ]  # fmt: skip


def stored_bytes(rows: int, scale: int, values: float, offsets: float, visits: float) -> int:
    """What a weight takes with so many values, offsets and visited rows."""
    widths = (np.dtype(t).itemsize for t in ("float32", offset_type(scale), row_type(rows)))
    return int(sum(width * count for width, count in zip(widths, (values, offsets, visits), strict=True)))


@dataclass(slots=True)
class _Store:
    """Arrays under construction."""

    values: list[Weight] = field(default_factory=list)
    offsets: list[Weight] = field(default_factory=list)
    rows: list[Weight] = field(default_factory=list)
    runs: list[Weight] = field(default_factory=list)
    cells: list[int] = field(default_factory=lambda: [0])
    steps: int = 0
    groups: int = 0


def pack_rows(weight: Weight, grouping: Grouping, columns: Columns) -> tuple[dict[str, Weight], int]:
    """The arrays of ``weight[M, K]``, and the number of chunks."""
    rows = weight.shape[0]
    whole = rows // grouping.group * grouping.group
    places = columns.offsets // columns.scale
    chunks = max(1, -(-whole // grouping.chunk))
    store = _Store()
    for chunk in range(chunks):
        first, last = chunk * grouping.chunk, min((chunk + 1) * grouping.chunk, whole)
        for number, block in enumerate(columns.blocks):
            edge = number in (0, len(columns.blocks) - 1)
            _pack_cell(store, weight[first:last, block], places[block], first, grouping, edge)
    tails = [_pack_tail(store, weight[whole:, block], places[block], grouping) for block in columns.blocks]
    arrays = {
        "values": _joined(store.values, np.float32),
        "offsets": _joined(store.offsets, offset_type(columns.scale)),
        "rows": _joined(store.rows, row_type(rows)),
        "runs": _joined(store.runs, np.int32),
        "cells": np.array(store.cells, np.int32),
        "tails": np.array(tails, np.int32).reshape(-1),
    }
    return arrays, chunks


def _joined(parts: list[Weight], dtype: Any) -> Weight:
    # never empty: a pointer to nothing would have no address to map
    flat = [p.reshape(-1) for p in parts if p.size]
    return np.concatenate(flat).astype(dtype) if flat else np.zeros(1, dtype)


def _pack_cell(
    store: _Store, block: Weight, offsets: Weight, first_row: int, grouping: Grouping, keep_all: bool
) -> None:
    r = grouping.group
    used = block != 0
    if grouping.shared:
        used = used.reshape(-1, r, block.shape[1]).any(axis=1)
    counts = used.sum(axis=1)
    order = np.argsort(-counts, kind="stable")
    per_group = 1 if grouping.shared else r
    if not keep_all:
        order = order[: -(-int((counts > 0).sum()) // per_group) * per_group]
    if order.size:
        groups = order.reshape(-1, per_group)
        members = groups[:, :1] * r + np.arange(r) if grouping.shared else groups
        length = counts[groups].max(axis=1)
        _place(store, block, offsets, used, groups, members, length, grouping)
        store.rows.append(members + first_row)
        _add_runs(store, length)
    store.cells.append(sum(run.shape[0] for run in store.runs))


def _place(
    store: _Store, block: Weight, places: Weight, used: Weight, groups: Weight, members: Weight,
    length: Weight, grouping: Grouping,
) -> None:  # fmt: skip
    begin = np.concatenate(([0], np.cumsum(length)[:-1])).astype(np.int64)
    total = int(length.sum())
    slot_of = np.full(used.shape[0], -1, np.int64)
    slot_of[groups.reshape(-1)] = np.arange(groups.size)
    row, column = np.nonzero(used)
    inside = slot_of[row] >= 0
    row, column = row[inside], column[inside]
    before = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=used.shape[0]))))
    rank = np.arange(row.size) - before[row]
    group, lane = np.divmod(slot_of[row], groups.shape[1])
    step = begin[group] + rank
    offsets = np.zeros((total, groups.shape[1]), np.uint16)
    offsets[step, lane] = places[column]
    values = np.zeros((total, grouping.group), np.float32)
    if grouping.shared:
        values[step] = block[members[group], column[:, None]]
    else:
        values[step, lane] = block[row, column]
    store.values.append(values)
    store.offsets.append(offsets)


def _add_runs(store: _Store, length: Weight) -> None:
    change = np.flatnonzero(np.diff(length)) + 1
    first = np.concatenate(([0], change))
    visits = np.diff(np.concatenate((first, [length.size])))
    steps = np.concatenate(([0], np.cumsum(length)))
    runs = np.stack([length[first], visits, store.steps + steps[first], store.groups + first], axis=1)
    store.runs.append(runs)
    store.steps += int(steps[-1])
    store.groups += length.size


def _pack_tail(store: _Store, block: Weight, places: Weight, grouping: Grouping) -> tuple[int, int]:
    """The rows left over, padded with zero rows to a group that shares its columns."""
    columns = np.flatnonzero((block != 0).any(axis=0))
    begin = store.steps
    if block.shape[0] == 0 or columns.size == 0:
        return begin, 0
    values = np.zeros((columns.size, grouping.group), np.float32)
    values[:, : block.shape[0]] = block[:, columns].T
    offsets = np.repeat(places[columns][:, None], 1 if grouping.shared else grouping.group, axis=1)
    store.values.append(values)
    store.offsets.append(offsets.astype(np.uint16))
    store.steps += columns.size
    return begin, int(columns.size)

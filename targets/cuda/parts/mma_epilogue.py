"""mma_epilogue: from accumulators to neighbours that one store takes, and the order of blocks.

A thread's accumulators are 2 x 2 elements of every 16 x 8, so that storing them as they lie would
write 4 bytes at a time.  There are two ways out:

* :func:`deliver`, for any order: they go, some lines at a time, to the shared memory that the tiles no longer
  need, as float32, and come back as up to eight neighbours of a line to each thread.  Lines are padded so
  that the 32 banks are written without conflict.
* :func:`deliver_columns` and :func:`deliver_rows`, where the weight may be stored in an order of our
  choice: its rows are dealt out such that a thread's accumulators *are* neighbours, and go straight to
  memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.targets.cuda.builder import Array, Kernel
from sparsec.targets.cuda.parts.mma_tiles import ACCUMULATORS, SLAB, Tiling, warp_place
from sparsec.targets.cuda.tir import T

#: columns of one multiply instruction
_COLUMNS = 8

#: ``store(line, first, values)``: float32 neighbours of a line of the block's tile, from ``first`` on
Store = Callable[[Any, Any, list[Any]], None]


def deliver(
    k: Kernel, tiling: Tiling, accumulators: Array, store: Store, lanes: int = 8, turned: bool = False,
    start: int = 0,
) -> None:  # fmt: skip
    """Hand out what a block has made, ``lanes`` (1, 2, 4 or 8) neighbours at a time.

    Lines are the rows of D, or its columns if ``turned``.  All threads of the block must come here; shared
    memory is overwritten from byte ``start`` on.
    """
    lines, width = (tiling.columns, tiling.rows) if turned else (tiling.rows, tiling.columns)
    slab, warps = (_COLUMNS, tiling.wide) if turned else (SLAB, tiling.high)
    pitch = _pitch(width, turned)
    slabs = lines // warps // slab
    room = k.shared_bytes - start
    passes = next(p for p in _divisors(slabs) if p == slabs or lines // p * pitch * 4 <= room)
    here = lines // passes
    if here * pitch * 4 > room:
        k.shared(here * pitch * 4 - room, "uint8")
    buffer = k.shared_at(start, "float32")
    per = slabs // passes
    for one in range(passes):
        k.sync()
        for part in range(one * per, (one + 1) * per):
            _put(k, tiling, accumulators, buffer, part, part - one * per, per, pitch, turned)
        k.sync()

        def placed(line: Any, first: Any, values: list[Any], one: int = one) -> None:
            slab_first = _line(tiling, turned, line // (per * slab), one * per + line // slab % per)
            store(slab_first + line % slab, first, values)

        _read(k, buffer, here, width, pitch, lanes, placed)


def _line(tiling: Tiling, turned: bool, warp: Any, slab: Any) -> Any:
    """The first line of a warp's slab."""
    if turned:
        return warp * tiling.warp_columns + slab * _COLUMNS
    return tiling.first_row(warp) + slab * tiling.slab_step


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _pitch(width: int, turned: bool) -> int:
    """Words from line to line.

    A warp writes 8 rows x 4 pairs of columns: lines 8 words apart (or 24) meet no bank twice.  Turned it
    writes 4 columns, every other one, x 8 rows: lines 4 words apart (or 12).
    """
    modulus, residue = (16, 4) if turned else (32, 8)
    return width + (residue - width) % modulus


def _put(
    k: Kernel, tiling: Tiling, accumulators: Array, buffer: Array, part: int, at: int, per: int, pitch: int,
    turned: bool,
) -> None:  # fmt: skip
    """Write the ``part``-th slab of every warp's lines as the ``at``-th of ``per``."""
    row, column = warp_place(k, tiling)
    inner_row, inner_column = k.lane // 4, k.lane % 4 * 2
    halves = tiling.warp_columns // _COLUMNS
    if turned:
        warp = k.warp // tiling.high
        start = k.bind(((warp * per + at) * _COLUMNS + inner_column) * pitch + row + inner_row)
        for i in range(tiling.warp_rows // SLAB):
            base = (i * halves + part) * ACCUMULATORS
            for e in range(ACCUMULATORS):
                buffer.put(start + e % 2 * pitch + i * tiling.slab_step + e // 2 * 8, accumulators[base + e])
        return
    warp = k.warp % tiling.high
    start = k.bind(((warp * per + at) * SLAB + inner_row) * pitch + column + inner_column)
    for j in range(halves):
        base = (part * halves + j) * ACCUMULATORS
        for e in (0, 2):
            pair = accumulators.vector(base + e, 2)
            buffer.put(start + e // 2 * 8 * pitch + j * _COLUMNS, pair, 2)


def _read(k: Kernel, buffer: Array, lines: int, width: int, pitch: int, lanes: int, store: Store) -> None:
    across = width // lanes
    places = lines * across

    def one(at: Any) -> None:
        line, first = k.bind(at // across), k.bind(at % across * lanes)
        values = k.registers(lanes)
        step = min(lanes, 4)
        for i in range(0, lanes, step):
            values.put(i, buffer.vector(line * pitch + first + i, step), step)
        store(line, first, [values[i] for i in range(lanes)])

    with k.loop(-(-places // k.threads)) as turn:
        at = k.bind(turn * k.threads + k.thread)
        if places % k.threads == 0:
            one(at)
            return
        with k.when(at < places):
            one(at)


def column_order(group: int) -> list[int]:
    """Which of ``group`` (16 or 32) neighbours B has as its columns 0, 1, ... for :func:`deliver_columns`.

    A thread has columns 2 t and 2 t + 1 of every 8.
    """
    eights = group // _COLUMNS
    places = [(p // 8, p % 8 // 2, p % 2) for p in range(group)]
    return [2 * eights * t + 2 * eight + e for eight, t, e in places]


def deliver_columns(
    k: Kernel, tiling: Tiling, accumulators: Array, store: Store, lanes: int, group: int
) -> None:
    """Hand out what a block has made, from registers, lines being rows of D.

    Each ``group`` columns of B must be in :func:`column_order`; ``store`` is told the places that they are
    of. Four threads make ``group`` neighbours, at most eight each (``lanes`` at a time).
    """
    row, column = warp_place(k, tiling)
    halves, eights = tiling.warp_columns // _COLUMNS, group // _COLUMNS
    line, inner = k.bind(row + k.lane // 4), k.bind(column + k.lane % 4 * (2 * eights))
    for i in range(tiling.warp_rows // SLAB):
        for up in range(2):
            here = k.bind(line + (i * tiling.slab_step + 8 * up))
            for first in range(0, halves, eights):
                numbers = [
                    accumulators[(i * halves + first + j) * ACCUMULATORS + 2 * up + e]
                    for j in range(eights) for e in range(2)
                ]  # fmt: skip
                for part in range(0, len(numbers), lanes):
                    store(here, inner + (first * _COLUMNS + part), numbers[part : part + lanes])


#: rows that :func:`deliver_rows` deals out
PAIR = 2 * SLAB


def row_order() -> list[int]:
    """Which of ``PAIR`` neighbours A has as its rows 0, 1, ... for :func:`deliver_rows`.

    A thread has rows g and g + 8 of each 16.
    """
    return [4 * (p % 8) + 2 * (p // SLAB) + p // 8 % 2 for p in range(PAIR)]


def deliver_rows(k: Kernel, tiling: Tiling, accumulators: Array, store: Store, lanes: int) -> None:
    """Hand out what a block has made, from registers, lines being columns of D.

    Each ``PAIR`` rows of A must be in :func:`row_order`, warp after warp (of a grouped tiling each makes 32).
    Eight threads make 32 neighbours, four each (at most ``lanes`` at a time).
    """
    _, column = warp_place(k, tiling)
    halves = tiling.warp_columns // _COLUMNS
    inner = k.bind(k.warp % tiling.high * tiling.warp_rows + k.lane // 4 * 4)
    line = k.bind(column + k.lane % 4 * 2)
    for j in range(halves):
        for e in range(2):
            for pair in range(tiling.warp_rows // PAIR):
                numbers = [
                    accumulators[((2 * pair + i) * halves + j) * ACCUMULATORS + 2 * up + e]
                    for i in range(2) for up in range(2)
                ]  # fmt: skip
                for part in range(0, 4, min(lanes, 4)):
                    chosen = numbers[part : part + min(lanes, 4)]
                    store(line + (j * _COLUMNS + e), inner + (pair * PAIR + part), chosen)


def tile_of_block(k: Kernel, fast: int, slow: Any, group: int = 8) -> tuple[Any, Any]:
    """Which tile a block makes of ``fast`` (known) by ``slow`` (an int32 expression or number): (fast, slow).

    Blocks that run at one time should read few tiles of both operands, so that L2 serves them: up to
    ``group`` slow ones are visited for each fast one before the next.
    """
    block = k.bind(T.cast(k.block, "int32"))
    band = k.bind(block // (group * fast))
    inside = k.bind(block % (group * fast))
    height = k.bind(T.min(slow - band * group, group))
    return k.bind(inside // height), k.bind(band * group + inside % height)

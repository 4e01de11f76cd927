"""conv_rows: nonzeros of a convolution's rows, dealt out to warps and channel blocks.

Rows are dealt to *cells*, one a warp, so that all have about as many nonzeros; a cell's rows follow each
other, and so do, block of channels by block, the nonzeros of each of them, in steps of four.  Arrays:

    values   [steps, 4]     of x's dtype; zeros fill a row's last step of a block
    places   [steps, 4]     uint16: where in the channels held (see lines) a tap of a channel lies
    starts   [cells, blocks, rows a cell] + 1   int32: the first step of each
    rows     [cells, rows a cell]   int32: which output channel, -1 for none
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

#: nonzeros that are read at once
STEP = 4


def deal(counts: Array, cells: int, height: int) -> Array:
    """Rows, as evenly filled as dealing them to and fro makes it: [cells, height], -1 for none."""
    order = np.argsort(-counts, kind="stable")
    slots = np.full(cells * height, -1, np.int64)
    slots[: len(order)] = order
    rounds = slots.reshape(height, cells)
    rounds[1::2] = rounds[1::2, ::-1]
    return np.ascontiguousarray(rounds.T)


def pack(weight: Array, places: Array, cells: int, height: int) -> dict[str, Array]:
    """The arrays of ``weight[M, taps * C]``; ``places[channels, taps]`` of the channels held at a time."""
    held, taps = places.shape
    channels = weight.shape[1] // taps
    blocks = -(-channels // held)
    mask = weight != 0
    dealt = deal(mask.sum(axis=1), cells, height)
    slot_of = np.empty(weight.shape[0], np.int64)
    used = dealt.reshape(-1) >= 0
    slot_of[dealt.reshape(-1)[used]] = np.flatnonzero(used)

    row, column = np.nonzero(mask)
    tap, channel = np.divmod(column, channels)
    block, local = np.divmod(channel, held)
    cell, inside = np.divmod(slot_of[row], height)
    run = (cell * blocks + block) * height + inside
    place = places[local, tap]
    order = np.lexsort((place, run))
    run, place, value = run[order], place[order], weight[row, column][order]

    counts = np.bincount(run, minlength=cells * blocks * height)
    starts = np.concatenate(([0], np.cumsum(-(-counts // STEP))))
    before = np.concatenate(([0], np.cumsum(counts)))[:-1]
    at = starts[run] * STEP + np.arange(len(run)) - before[run]
    # one more step: kernels read ahead
    values = np.zeros((int(starts[-1]) + 1) * STEP, weight.dtype)
    stored = np.zeros(len(values), np.uint16)
    values[at], stored[at] = value, place
    return {
        "values": values, "places": stored, "starts": starts.astype(np.int32),
        "rows": dealt.reshape(-1).astype(np.int32),
    }  # fmt: skip


def stored_steps(nonzeros: float, runs: float) -> float:
    """About how many steps so many nonzeros take in so many runs, not all of which have any."""
    return nonzeros / STEP + 0.375 * min(runs, nonzeros)


def stored_bytes(steps: float, item: int, runs: float, rows: int) -> int:
    """What the arrays take."""
    return int((steps + 1) * STEP * (item + 2) + 4 * (runs + 1) + 4 * rows)

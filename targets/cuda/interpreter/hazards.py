"""hazards: threads that touch the same shared memory without a barrier between them.

For every cell of a block's shared memory we remember who wrote it last, who read it last, and a reader of
another warp, each with the number of barriers of the block and of the warp that had passed.  Two accesses
of which one is a write conflict if no barrier of the block lies between them, or, by threads of one warp,
none of the warp either: threads of a warp need not run in lockstep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda.interpreter.memory import InterpreterError

if TYPE_CHECKING:
    from sparsec.targets.cuda.interpreter.machine import Machine

_WARP = 32
#: a stamp: block's barriers << 36 | warp's barriers << 12 | warp << 6 | lane; 0: never
_EPOCH, _TURN, _WARP_BITS = 36, 12, 6
_LANE_MASK = (1 << _WARP_BITS) - 1
_THREAD_MASK = (1 << _TURN) - 1
#: stands for several lanes of a warp
_MANY = 32
#: what cells are at first, in bytes; they become smaller as soon as less is accessed
_WIDEST = 16

Stamps = NDArray[np.int64]


class Hazards:
    """What was touched since which barrier in the shared memory of ``blocks`` blocks."""

    def __init__(self, blocks: int, threads: int, row_bytes: int) -> None:
        self._grain = _WIDEST
        self._cells = -(-row_bytes // _WIDEST)
        self._epoch = np.ones(blocks, np.int64)
        self._turn = np.zeros((blocks, -(-threads // _WARP)), np.int64)
        self._written, self._read, self._also_read = (
            np.zeros((blocks, self._cells), np.int64) for _ in range(3)
        )  # fmt: skip
        self._code = self._codes(threads)

    @staticmethod
    def _codes(threads: int) -> Stamps:
        thread = np.arange(threads, dtype=np.int64)
        codes: Stamps = (thread // _WARP << _WARP_BITS) | (thread % _WARP)
        return codes

    def sync_blocks(self, blocks: NDArray[np.bool_]) -> None:
        """These blocks passed a barrier."""
        self._epoch += blocks

    def sync_warps(self, warps: NDArray[np.bool_]) -> None:
        """These warps, ``[blocks, warps]``, passed a barrier."""
        self._turn += warps

    def read(self, machine: Machine, byte: Stamps, nbytes: int, collective: bool) -> None:
        """Active threads read ``nbytes`` from their ``byte`` on."""
        cells, stamps = self._touched(machine, byte, nbytes, collective)
        if not cells.size:
            return
        self._check(machine, self._written, cells, stamps, "reads", "wrote")
        flat, other = self._read.reshape(-1), self._also_read.reshape(-1)
        old = flat[cells]
        flat[cells] = self._together(old, stamps)
        elsewhere = (old >> _EPOCH == stamps >> _EPOCH) & _other_warp(old, stamps)
        other[cells[elsewhere]] = old[elsewhere]
        # of several readers in this statement one was noted: note another, and that there were several
        won = flat[cells]
        lost = won != stamps
        if lost.any():
            cells, stamps, won = cells[lost], stamps[lost], won[lost]
            apart = _other_warp(won, stamps)
            other[cells[apart]] = stamps[apart]
            near = ~apart
            flat[cells[near]] = (won[near] & ~_LANE_MASK) | _MANY

    def write(self, machine: Machine, byte: Stamps, nbytes: int) -> None:
        """Active threads write ``nbytes`` from their ``byte`` on."""
        cells, stamps = self._touched(machine, byte, nbytes, False)
        if not cells.size:
            return
        self._check(machine, self._written, cells, stamps, "writes", "wrote")
        self._check(machine, self._read, cells, stamps, "writes", "read")
        self._check(machine, self._also_read, cells, stamps, "writes", "read")
        flat = self._written.reshape(-1)
        flat[cells] = stamps
        self._check(machine, self._written, cells, stamps, "writes", "wrote")

    @staticmethod
    def _together(old: Stamps, stamps: Stamps) -> Stamps:
        """The new reader's stamp, or that of its warp if another lane read in the same turn."""
        same_turn = (old ^ stamps) >> _WARP_BITS == 0
        several = same_turn & (old != stamps)
        joined: Stamps = np.where(several, (stamps & ~_LANE_MASK) | _MANY, stamps)
        return joined

    def _touched(
        self, machine: Machine, byte: Stamps, nbytes: int, collective: bool
    ) -> tuple[NDArray[np.int64], Stamps]:
        """The cells that active threads touch, and who touches each: two flat arrays."""
        blocks, threads = machine.shape
        self._refine(byte, nbytes)
        wide = max(nbytes // self._grain, 1)
        codes = (self._code & ~_LANE_MASK) | _MANY if collective else self._code
        now = (
            (self._epoch[:, None] << _EPOCH)
            | (np.repeat(self._turn, _WARP, axis=1)[:, :threads] << _TURN)
            | codes
        )
        first = byte // self._grain + (np.arange(blocks) * self._cells)[:, None, *([None] * (byte.ndim - 2))]
        shape = (blocks, threads, *byte.shape[2:])
        active = slice(None) if machine.mask is None else machine.mask
        chosen = np.broadcast_to(first, shape)[active].reshape(-1)
        per_thread = np.broadcast_to(now.reshape(blocks, threads, *([1] * (byte.ndim - 2))), shape)
        who = per_thread[active].reshape(-1)
        if wide == 1:
            return chosen, who
        return (chosen[:, None] + np.arange(wide)).reshape(-1), np.repeat(who, wide)

    def _refine(self, byte: Stamps, nbytes: int) -> None:
        """Make cells no larger than what is accessed."""
        together = int(np.bitwise_or.reduce(byte, axis=None)) | nbytes | self._grain
        grain = together & -together
        if grain < self._grain:
            by = self._grain // grain
            self._written, self._read, self._also_read = (
                np.repeat(a, by, axis=1) for a in (self._written, self._read, self._also_read)
            )  # fmt: skip
            self._grain, self._cells = grain, self._cells * by

    def _check(
        self, machine: Machine, noted: Stamps, cells: Any, stamps: Stamps, now: str, before: str
    ) -> None:
        old = noted.reshape(-1)[cells]
        recent = old >> _EPOCH == stamps >> _EPOCH
        if not recent.any():
            return
        different = (old ^ stamps) & _THREAD_MASK != 0
        # what a warp did as one is not ordered with what its threads do
        different |= (old & _LANE_MASK) == _MANY
        wrong = recent & different & (_other_warp(old, stamps) | (old >> _TURN == stamps >> _TURN))
        if wrong.any():
            self._refuse(machine, int(np.asarray(cells)[wrong][0]), int(stamps[wrong][0]), int(old[wrong][0]),
                         now, before)  # fmt: skip

    def _refuse(self, machine: Machine, cell: int, stamp: int, old: int, now: str, before: str) -> None:
        block, inside = divmod(cell, self._cells)
        raise InterpreterError(
            f"shared memory: {_who(stamp)} {now} byte {inside * self._grain} that {_who(old)} {before}, "
            f"with no barrier between (block {machine.first + block})"
        )


def _other_warp(a: Stamps, b: Stamps) -> NDArray[np.bool_]:
    different: NDArray[np.bool_] = ((a ^ b) & _THREAD_MASK) >> _WARP_BITS != 0
    return different


def _who(stamp: int) -> str:
    warp, lane = (stamp & _THREAD_MASK) >> _WARP_BITS, stamp & _LANE_MASK
    return f"warp {warp}" if lane == _MANY else f"thread {warp * _WARP + lane}"

"""machine: some blocks of a grid while the interpreter runs them: who is active, warps, barriers, copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda.interpreter.hazards import Hazards
from sparsec.targets.cuda.interpreter.memory import InterpreterError, Memory, Pointer, Values

WARP = 32


@dataclass(slots=True)
class _Copy:
    """Bytes on their way to shared memory: where each thread's go, and what they are."""

    pointer: Pointer
    data: Values
    waiting: NDArray[np.bool_]


@dataclass(slots=True)
class _Group:
    """The copies that threads closed with one commit."""

    owners: NDArray[np.bool_]
    copies: list[_Copy] = field(default_factory=list)


class Machine:
    """``blocks`` blocks of ``threads`` threads in lockstep, from block ``first`` of the grid on.

    ``mask`` tells which threads are active, ``[blocks, threads]``; None: all of them.
    """

    def __init__(
        self, first: int, blocks: int, threads: int, shared_bytes: int, slots: int, check: bool
    ) -> None:
        self.first = first
        self.shape = (blocks, threads)
        self.mask: NDArray[np.bool_] | None = None
        self.slots: list[Any] = [None] * slots
        rows = np.arange(blocks, dtype=np.int64)[:, None]
        self.shared = Memory.of_rows("shared memory", blocks, shared_bytes, rows)
        self.hazards = Hazards(blocks, threads, shared_bytes) if check and shared_bytes else None
        self._rows = np.arange(blocks * threads, dtype=np.int64).reshape(self.shape)
        self._registers: dict[int, Memory] = {}
        #: multiplications that were issued and not yet waited for (sparsec.targets.cuda.warpgroup)
        self.in_flight: list[Any] = []
        self._open: list[_Copy] = []
        self._groups: list[_Group] = []

    def registers(self, slot: int, nbytes: int) -> Memory:
        """The threads' own memory of a slot, its contents forgotten."""
        if slot in self._registers:
            self._registers[slot].forget()
        else:
            self._registers[slot] = Memory.of_rows("registers", self._rows.size, nbytes, self._rows)
        return self._registers[slot]

    # -- who is active

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which threads are active."""
        return np.ones(self.shape, np.bool_) if self.mask is None else self.mask

    def any_active(self) -> bool:
        """Whether any thread is."""
        return self.mask is None or bool(self.mask.any())

    def narrowed(self, condition: Values) -> NDArray[np.bool_] | None:
        """The mask of those active threads for which a condition holds."""
        if condition.all():
            return self.mask
        full = np.broadcast_to(condition, self.shape)
        return np.array(full) if self.mask is None else self.mask & full

    @contextmanager
    def only(self, condition: Any) -> Iterator[None]:
        """Within, only threads for which the condition holds are active."""
        before = self.mask
        self.mask = self.narrowed(np.asarray(condition, np.bool_))
        try:
            yield
        finally:
            self.mask = before

    def refuse(self, wrong: Values, message: Callable[[Callable[[Values], str]], str]) -> None:
        """Raise an InterpreterError if ``wrong`` holds for an active thread.

        ``message`` is given a function that shows the value of an array at the first such thread.
        """
        if not wrong.any():
            return
        per_thread = wrong.any(axis=tuple(range(2, wrong.ndim))) if wrong.ndim > 2 else wrong
        bad = np.broadcast_to(per_thread, self.shape)
        if self.mask is not None:
            bad = bad & self.mask
        if not bad.any():
            return
        block, thread = np.unravel_index(int(bad.argmax()), self.shape)

        def where(values: Values) -> str:
            full = np.broadcast_to(values, (*self.shape, *values.shape[2:]))
            return "element " + str(full[block, thread])

        place = f"block {self.first + int(block)}, thread {int(thread)}"
        raise InterpreterError(f"{message(where)} ({place})")

    # -- warps

    def by_warp(self, array: Any) -> Values:
        """``[blocks, threads, ...]`` as ``[blocks, warps, 32, ...]``.

        Raises:
            InterpreterError: a warp is only partly active.
        """
        self.whole_warps()
        values = np.asarray(array)
        if values.ndim < 2:
            values = values.reshape(1, 1)
        blocks, threads = self.shape
        full = np.broadcast_to(values, (blocks, threads, *values.shape[2:]))
        return full.reshape(blocks, threads // WARP, WARP, *values.shape[2:])

    def by_thread(self, array: Values) -> Values:
        """The inverse of :meth:`by_warp`."""
        return array.reshape(*self.shape, *array.shape[3:])

    def whole_warps(self) -> NDArray[np.bool_]:
        """Which warps are active, ``[blocks, warps]``; raises if one is in part."""
        blocks, threads = self.shape
        if threads % WARP:
            raise InterpreterError(f"an instruction of whole warps in blocks of {threads} threads")
        if self.mask is None:
            return np.ones((blocks, threads // WARP), np.bool_)
        grouped = self.mask.reshape(blocks, threads // WARP, WARP)
        some, all_ = np.asarray(grouped.any(axis=2)), np.asarray(grouped.all(axis=2))
        if (some != all_).any():
            block, warp = np.argwhere(some != all_)[0]
            raise InterpreterError(
                f"a warp's instruction is reached by {int(grouped[block, warp].sum())} of its threads "
                f"(block {self.first + int(block)}, warp {int(warp)})"
            )
        return all_

    # -- barriers and what they order

    def sync_block(self) -> None:
        """A barrier of the block.

        Raises:
            InterpreterError: only part of a block has come to it.
        """
        some, all_ = np.asarray(self.active.any(axis=1)), np.asarray(self.active.all(axis=1))
        if (some != all_).any():
            block = int((some != all_).argmax())
            raise InterpreterError(
                f"a barrier is reached by {int(self.active[block].sum())} of {self.shape[1]} threads "
                f"(block {self.first + block})"
            )
        if self.hazards is not None:
            self.hazards.sync_blocks(all_)

    def sync_warp(self) -> None:
        """A barrier of the warp."""
        warps = self.whole_warps()
        if self.hazards is not None:
            self.hazards.sync_warps(warps)

    def reads(self, memory: Memory, index: Values, size: int, lanes: int, collective: bool = False) -> None:
        """Note (and check) that threads read shared memory."""
        if memory is self.shared and self.hazards is not None:
            self.hazards.read(self, index.astype(np.int64) * size, size * lanes, collective)

    def writes(self, memory: Memory, index: Values, size: int, lanes: int) -> None:
        """Note (and check) that threads write shared memory."""
        if memory is self.shared and self.hazards is not None:
            self.hazards.write(self, index.astype(np.int64) * size, size * lanes)

    # -- asynchronous copies

    def copy_later(self, pointer: Pointer, data: Values) -> None:
        """Begin to copy ``data[blocks, threads, bytes]`` to shared memory: poison until it is waited for."""
        if pointer.memory is not self.shared:
            raise InterpreterError("asynchronous copies go to shared memory")
        at = Pointer(self, pointer.memory, pointer.byte(), np.dtype(np.uint8))
        poison = np.broadcast_to(np.uint8(0xFF), data.shape)
        at.store(poison, lanes=data.shape[2])
        self._open.append(_Copy(at, data, np.array(self.active)))

    def commit_copies(self) -> None:
        """Close the active threads' group of copies."""
        group = _Group(np.array(self.active))
        left = []
        for copy in self._open:
            mine = copy.waiting & group.owners
            group.copies.append(_Copy(copy.pointer, copy.data, mine))
            if (copy.waiting & ~group.owners).any():
                left.append(_Copy(copy.pointer, copy.data, copy.waiting & ~group.owners))
        self._open = left
        self._groups.append(group)

    def wait_copies(self, pending: int) -> None:
        """Let all groups of the active threads arrive but each one's latest ``pending``."""
        later = np.zeros(self.shape, np.int64)
        kept: list[_Group] = []
        for group in reversed(self._groups):
            done = self.active & group.owners & (later >= pending)
            later += group.owners
            for copy in group.copies:
                with self.only(done & copy.waiting):
                    if self.any_active():
                        copy.pointer.store(copy.data, lanes=copy.data.shape[2])
                copy.waiting &= ~done
            group.owners = group.owners & ~done
            if group.owners.any():
                kept.append(group)
        self._groups = kept[::-1]

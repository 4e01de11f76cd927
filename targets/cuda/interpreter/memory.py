"""memory: what the interpreter's threads read and write: global arrays, shared memory, registers.

All three are rows of bytes: a global array is one row that every thread sees, shared memory a row a block,
registers a row a thread.  Values are arrays of shape ``[blocks, threads]`` or anything that broadcasts to
it (``[1, 1]`` for what all threads share); vectors have one axis more, their lanes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sparsec.errors import SparsecError

if TYPE_CHECKING:
    from sparsec.targets.cuda.interpreter.machine import Machine

#: bytes of memory nobody wrote: NaN as any float, -1 as any integer
POISON = 0xFF
#: the widest access of the machine, in bytes
WIDEST = 16

Values = NDArray[Any]


class InterpreterError(SparsecError):
    """A kernel does what a GPU would not forgive; the message says where."""


def numpy_type(name: str) -> np.dtype[Any]:
    """NumPy's type of one of TVM's element types."""
    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return kind


class Memory:
    """Rows of bytes, and which row each thread sees.

    ``rows`` is None for one row that all share, else the number of each thread's row, of a shape that
    broadcasts to ``[blocks, threads]``; rows begin ``stride`` bytes apart.  ``origin`` is the address of the
    first byte, as far as alignment goes.
    """

    def __init__(
        self,
        name: str,
        raw: Values,
        row_bytes: int,
        rows: Values | None = None,
        stride: int = 0,
        origin: int = 0,
    ) -> None:
        self.name = name
        self.row_bytes = row_bytes
        self.rows = rows
        self.origin = origin
        self._stride = stride
        self._raw = raw
        self._views: dict[np.dtype[Any], Values] = {}
        self._bases: dict[int, Values] = {}

    @classmethod
    def of_array(cls, name: str, array: Values, origin: int = 0) -> Memory:
        """Global memory: a one-dimensional, contiguous NumPy array, changed in place."""
        if array.ndim != 1 or not array.flags.c_contiguous:
            raise InterpreterError(
                f"{name}: arrays must have one axis and be contiguous, this is {array.shape}"
            )
        return cls(name, array.view(np.uint8), array.nbytes, origin=origin)

    @classmethod
    def of_rows(cls, name: str, count: int, row_bytes: int, rows: Values) -> Memory:
        """Memory of blocks or threads, poisoned; rows start at multiples of 16 bytes."""
        stride = -(-max(row_bytes, 1) // WIDEST) * WIDEST
        return cls(name, np.full(count * stride, POISON, np.uint8), row_bytes, rows, stride)

    def forget(self) -> None:
        """Poison all of it."""
        self._raw.fill(POISON)

    def _view(self, dtype: np.dtype[Any]) -> Values:
        if dtype not in self._views:
            whole = self._raw.size // dtype.itemsize * dtype.itemsize
            self._views[dtype] = self._raw[:whole].view(dtype)
        return self._views[dtype]

    def _base(self, size: int) -> Values:
        """Where each thread's row begins, in elements of ``size`` bytes."""
        if size not in self._bases:
            assert self.rows is not None
            self._bases[size] = self.rows * (self._stride // size)
        return self._bases[size]

    def load(
        self,
        machine: Machine,
        index: Values,
        dtype: np.dtype[Any],
        lanes: int | None = None,
        aligned: bool = True,
    ) -> Values:
        """Elements ``index``, or the ``lanes`` ones from there on, of each active thread.

        Threads that are not active get anything.  ``index`` may itself have an axis of lanes.  Lanes that
        are not ``aligned`` are read one by one.

        Raises:
            InterpreterError: an active thread's element lies outside, or its vector is not aligned.
        """
        checked = self._checked(machine, index, dtype.itemsize, lanes, aligned)
        if checked is None:
            return np.zeros(index.shape if lanes is None else (*index.shape, lanes), dtype)
        if self.rows is not None and checked.size == 1 and self.rows.size > 1:
            return self._same_everywhere(int(checked.item()), dtype, lanes)
        at = self._placed(checked, dtype.itemsize)
        view = self._view(dtype)
        if lanes is None:
            return view.take(at, mode="clip")
        if not aligned:
            return view.take(at[..., None] + np.arange(lanes), mode="clip")
        whole = view[: view.size // lanes * lanes].reshape(-1, lanes)
        return whole.take(at // lanes, axis=0, mode="clip")

    def _same_everywhere(self, index: int, dtype: np.dtype[Any], lanes: int | None) -> Values:
        """A register of the same number in all threads: a slice, no gather."""
        assert self.rows is not None
        view = self._view(dtype).reshape(*self.rows.shape, -1)
        return view[..., index] if lanes is None else view[..., index : index + lanes]

    def add(self, machine: Machine, index: Values, value: Values) -> None:
        """Add to elements ``index``, one active thread after the other."""
        checked = self._checked(machine, index, value.dtype.itemsize, None)
        if checked is not None:
            at = np.broadcast_to(self._placed(checked, value.dtype.itemsize), machine.shape)[machine.active]
            np.add.at(self._view(value.dtype), at, np.broadcast_to(value, machine.shape)[machine.active])

    def store(
        self, machine: Machine, index: Values, value: Values, lanes: int | None = None, aligned: bool = True
    ) -> None:
        """Store into elements ``index`` (vectors of ``lanes`` from there on) of each active thread."""
        checked = self._checked(machine, index, value.dtype.itemsize, lanes, aligned)
        if checked is None:
            return
        if checked.size == 1 and machine.mask is None and self._one_each(machine, value):
            self._same_everywhere(int(checked.item()), value.dtype, lanes)[...] = value
            return
        at, view = self._placed(checked, value.dtype.itemsize), self._view(value.dtype)
        if lanes is not None and aligned:  # rows of as many elements
            at, view = at // lanes, view[: view.size // lanes * lanes].reshape(-1, lanes)
        elif lanes is not None:
            at = at[..., None] + np.arange(lanes)
        # what follows a thread's place: nothing, or lanes
        places, each = (*machine.shape, *at.shape[2:]), (*machine.shape, *at.shape[2:], *view.shape[1:])
        at, value = np.broadcast_to(at, places), np.broadcast_to(value, each)
        if machine.mask is None:
            view[at] = value
        else:
            view[at[machine.mask]] = value[machine.mask]

    def _one_each(self, machine: Machine, value: Values) -> bool:
        """Whether every row of memory gets one value."""
        if self.rows is None or self.rows.size == 1:
            return False
        return self.rows.shape == machine.shape or value.shape[1] == 1

    def _placed(self, index: Values, size: int) -> Values:
        if self.rows is None:
            return index
        base = self._base(size)
        return index + (base if index.ndim == base.ndim else base[..., None])

    def _checked(
        self, machine: Machine, index: Values, size: int, lanes: int | None, aligned: bool = True
    ) -> Values | None:
        """The index, with what idle threads ask for made harmless; None if there is nothing to access."""
        wide = lanes or 1
        last = self.row_bytes // size - wide
        if index.dtype != np.int64:
            index = index.astype(np.int64)
        if index.size and (index.min() < 0 or index.max() > last):
            outside = (index < 0) | (index > last)
            machine.refuse(outside, lambda where: (
                f"{self.name}: {where(index)} is outside its {self.row_bytes // size} elements of {size}"
            ))  # fmt: skip
            if last < 0:
                return None
            index = np.where(outside, 0, index)
        if lanes is not None and aligned:
            self._check_alignment(machine, index, size, lanes)
        return index

    def _check_alignment(self, machine: Machine, index: Values, size: int, lanes: int) -> None:
        width = lanes * size
        if width > WIDEST:
            raise InterpreterError(
                f"{self.name}: {width} bytes at once; the machine has accesses of {WIDEST} at most"
            )
        astray = (index * size + self.origin) % width
        if astray.any():
            machine.refuse(astray != 0, lambda where: (
                f"{self.name}: {where(index)} of elements of {size} bytes begins a vector of {width}, "
                "but its address is no multiple of that"
            ))  # fmt: skip


class Pointer:
    """An address a thread: what an instruction gets for ``T.address_of(buffer[index])``."""

    def __init__(self, machine: Machine, memory: Memory, index: Values, dtype: np.dtype[Any]) -> None:
        self.machine = machine
        self.memory = memory
        self.index = index
        self.dtype = dtype

    def load(
        self, offset: Any = 0, dtype: Any = None, lanes: int | None = None, collective: bool = False
    ) -> Values:
        """``[blocks, threads]`` elements; with ``lanes`` vectors of them, of one access that must be aligned.

        ``offset`` counts elements of the pointer's own type, also where ``dtype`` reads them as another.
        ``collective``: the warp reads as one, so that a barrier must lie between any thread's store and this.
        """
        got = self._got(offset, dtype, lanes, True, collective)
        shape = self.machine.shape if lanes is None else (*self.machine.shape, lanes)
        return np.array(np.broadcast_to(got, shape))

    def store(self, value: Any, offset: Any = 0, lanes: int | None = None) -> None:
        """Store ``[blocks, threads]`` values (with ``lanes``: vectors) as what type they are of."""
        self._put(np.asarray(value), offset, lanes, True)

    def registers(self, count: int, dtype: Any = None) -> Values:
        """The ``count`` elements from here on, ``[blocks, threads, count]``, read one by one."""
        got = self._got(0, dtype, count, False, False)
        return np.array(np.broadcast_to(got, (*self.machine.shape, count)))

    def bytes(self, count: int, collective: bool = False) -> Values:
        """``[blocks, threads, count]`` bytes from here on, of one access that must be aligned."""
        whole = Pointer(self.machine, self.memory, self.byte(), np.dtype(np.uint8))
        return whole.load(lanes=count, collective=collective)

    def put_registers(self, values: Values) -> None:
        """Store ``[blocks, threads, count]`` values from here on, one by one."""
        self._put(values, 0, values.shape[2], False)

    def add(self, value: Values) -> None:
        """Add to what is there, one thread after the other, as atomic instructions do."""
        self.memory.add(self.machine, self.index, value)

    def _got(self, offset: Any, dtype: Any, lanes: int | None, aligned: bool, collective: bool) -> Values:
        kind = self.dtype if dtype is None else np.dtype(dtype)
        at = self._at(offset, kind)
        got = self.memory.load(self.machine, at, kind, lanes, aligned)
        self.machine.reads(self.memory, at, kind.itemsize, lanes or 1, collective)
        return got

    def _put(self, values: Values, offset: Any, lanes: int | None, aligned: bool) -> None:
        if values.ndim < 2:
            values = values.astype(self.dtype).reshape(1, 1)
        at = self._at(offset, values.dtype)
        self.memory.store(self.machine, at, values, lanes, aligned)
        self.machine.writes(self.memory, at, values.dtype.itemsize, lanes or 1)

    def byte(self, offset: Any = 0) -> Values:
        """Where in the row each thread's address is, in bytes."""
        own: Values = (self.index.astype(np.int64) + np.asarray(offset, np.int64)) * self.dtype.itemsize
        return own

    def _at(self, offset: Any, kind: np.dtype[Any]) -> Values:
        """The index in elements of another type."""
        if kind.itemsize == self.dtype.itemsize:
            return self.index.astype(np.int64) + np.asarray(offset, np.int64)
        byte = self.byte(offset)
        astray = byte % kind.itemsize != 0
        self.machine.refuse(
            astray, lambda where: f"{self.memory.name}: byte {where(byte)} is no address of a {kind}"
        )
        at: Values = byte // kind.itemsize
        return at

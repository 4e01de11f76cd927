"""lines_of_rows: a tensor seen as [rows][length][inner], and how threads hold one of its lines.

Along the last axis a team of threads has a row: a warp, or a whole block where a warp's registers do not
hold it.  It reads the row once, up to 128 bits at a time, and keeps it in registers.  Rows whose length only
the run tells, or longer than a block holds, are read again for every pass, mostly from cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import WARP, Array, Kernel, int64, integer
from sparsec.targets.cuda.parts import teams
from sparsec.targets.cuda.tir import T

#: elements of a row that one thread holds, threads a row may have, and threads of a block of several rows
HELD, MOST, THREADS = 32, 1024, 128
#: threads of a row that is read again for every pass
WALKERS = 256
#: threads of a block of columns, and the shares of a long axis
COLUMN_THREADS, SHARES = 256, 8

#: what is done to an element
Change = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is generated for.

    ``length`` of the axis and ``inner``, the product of all after it, are None where the run tells them.
    ``dtypes`` are of the pointers, in order.
    """

    kind: str
    length: int | None
    inner: int | None
    dtypes: tuple[str, ...]
    epsilon: float = 0.0

    @property
    def vector(self) -> int:
        """Neighbours read at once."""
        along = self.length if self.inner == 1 else self.inner
        if along is None:
            return 1
        most = 8 if "float32" not in self.dtypes else 4
        return next(v for v in (most, 4, 2, 1) if along % v == 0)

    @property
    def team(self) -> int:
        """Threads of a row."""
        return next((t for t in (WARP, 128, 256, 512, MOST) if self.holds(t)), WALKERS)

    @property
    def held(self) -> bool:
        """Whether a row stays in registers."""
        return self.holds(MOST)

    def holds(self, team: int) -> bool:
        """Whether a team's registers hold a row; of the largest team's 64 a thread, weights need some."""
        room = HELD if team < MOST or "softmax" in self.kind else HELD * 3 // 4
        return self.length is not None and self.vectors(team) * self.vector <= room

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return max(1, THREADS // self.team)

    @property
    def shares(self) -> int:
        """Threads that divide the axis of a column."""
        return SHARES if self.length is None or self.length > 2 * SHARES else 1

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return COLUMN_THREADS // self.shares * self.vector

    def vectors(self, team: int) -> int:
        """Vectors of a row that each thread of a team reads, at most."""
        return -(-cast(int, self.length) // (team * self.vector))


@dataclass(frozen=True, slots=True)
class Line:
    """A team's row: elements in registers, or in memory with what is to be done to each once it is read."""

    k: Kernel
    shape: Shape
    start: Any
    member: Any
    registers: Array | None
    changes: tuple[Change, ...] = ()

    @staticmethod
    def of(k: Kernel, shape: Shape, row: Any) -> Line:
        """The row, read where it is to be held."""
        start = k.bind(row * length_of(k, shape))
        member = k.bind(k.thread % shape.team)
        if not shape.held:
            return Line(k, shape, start, member, None)
        count = shape.vectors(shape.team) * shape.vector
        line = Line(k, shape, start, member, k.registers(count))
        line._fill()
        return line

    def _fill(self) -> None:
        registers = cast(Array, self.registers)
        for slot, at, present in self._places():
            for i in range(self.shape.vector):
                registers.put(slot + i, expressions.constant(0))
            _guarded(self.k, present, partial(self._read, registers, slot, at))

    def _read(self, registers: Array, slot: int, at: Any) -> None:
        values = expressions.load(self.k, self.k["x"], self.start + int64(at), self.shape.vector)
        for i, value in enumerate(values):
            registers.put(slot + i, value)

    def _places(self) -> list[tuple[int, Any, Any]]:
        """Register, index in the row, and whether the row reaches that far (None: surely), of all vectors."""
        vector, team, length = self.shape.vector, self.shape.team, cast(int, self.shape.length)
        places = []
        for i in range(self.shape.vectors(team)):
            at = self.k.bind((self.member + i * team) * vector)
            places.append((i * vector, at, None if (i + 1) * team * vector <= length else at < length))
        return places

    def mapped(self, change: Change) -> Line:
        """The row with each element changed."""
        if self.registers is None:
            return replace(self, changes=(*self.changes, change))
        for slot, _, _ in self._places():
            for i in range(slot, slot + self.shape.vector):
                self.registers.put(i, change(self.registers[i]))
        return self

    def fold(self, start: float, join: teams.Join, of: Change = lambda x: x) -> Any:
        """All elements joined, each as ``of`` makes it."""
        k, nothing = self.k, expressions.constant(start)
        total = k.registers(1)
        total.put(0, nothing)
        if self.registers is None:

            def more(values: list[Any], at: Any) -> None:
                for value in values:
                    total.put(0, join(k, total[0], k.bind(of(value))))

            self.walk(more)
            return teams.across(k, total[0], join, self.shape.team)
        found = []
        for slot, _, present in self._places():
            for i in range(slot, slot + self.shape.vector):
                value = of(self.registers[i])
                found.append(value if present is None else T.Select(present, value, nothing))
        return teams.across(k, teams.joined(k, found, join), join, self.shape.team)

    def walk(self, work: Callable[[list[Any], Any], None]) -> None:
        """``work(elements, index of the first in the row)`` for every vector of the thread."""
        k, vector = self.k, self.shape.vector
        if self.registers is not None:
            held = self.registers
            for slot, at, present in self._places():
                values = [held[slot + i] for i in range(vector)]
                _guarded(k, present, partial(work, values, at))
            return
        step = self.shape.team * vector
        length = T.cast(length_of(k, self.shape), "int32")
        with k.loop(k.bind(T.truncdiv(length - self.member * vector + (step - 1), step))) as i:
            at = k.bind(self.member * vector + i * step)
            values = expressions.load(k, k["x"], self.start + int64(at), vector)
            for change in self.changes:
                values = [k.bind(change(value)) for value in values]
            work(values, at)

    def store(self, make: Callable[[list[Any], Any], list[Any]]) -> None:
        """Write what ``make(elements, index of the first)`` answers."""
        k = self.k
        self.walk(lambda values, at: expressions.store(k, k["y"], self.start + int64(at), make(values, at)))


def _guarded(k: Kernel, condition: Any, work: Callable[[], None]) -> None:
    if condition is None:
        work()
        return
    with k.when(condition):
        work()


def length_of(k: Kernel, shape: Shape) -> Any:
    """The axis's length, int64."""
    return k.sizes["length"] if shape.length is None else integer(shape.length)

"""staging: tiles on their way from memory to shared memory.

A tile in shared memory is *lines* of 16-byte *chunks*.  The chunk of a line is stored at its number
exclusive-or something of the line's, so that eight lines' same chunk, what one phase of ldmatrix reads, lie
in the 32 banks once each, as do the chunks of a line, what copies write.  Lines of 128 bytes are stored as
the 128-byte swizzle of Hopper's matrix instructions has them.

Where a tile comes from is a function, a :data:`Source`: it is asked once for each place that a thread
copies to, and what it answers is asked at each step.  So rows may be gathered, or be the positions of a
convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any, TypeAlias

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Array, Kernel
from sparsec.targets.cuda.tir import T, tirx

#: 16-bit elements of a chunk
CHUNK = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where elements are read: an array, an index, and whether to (zeros otherwise; None: always)."""

    array: Array
    index: Any
    valid: Any = None


#: ``source(line, element)`` answers, for the element's place in its line, ``read(step)``: the place to copy
#: from. What does not depend on the step should be bound (``k.bind``) by the former.
Reader: TypeAlias = Callable[[Any], Place]
Source: TypeAlias = Callable[[Any, Any], Reader]


class Staged:
    """A tile of ``lines`` x ``width`` elements in shared memory, ``stages`` times.

    Swizzled as the module says or, with ``padding`` (a multiple of 16 bytes), lines so many elements apart.
    """

    def __init__(
        self, k: Kernel, lines: int, width: int, stages: int, dtype: str, padding: int | None = None
    ) -> None:
        self.chunk = 4 if dtype in ("float32", "uint32") else CHUNK
        if width % self.chunk:
            raise ValueError(f"a line of {width} elements is no whole number of chunks of {self.chunk}")
        self.lines, self.width, self.stages, self.padding = lines, width, stages, padding
        self.pitch = width + (padding or 0)
        self.array = k.shared(lines * self.pitch * stages, dtype)

    @property
    def size(self) -> int:
        """Elements of a stage."""
        return self.lines * self.pitch

    def place(self, line: Any, chunk: Any) -> Any:
        """Where in its stage a chunk of a line begins, in elements."""
        if self.padding is not None:
            return line * self.pitch + chunk * self.chunk
        phases = gcd(self.width // self.chunk, 8)
        turn = line // (8 // phases) % phases
        return line * self.width + (chunk ^ turn) * self.chunk


def copier(k: Kernel, staged: Staged, source: Source, vector: int = CHUNK) -> Callable[[Any, Any], None]:
    """Prepare the copying of a tile by all threads; the result, ``copy(stage, step)``, issues it.

    Args:
        k: the kernel.
        staged: where to.
        source: where from.
        vector: neighbours that one copy moves and that ``source`` is asked for, 4, 8 or 16 bytes: their
            address must be a multiple of that; or a single element of two bytes: those go through
            registers, and are no longer asynchronous.
    """
    across = staged.width // vector
    places = staged.lines * across
    work = []
    for j in range(-(-places // k.threads)):
        last = places % k.threads and (j + 1) * k.threads > places
        at = k.thread + j * k.threads
        if k.threads % across:
            line, first = k.bind(at // across), k.bind(at % across * vector)
        else:
            line, first = k.thread // across + j * (k.threads // across), k.thread % across * vector
        to = k.bind(staged.place(line, first // staged.chunk) + first % staged.chunk)
        work.append((source(line, first), to, at < places if last else None))

    def copy(stage: Any, step: Any) -> None:
        base = k.bind(stage * staged.size)
        if vector * 16 // staged.chunk < 4:
            _copy_elements(k, staged, base, step, work)
            return
        for read, to, present in work:
            if present is None:
                _copy_vector(k, staged, base + to, read(step), vector)
                continue
            with k.when(present):
                _copy_vector(k, staged, base + to, read(step), vector)

    return copy


def matrix(
    k: Kernel, array: Array, pitch: int, first: Any, depth: int, lines: Any = None, length: int | None = None
) -> Source:
    """A tile whose lines are consecutive rows of a row-major matrix; each step reads their next ``depth``.

    Args:
        k: the kernel.
        array: the matrix.
        pitch: elements from row to row.
        first: the row of the tile's first line, int64.
        depth: elements of a line that one step reads.
        lines: rows that there are, zeros follow; None: the matrix is long enough.
        length: elements that a row has, zeros follow; None: enough for all steps.
    """

    def source(line: Any, element: Any) -> Reader:
        row = k.bind(first + T.cast(line, "int64"))
        start = k.bind(row * pitch + T.cast(element, "int64"))
        inside = None if lines is None else k.bind(row < lines)

        def read(step: Any) -> Place:
            at = step * depth
            checks = [] if inside is None else [inside]
            if length is not None and length % depth:
                checks.append(element + at < length)
            return Place(array, start + at, tirx.all(*checks) if checks else None)

        return read

    return source


def _copy_vector(k: Kernel, staged: Staged, to: Any, place: Place, vector: int) -> None:
    valid = tirx.IntImm("int32", 1) if place.valid is None else T.cast(place.valid, "int32")
    parts = staged.chunk // vector
    copy = {1: instructions.cp_async_16, 2: instructions.cp_async_8, 4: instructions.cp_async_4}[parts]
    k.call(copy, staged.array.pointer(to), place.array.pointer(place.index), valid)


def _copy_elements(k: Kernel, staged: Staged, base: Any, step: Any, work: list[Any]) -> None:
    values = k.registers(len(work), staged.array.dtype)
    zero = T.cast(tirx.FloatImm("float32", 0.0), staged.array.dtype)
    for i, (read, _, present) in enumerate(work):
        place = read(step)
        valid = tirx.all(*(v for v in (present, place.valid) if v is not None), True)
        values.put(i, T.if_then_else(valid, place.array[place.index], zero))
    for i, (_, to, present) in enumerate(work):
        if present is None:
            staged.array.put(base + to, values[i])
            continue
        with k.when(present):
            staged.array.put(base + to, values[i])

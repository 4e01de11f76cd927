"""conv_lines: convolutions on tensor cores that read each pixel from memory once for all taps.

The pixels that a tile's positions read lie in shared memory as a line (see lines) of pixels, each with the
16 or 32 channels that are multiplied at a time side by side: what a tap multiplies are the pixels so many
further on, all of whose fragments begin at multiples of 16 bytes, as ldmatrix needs them.  So a 3x3
convolution stages its input once and not nine times, and pays for it with a few products that nobody stores
(see lines).

Images have channels apart, so a thread reads 8 channels of a pixel, neighbours in threads being neighbours in
memory, and writes 16 bytes.  It reads the next channels before it multiplies these, if registers allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Array, Kernel, int64, integer
from sparsec.targets.cuda.parts.conv_plans import geometry_of
from sparsec.targets.cuda.parts.conv_tiles import Tile, store_table, tile_of, weights
from sparsec.targets.cuda.parts.lines import Line
from sparsec.targets.cuda.parts.mma_epilogue import deliver
from sparsec.targets.cuda.parts.mma_tiles import (
    CHUNK,
    SLAB,
    Fragments,
    Staged,
    Tiling,
    copier,
    multiplier,
    warp_place,
    zeros,
)  # fmt: skip
from sparsec.targets.cuda.parts.positions import divided, inside, unravel
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.target import Problem

#: chunks of 8 channels that a thread holds while it multiplies
_HELD = 4


@dataclass(frozen=True, slots=True)
class Operand:
    """The weight that multiplies pixels.

    ``copy(stage, step)`` issues a step's copies, ``shift(base, distance)`` says which pixels the next
    ``multiply(stage)`` takes.
    """

    copy: Callable[[Any, Any], None]
    shift: Callable[[Any, Any], None]
    multiply: Callable[[Any], None]


#: makes the operand that multiplies the pixels: of (tile, pixels, accumulators)
Weights: TypeAlias = Callable[[Tile, Staged, Array], Operand]


def body(k: Kernel, problem: Problem, tiling: Tiling, line: Line, weights: Weights) -> None:
    """One tile; ``line`` has the tiling's columns and depth."""
    tile = tile_of(k, problem, tiling.rows, tiling.columns)
    taps, ahead = line.geometry.taps, tiling.stages - 1
    table = k.shared(tiling.columns, "int32")
    first_image = _fill(k, problem, tile, line, table)
    pixels = PixelStage(k, problem, tile, line)
    accumulators = zeros(k, tiling)
    weight = weights(tile, pixels.staged, accumulators)
    steps = line.blocks * taps
    for step in range(ahead):
        if step < steps:
            weight.copy(integer(step, "int32"), integer(step, "int32"))
        k.call(instructions.cp_async_commit)
    with pixels.coming(integer(0, "int32")):
        pass
    with k.loop(line.blocks) as block, pixels.coming(block + 1), k.loop(taps) as tap:
        step = k.bind(block * taps + tap)
        k.call(instructions.cp_async_wait(ahead - 1))
        # all threads' copies and pixels are there, and all have done with what is written next
        k.sync()
        with k.when(step + ahead < steps):
            weight.copy((step + ahead) % tiling.stages, step + ahead)
        k.call(instructions.cp_async_commit)
        distance = k.bind(k["taps"][tap]) if taps > 1 else integer(0, "int32")
        weight.shift(k.bind(block % 2 * pixels.staged.size), distance)
        weight.multiply(step % tiling.stages)
    store = store_table(k, problem, tile, first_image, table)
    deliver(k, tiling, accumulators, store, lanes=1, start=4 * tiling.columns)


def _fill(k: Kernel, problem: Problem, tile: Tile, line: Line, table: Array) -> Any:
    """The table of ``store_table``, and the tile's first image."""
    g = line.geometry
    first_image, _ = divided(k, tile.position, line.per_image, "int64")
    with k.loop(-(-line.count // k.threads)) as turn:
        number = k.bind(turn * k.threads + k.thread)
        with k.when(number < line.count):
            image, y, x = unravel(k, tile.position, number, [line.height, line.pitch])
            valid = tirx.all(y < g.out_height, x < g.out_width, image < tile.images)
            beyond = T.cast(image - first_image, "int32") * (problem.rows * g.positions)
            table.put(number, T.if_then_else(valid, beyond + y * g.out_width + x, -1))
    return first_image


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What a thread copies: 8 channels of a pixel, from ``channel`` on, at ``source`` in their planes.

    Zeros, unless ``valid``.  They go to element ``target`` of the buffer; ``present``: whether there is one
    at all, None if for all threads.
    """

    channel: Any
    source: Any
    valid: Any
    target: Any
    present: Any


class PixelStage:
    """The pixels of a block's line, for ``line.channels`` channels, twice."""

    def __init__(self, k: Kernel, problem: Problem, tile: Tile, line: Line) -> None:
        self._k, self._line, self._tile, self._g = k, line, tile, geometry_of(problem)
        self._lines = len(line.phases) * line.length
        self.staged = Staged(k, self._lines, line.channels, 2, problem.dtype)
        self._x = k.view("x", "uint16")
        chunks = self._lines * (line.channels // CHUNK)
        self._turns = -(-chunks // k.threads)
        self._whole = chunks % k.threads == 0
        self._image, _ = divided(k, tile.position, line.per_image, "int64")
        self._values = k.registers(min(self._turns, _HELD) * CHUNK, "uint16")
        self._chunks = [self._chunk(turn) for turn in range(self._turns)]

    def _chunk(self, turn: int) -> _Chunk:
        """The thread's ``turn``-th."""
        k, line, g = self._k, self._line, self._g
        chunk, at = divided(k, k.bind(k.thread + turn * k.threads), self._lines)
        phase, pixel = divided(k, at, line.length)
        image, row, column = unravel(k, self._tile.position, pixel, [line.height, line.pitch])
        a, b = _phase(k, line, phase)
        y = k.bind(row * g.strides[0] + (a - g.padding[0]))
        x = k.bind(column * g.strides[1] + (b - g.padding[1]))
        valid = tirx.all(inside(y, g.height), inside(x, g.width), image < self._tile.images)
        beyond = T.cast(image - self._image, "int32") * (g.groups * g.channels * g.height * g.width)
        present = chunk < line.channels // CHUNK if not self._whole and turn == self._turns - 1 else None
        target = k.bind(self.staged.place(at, chunk))
        source = k.bind(beyond + y * g.width + x)
        return _Chunk(k.bind(chunk * CHUNK), source, k.bind(valid), target, present)

    @contextmanager
    def coming(self, block: Any) -> Iterator[None]:
        """Around what is done meanwhile: the ``block``-th channels, if any, come to buffer ``block % 2``."""
        k = self._k
        there = k.bind(block < self._line.blocks)
        early = self._turns <= _HELD
        if early:
            with k.when(there):
                self._read(block, 0, self._turns)
        yield
        with k.when(there):
            base = k.bind(block % 2 * self.staged.size)
            for first in range(0, self._turns, _HELD):
                last = min(first + _HELD, self._turns)
                if not early:
                    self._read(block, first, last)
                self._write(base, first, last)

    def _read(self, block: Any, first: int, last: int) -> None:
        k, g = self._k, self._g
        plane = g.height * g.width
        channel = k.bind(block * self._line.channels)
        channels = (self._image * g.groups + int64(self._tile.group)) * g.channels + int64(channel)
        x = k.bind(channels * plane)
        for turn in range(first, last):
            chunk = self._chunks[turn]
            start = k.bind(x + int64(chunk.channel) * plane + int64(chunk.source))
            valid = chunk.valid if chunk.present is None else tirx.all(chunk.valid, chunk.present)
            for i in range(CHUNK):
                here = valid
                if g.channels % self._line.channels:
                    here = tirx.all(valid, channel + chunk.channel + i < g.channels)
                value = T.if_then_else(here, self._x[start + i * plane], integer(0, "uint16"))
                self._values.put((turn - first) * CHUNK + i, value)

    def _write(self, base: Any, first: int, last: int) -> None:
        k = self._k
        words = k.words(self.staged.array)
        for turn in range(first, last):
            chunk = self._chunks[turn]
            packed = k.registers(CHUNK // 2, "uint32")
            for i in range(CHUNK // 2):
                low, high = (self._values[(turn - first) * CHUNK + 2 * i + e] for e in range(2))
                packed.put(i, T.cast(low, "uint32") | (T.cast(high, "uint32") << integer(16, "uint32")))
            at = k.bind((base + chunk.target) // 2)
            if chunk.present is None:
                words.put(at, packed.vector(0, CHUNK // 2), CHUNK // 2)
                continue
            with k.when(chunk.present):
                words.put(at, packed.vector(0, CHUNK // 2), CHUNK // 2)


def _phase(k: Kernel, line: Line, phase: Any) -> tuple[Any, Any]:
    """The remainders of a phase's coordinates."""
    a, b = (integer(rest, "int32") for rest in line.phases[0])
    for number, (row, column) in enumerate(line.phases[1:], 1):
        a = T.Select(phase == number, integer(row, "int32"), a)
        b = T.Select(phase == number, integer(column, "int32"), b)
    return k.bind(a), k.bind(b)


class Shifted(Fragments):
    """Fragments of B whose lines are pixels, some distance on from the warp's own."""

    def __init__(self, k: Kernel, staged: Staged, first: Any, slabs: int) -> None:
        super().__init__(k, staged, first, slabs, second=True)
        # which of four 8x8 matrices are eight lines on, and which a chunk on
        self._line = k.bind(first + k.lane % 8 + k.lane // 16 * 8)
        self._chunk = k.bind(k.lane // 8 % 2)

    def shift(self, base: Any, distance: Any) -> None:
        """What is loaded from now on is of the buffer that begins at ``base``, and so far on."""
        k, line = self._k, self._k.bind(self._line + distance)
        parts = range(self._staged.width // SLAB)
        self._starts = [k.bind(base + self._staged.place(line, 2 * i + self._chunk)) for i in parts]

    def load(self, base: Any, part: int, turn: int) -> None:
        """As for Fragments; the buffer is that of ``shift``."""
        super().load(0, part, turn)


def dense_operand(
    k: Kernel, tiling: Tiling, inner: int, tile: Tile, pixels: Staged, accumulators: Array
) -> Operand:
    """A dense weight, ``inner`` elements a line."""
    left = Staged(k, tiling.rows, tiling.depth, tiling.stages, pixels.array.dtype)
    copy = copier(k, left, weights(k, tile, inner, tiling.depth))
    right = Shifted(k, pixels, warp_place(k, tiling)[1], tiling.warp_columns // SLAB)
    return Operand(
        copy, right.shift, multiplier(k, tiling, (left, False), (pixels, False), accumulators, right)
    )

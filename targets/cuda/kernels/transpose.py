"""transpose: rows become columns, by way of shared memory.

A block moves a square tile: warps read it along x's rows and write it along y's, whole lines both times.
The tile lies in shared memory as rows of 32-bit words with one word between them, so that reading a
column meets 32 banks.  Elements of two bytes travel in pairs where rows begin at even places: two rows
of the tile are then read at once and their halves exchanged on the way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from sparsec.ir.dims import Size, product
from sparsec.targets.cuda.builder import Array, Kernel, device_function, int64, integer
from sparsec.targets.cuda.parts.places import coordinates, number
from sparsec.targets.kernels.boxes import Axis, Move
from sparsec.targets.kernels.tiles import Numbers
from sparsec.targets.sizes import Sizes

#: threads of a block: warps of 32, each of which moves a row at a time
THREADS = 256
WARPS = THREADS // 32
#: fewer rows or columns than this are copied one by one
_LEAST = 8


@dataclass(frozen=True, slots=True)
class Tiles:
    """A box whose axis ``down`` has neighbours in x, ``right`` in y; ``others`` are around them.

    ``item`` is an element's bytes; ``paired``: all distances and sizes are even, elements of two bytes.
    """

    down: Axis
    right: Axis
    others: tuple[Axis, ...]
    read: Size
    write: Size
    item: int
    paired: bool

    @staticmethod
    def of(move: Move, item: int) -> Tiles | None:
        """The tiles of a move; None where it has no such axes, or they are short."""
        *outer, right = move.axes
        crossing = [a for a in outer if a.source == 1]
        if item not in (2, 4) or right.goal != 1 or right.source == 1 or len(crossing) != 1:
            return None
        (down,) = crossing
        if any(isinstance(a.size, int) and a.size < _LEAST for a in (down, right)):
            return None
        others = tuple(a for a in outer if a is not down)
        steps = [move.read, move.write, down.size, right.size, right.source, down.goal]
        steps += [step for a in others for step in (a.source, a.goal)]
        return Tiles(down, right, others, move.read, move.write, item, item == 2 and all(map(_even, steps)))

    @property
    def side(self) -> int:
        """Elements along each side of a tile."""
        return 64 if self.paired else 32

    def blocks(self, sizes: Sizes) -> int:
        """How many there are, as an expression."""
        count = sizes.of(product(a.size for a in self.others))
        for axis in (self.down, self.right):
            count = sizes.multiply(count, sizes.ceil_divide(sizes.of(axis.size), self.side))
        return count


def _even(size: Size) -> bool:
    return size % 2 == 0 if isinstance(size, int) else all(factor % 2 == 0 for _, factor in size.terms)


def emit(tiles: Tiles, numbers: Numbers, name: str) -> Any:
    """The TIR function; ``numbers`` are the sizes of the move."""
    bits = f"uint{8 * tiles.item}"

    def body(k: Kernel) -> None:
        dtype = "uint32" if tiles.paired else bits
        rows, pitch = tiles.side, 33
        shared = k.shared(rows * pitch, dtype)
        x, y = k.view("x", dtype), k.view("y", dtype)
        down, right, read, write = _origin(k, tiles, numbers)
        n_down, n_right = (number(numbers.value(k, a.size)) for a in (tiles.down, tiles.right))
        source, goal = (number(numbers.value(k, s)) for s in (tiles.right.source, tiles.down.goal))
        lane, warp = int64(k.lane), int64(k.warp)
        each = 2 if tiles.paired else 1
        with k.unrolled(rows // WARPS) as turn:
            row = k.bind(int64(turn) * WARPS + warp)
            with k.when(T.And(right + row < n_right, down + lane * each < n_down)):
                shared.put(row * pitch + lane, x[_word(read + (right + row) * source + down, each) + lane])
        k.sync()
        with k.unrolled(32 // WARPS) as turn:
            column = k.bind(int64(turn) * WARPS + warp)
            with k.when(T.And(down + column * each < n_down, right + lane * each < n_right)):
                at = k.bind(write + (down + column * each) * goal + right)
                if tiles.paired:
                    places = (_word(at, 2), _word(at + goal, 2))
                    _exchange(k, shared, y, lane * 2 * pitch + column, pitch, places)
                else:
                    y.put(at + lane, shared[lane * pitch + column])

    pointers = [("x", bits), ("y", bits)]
    return device_function(name, THREADS, pointers, numbers.labels, body)


def _origin(k: Kernel, tiles: Tiles, numbers: Numbers) -> tuple[Any, Any, Any, Any]:
    """A block's place along both axes, and what the axes around them add to places in x and in y."""
    counts = []
    for axis in (tiles.down, tiles.right):
        size = numbers.value(k, axis.size)
        counts.append(
            -(-size // tiles.side) if isinstance(size, int)
            else k.bind(T.truncdiv(size + (tiles.side - 1), integer(tiles.side)))
        )  # fmt: skip
    extents = [*(numbers.value(k, a.size) for a in tiles.others), *counts]
    *around, down, right = coordinates(k, k.block, extents)
    read, write = (number(numbers.value(k, s)) for s in (tiles.read, tiles.write))
    for place, axis in zip(around, tiles.others, strict=True):
        read = read + place * number(numbers.value(k, axis.source))
        write = write + place * number(numbers.value(k, axis.goal))
    return k.bind(down * tiles.side), k.bind(right * tiles.side), k.bind(read), k.bind(write)


def _word(place: Any, each: int) -> Any:
    return place // 2 if each == 2 else place


def _exchange(k: Kernel, shared: Array, y: Array, first: Any, pitch: int, rows: tuple[Any, Any]) -> None:
    """Two words of one column, which hold its two rows' halves, as a word of each row."""
    a, b = k.bind(shared[first]), k.bind(shared[first + pitch])
    half = integer(16, "uint32")
    low = T.bitwise_and(a, integer(0xFFFF, "uint32"))
    y.put(rows[0] + int64(k.lane), T.bitwise_or(low, T.shift_left(b, half)))
    high = T.shift_left(T.shift_right(b, half), half)
    y.put(rows[1] + int64(k.lane), T.bitwise_or(T.shift_right(a, half), high))

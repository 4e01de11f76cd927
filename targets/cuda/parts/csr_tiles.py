"""csr_tiles: nonzeros one by one times a tile of tokens in shared memory.

Lanes are tokens: all lanes of a warp read the same nonzeros (a value and a 16-bit place in the block of
inputs, by fours) and each its tokens of that input. The tile is x transposed, ``[inputs + 1][tokens]``; the
last line is zeros, where nonzeros that fill up fours point. Sums rest in shared memory, ``[rows][tokens]``,
and a warp's visit to a row adds one block of inputs: so the code is one short loop, and a block may have
any number of rows.

A nonzero of T tokens reads T numbers of shared memory, 128 bytes a cycle, and takes a multiply-add for each
and, for halves, a conversion: 256 tokens of float16 take 4 cycles of shared memory and 5 of issue. Rows
have different columns, so there is nothing that registers could share between them. Tensor cores do better
wherever decoding all elements takes less (bitmask_spmm): this is for float32, for a nonzero in fifty or
fewer, and for shapes that others refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import Array, Kernel, int64
from sparsec.targets.cuda.parts.linear_tiles import tokens_of
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.target import Problem

WARPS, FOUR = 8, 4
THREADS = 32 * WARPS


@dataclass(frozen=True, slots=True)
class CsrTile:
    """A block makes ``32 * lanes`` tokens by ``WARPS * visits`` rows, ``inner`` inputs at a time."""

    lanes: int
    visits: int
    inner: int
    item: int

    @property
    def tokens(self) -> int:
        """Tokens of a block."""
        return 32 * self.lanes

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return WARPS * self.visits

    @property
    def pitch(self) -> int:
        """Elements from one line of x or sums to the next: banks move on by a lane's tokens."""
        return self.tokens + self.lanes

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return (self.inner + 1) * self.pitch * self.item + self.rows * self.pitch * 4


def emit(k: Kernel, problem: Problem, tile: CsrTile) -> None:
    """The kernel's body."""
    blocks = -(-problem.inner // tile.inner)
    groups = -(-problem.rows // tile.rows)
    group, token = k.bind(k.block % groups), k.bind(k.block // groups * tile.tokens)
    x = k.shared((tile.inner + 1) * tile.pitch, problem.dtype)
    sums = k.shared(tile.rows * tile.pitch, "float32")
    _clear(k, tile, x, sums)
    stage = _stager(k, problem, tile, x, token)
    with k.loop(blocks) as block:
        k.sync()
        stage(block)
        k.sync()
        with k.loop(tile.visits) as visit:
            slot = k.bind(k.warp * tile.visits + visit)
            _visit(k, tile, x, sums, k.bind((group * blocks + int64(block)) * tile.rows + int64(slot)), slot)
    k.sync()
    _deliver(k, problem, tile, sums, (token, group))


def _clear(k: Kernel, tile: CsrTile, x: Array, sums: Array) -> None:
    """Zeros for all sums and the line of x behind the last."""
    zero = expressions.constant(0)
    with k.loop(-(-tile.rows * tile.pitch // k.threads)) as turn:
        at = k.bind(turn * k.threads + k.thread)
        with k.when(at < tile.rows * tile.pitch):
            sums.put(at, zero)
    with k.when(k.thread < tile.tokens):
        x.put(tile.inner * tile.pitch + k.thread, zero if tile.item == 4 else T.cast(zero, x.dtype))


def _visit(k: Kernel, tile: CsrTile, x: Array, sums: Array, visit: Any, slot: Any) -> None:
    """Add a row's nonzeros of the block of inputs that x has."""
    first, last = k.bind(k["starts"][visit]), k.bind(k["starts"][visit + 1])
    column = k.bind(k.lane * tile.lanes)
    with k.when(first < last):
        found = k.registers(tile.lanes)
        place = k.bind(slot * tile.pitch + column)
        step = min(tile.lanes, 4)
        for i in range(0, tile.lanes, step):
            found.put(i, sums.vector(place + i, step), step)
        with k.loop(first, last) as four:
            at = k.bind(int64(four) * FOUR)
            values = expressions.load(k, k["values"], at, FOUR)
            places = k.registers(2, "uint32")
            places.put(0, k.view("places", "uint32").vector(at // 2, 2), 2)
            for i in range(FOUR):
                shift = tirx.IntImm("uint32", i % 2 * 16)
                line = T.cast((places[i // 2] >> shift) & tirx.IntImm("uint32", 0xFFFF), "int32")
                tokens = expressions.load(k, x, k.bind(line * tile.pitch + column), tile.lanes)
                for lane in range(tile.lanes):
                    found.put(lane, found[lane] + values[i] * tokens[lane])
        for i in range(0, tile.lanes, step):
            sums.put(place + i, found.vector(i, step), step)


def _stager(k: Kernel, problem: Problem, tile: CsrTile, x: Array, token: Any) -> Any:
    """Prepare ``stage(block)``: a block of inputs of all tokens, turned, zeros beyond both.

    A thread reads 16 bytes of each of ``pair`` tokens (single elements where rows of x begin anywhere) and
    writes them as columns; four threads lie side by side along K and eight across tokens, so that what a
    warp writes at a time falls into different banks.
    """
    width = 16 // tile.item if problem.inner * tile.item % 16 == 0 else 1
    pair = 2 if tile.item == 2 and tile.lanes > 1 and width > 1 else 1
    near = 4 if width > 1 else 32
    across = tile.tokens // pair
    count = across * tile.inner // width
    tokens = tokens_of(k, problem)

    def stage(block: Any) -> None:
        with k.loop(-(-count // k.threads)) as turn:
            item = k.bind(turn * k.threads + k.thread)
            line = k.bind(item // near % across * pair)
            inner = k.bind((item // (near * across) * near + item % near) * width)
            column = k.bind(int64(block) * tile.inner + int64(inner))
            parts = []
            for i in range(pair):
                row = k.bind(token + int64(line + i))
                valid = k.bind(tirx.all(item < count, row < tokens, column < problem.inner))
                parts.append(_read(k, k["x"], k.bind(row * problem.inner + column), width, valid))
            with k.when(item < count):
                _turn(k, tile, x, k.bind(inner * tile.pitch + line), parts, width)

    return stage


def _read(k: Kernel, x: Array, at: Any, width: int, valid: Any) -> Array:
    """``width`` neighbours, as words where there are several, zeros where not valid."""
    if width == 1:
        found = k.registers(1, x.dtype)
        found.put(0, T.cast(expressions.constant(0), x.dtype))
        with k.when(valid):
            found.put(0, x[at])
        return found
    found = k.registers(4, "uint32")
    for i in range(4):
        found.put(i, tirx.IntImm("uint32", 0))
    with k.when(valid):
        found.put(0, k.words(x).vector(at * width // width if width == 4 else at // 2, 4), 4)
    return found


def _turn(k: Kernel, tile: CsrTile, x: Array, start: Any, parts: list[Array], width: int) -> None:
    """Write a thread's elements, one line each."""
    if width == 1:
        x.put(start, parts[0][0])
    elif width == 4:
        for i in range(4):
            x.put(start + i * tile.pitch, T.reinterpret("float32", parts[0][i]))
    elif len(parts) == 1:
        for i in range(8):
            half = T.cast((parts[0][i // 2] >> tirx.IntImm("uint32", i % 2 * 16)), "uint16")
            x.put(start + i * tile.pitch, T.reinterpret(x.dtype, half))
    else:
        low, sixteen = tirx.IntImm("uint32", 0xFFFF), tirx.IntImm("uint32", 16)
        words, at = k.words(x), k.bind(start // 2)
        for i in range(4):
            a, b = parts[0][i], parts[1][i]
            words.put(at + i * tile.pitch, (a & low) | (b << sixteen))
            words.put(at + i * tile.pitch + tile.pitch // 2, (a >> sixteen) | (b & (low << sixteen)))


def _deliver(k: Kernel, problem: Problem, tile: CsrTile, sums: Array, first: tuple[Any, Any]) -> None:
    """Run the epilogue and store; neighbouring threads have neighbouring rows where lengths are alike."""
    tokens, count = tokens_of(k, problem), tile.tokens * tile.rows
    with k.loop(-(-count // k.threads)) as turn:
        at = k.bind(turn * k.threads + k.thread)
        line, row = k.bind(at // tile.rows), k.bind(at % tile.rows)
        token = k.bind(first[0] + int64(line))
        feature = k.bind(first[1] * tile.rows + int64(row))
        with k.when(tirx.all(token < tokens, feature < problem.rows)):
            slot = k.bind(T.cast(k["slots"][feature], "int32"))
            offset = k.bind(token * problem.rows + feature)
            value = k.bind(sums[slot * tile.pitch + line])
            expressions.store(k, k["y"], offset, expressions.finish(k, problem, [value], feature, offset))

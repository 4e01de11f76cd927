"""bitmask_spmm: sparse weights times tiles of tokens on tensor cores, decoded from bit masks on the way.

Weights arrive as in bitmask_gemv, a run a warp; tokens by asynchronous copies in shared memory, from where
all warps read them. So a tile of 8 x 16 weights is decoded once (see mask_stream: 5.3 instructions an
element) and multiplied by all tokens of the block, one instruction for 16 of them. What it costs beside the
dense product is the decoding, what it saves is bytes: of 4096 x 4096 halves at nine zeros in ten 5.5 MB are
read instead of 34, which is what 16 columns wait for. With 256 columns a nonzero's own products (csr_spmm)
take five cycles, as long as decoding and multiplying 50 elements by all columns here.

The tokens' tile has rows of 256 bytes, in each the 16-byte pieces of odd tokens exchanged by fours: eight
lanes, two tokens' four pieces, then read all 32 banks once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import cost, expressions, instructions
from sparsec.targets.cuda.builder import Array, Kernel, device_function, int64
from sparsec.targets.cuda.parts import mask_stream
from sparsec.targets.cuda.parts.linear_tiles import blocks, ranked, run_time_sizes, tokens_of
from sparsec.targets.cuda.parts.mask_stream import CHUNK, MOST_PIECES, PIECE, Runs
from sparsec.targets.cuda.parts.mma_tiles import pipeline
from sparsec.targets.cuda.parts.octets import SLAB, WORDS, Octets, block_place, deliver, place_words, zeros
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "bitmask_spmm"
format = "bitmask"

#: (octets of a warp, warps over rows, warps over inputs)
_SHAPES = ((2, 2, 4), (2, 4, 2), (4, 2, 2), (4, 1, 8), (2, 2, 8), (2, 1, 8), (1, 2, 4))
_TILES = (16, 32, 64, 128)
#: shared memory that a block may take where weights have no zeros, and that it should take
_MOST_BYTES, _WANTED_BYTES = 160 * 1024, 96 * 1024
_PIECES = CHUNK // PIECE


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Halves, rows that begin at multiples of 16 bytes."""
    return problem.conv is None and problem.dtype != "float32" and problem.inner % PIECE == 0


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that are predicted best."""
    found = [
        {"tokens": tokens, "octets": octets, "high": high, "deep": deep}
        for tokens in _TILES for octets, high, deep in _SHAPES if tokens * octets <= 256
    ]  # fmt: skip
    fitting = [c for c in found if 2 * _stage_bytes(_shape(c), c["octets"] * MOST_PIECES) <= _MOST_BYTES]
    return ranked(problem, fitting, lambda one, config: predict(one, pattern, config, target))


def _shape(config: Mapping[str, int]) -> Octets:
    return Octets(config["tokens"], config["octets"], config["high"], config["deep"])


def _stage_bytes(shape: Octets, pieces: int) -> int:
    """Bytes of one step: the tokens' tile and the warps' runs."""
    return 2 * (shape.tokens * shape.deep * CHUNK + Runs.slot_halves(shape, pieces, 1))


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch."""
    shape, columns = _shape(config), cost.columns_of(problem)
    down, high = -(-columns // shape.tokens), -(-problem.rows // shape.rows)
    moved, item = nbytes(problem, pattern, config, target), cost.item_bytes(problem)
    x_bytes = columns * problem.inner * item
    return cost.kernel_cycles(
        target, operations=down * mask_stream.decode_cycles(problem, shape, target), rate=0.7,
        blocks=down * high, resident=2 if shape.tokens <= 32 else 1,
        memory_bytes=moved + x_bytes + columns * problem.rows * item * (1 + problem.extras.count("full")),
        l2_bytes=down * moved + float(high) * down * shape.tokens * problem.inner * item,
    )  # fmt: skip


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A bit for every element, and the nonzeros."""
    return int(mask_stream.stored(problem, pattern.density, _shape(config)))


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``: ``stream`` and ``starts`` as mask_stream describes them."""
    stream, starts, pieces = mask_stream.pack(weight, config["octets"], config["high"])
    stages = max(2, min(4, _WANTED_BYTES // _stage_bytes(_shape(config), pieces)))
    learned = {**config, "pieces": pieces, "stages": stages}
    return Packing({"stream": stream, "starts": starts}, 0, tuple(sorted(learned.items())))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A block for each tile."""
    shape = _shape(dict(packing.config))
    return blocks(problem, sizes, columns, shape.tokens, shape.rows)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    config = dict(packing.config)
    shape, dtype = _shape(config), problem.dtype
    extras = expressions.extra_pointers(problem)
    pointers = [("x", dtype), *mask_stream.POINTERS, *extras, ("y", dtype)]

    def body(k: Kernel) -> None:
        _product(k, problem, shape, config["pieces"], config["stages"])

    return device_function(name, shape.threads, pointers, run_time_sizes(problem), body)


def _product(k: Kernel, problem: Problem, shape: Octets, pieces: int, stages: int) -> None:
    token, row = block_place(k, problem, shape)
    tile = shape.tokens * shape.deep * CHUNK
    slot_halves = Runs.slot_halves(shape, pieces, stages)
    x = k.shared(max(stages * tile, shape.sum_bytes // 2 - slot_halves), problem.dtype)
    slots = k.shared(slot_halves, "uint16")
    chunks = -(-problem.inner // CHUNK)
    deep = k.bind(k.warp // shape.high)
    group = k.bind(row // (shape.rows // shape.high) + int64(k.warp % shape.high))
    runs = Runs(k, shape, chunks, pieces, stages, slots, group, deep)
    copy, sums = _copier(k, problem, shape, x, token), zeros(k, shape)
    kept = k.registers(2, "int32")
    runs.bounds(0, kept)

    def fetch(stage: Any, step: Any) -> None:
        copy(stage * tile, step)
        runs.copy(stage, kept)
        # where the next run is must be known before its copies can be issued
        runs.bounds(step + 1, kept)

    step = k.registers(1, "int32")
    step.put(0, tirx.IntImm("int32", 0))

    def compute(stage: Any) -> None:
        read = _reader(k, x, k.bind(stage * tile + deep * (shape.tokens * CHUNK)))
        with k.when(step[0] * shape.deep + deep < chunks):
            runs.multiply(stage, problem.dtype, sums, read, unrolled=False)
        step.put(0, step[0] + 1)

    pipeline(k, stages, -(-chunks // shape.deep), fetch, compute)
    deliver(k, problem, shape, sums, (token, row), x.start)


def _copier(k: Kernel, problem: Problem, shape: Octets, x: Array, first: Any) -> Callable[[Any, Any], None]:
    """Prepare the copying of a step's tokens: ``copy(start, step)``, to elements from ``start`` on.

    Threads go through lines of 16 pieces, as many at a time as there are; so all of a thread's pieces
    are a constant number of lines apart, of one chunk or of several.
    """
    together = shape.threads // _PIECES
    line, piece = k.bind(k.thread // _PIECES), k.bind(k.thread % _PIECES)
    to = k.bind(line * CHUNK + (piece ^ (line % 2 * 4)) * PIECE)
    row = k.bind(first + int64(line % shape.tokens))
    column = k.bind(int64(line // shape.tokens * CHUNK + piece * PIECE))
    start, tokens = k.bind(row * problem.inner), tokens_of(k, problem)

    def copy(memory: Any, step: Any) -> None:
        at = k.bind(int64(step) * (shape.deep * CHUNK) + column)
        for turn in range(shape.tokens * shape.deep // together):
            deep, lines = divmod(turn * together, shape.tokens)
            valid = k.bind(tirx.all(row + lines < tokens, at + deep * CHUNK < problem.inner))
            source = k.bind(start + at + (lines * problem.inner + deep * CHUNK))
            place = k["x"].pointer(T.Select(valid, source, int64(0)))
            target = x.pointer(memory + to + turn * (together * CHUNK))
            k.call(instructions.cp_async_16, target, place, T.cast(valid, "int32"))

    return copy


def _reader(k: Kernel, x: Array, start: Any) -> Callable[[Any, int], Array]:
    """``operand(step, slab)`` of the tile that begins at element ``start``."""
    words = k.words(x)
    row, turned = k.lane // 4, k.lane // 4 % 2
    lane = k.bind(start // 2 + row * (CHUNK // 2) + k.lane % 4 * 4)

    def operand(step: Any, slab: int) -> Array:
        found = k.registers(WORDS, "uint32")
        piece = k.bind((step ^ turned) * 16)
        for half in range(2):
            four = k.registers(4, "uint32")
            four.put(0, words.vector(lane + piece + (slab * SLAB + half * 8) * (CHUNK // 2), 4), 4)
            place_words(found, half, four)
        return found

    return operand

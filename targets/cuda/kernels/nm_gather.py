"""nm_gather: weights that keep N of every M inputs, the same ones for V neighbouring outputs (V:N:M).

What such a group of outputs keeps is dense, so tensor cores multiply it as it is, with inputs gathered: N / M
of a dense product's operations (Lin et al., "Efficient GPU Kernels for N:M-Sparse Weights in Deep Learning",
MLSys 2023; Ma et al., "NM-SpMM", 2025).  Inputs of a token are neighbours in memory, and copies are of eight
neighbours, so a thread block copies whole slabs of x, several steps ahead, and *turns* each in shared memory,
by ldmatrix.trans and 4-byte stores: tokens then are neighbours, an input is a line, and ldmatrix reads
whichever lines a group keeps.  A slab is turned once for up to 512 outputs, while the last one is multiplied.

Where groups keep 4 of every M and each output 2 of these, the sparse instructions halve the products and the
bytes of the weight once more (Castro et al., "VENOM", 2023; see gathered_rows).  Groups that keep inputs by
no pattern, blocks of 16 x 1 and 32 x 1, run too: with as many tiles as the fullest group needs.

Per step of a 256 x 128 tile and 64 inputs of 2:8 shared by 32 outputs, a multiprocessor moves 24 KB from L2,
800 cycles, and 128 KB through shared memory, 1,000 (two of eight gathered lines mostly lie in one bank), and
multiplies for 430; a dense tile multiplies for 1,700 by the same instructions.

Rows that each choose their own N of M gain nothing from a gather: they are left to nm_spmm where no four have
more than two (2:8, 1:4), and else (4:16) to the kernels that decode bit masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import cost, instructions
from sparsec.targets.cuda.builder import Array, Kernel, device_function, integer
from sparsec.targets.cuda.expressions import extra_pointers
from sparsec.targets.cuda.parts.gathered_rows import MOST_SHARED, Shape, packed, stored_bytes
from sparsec.targets.cuda.parts.linear_tiles import (
    FOUND_ONCE,
    block_tile,
    blocks,
    mma_rate,
    ranked,
    run_time_sizes,
    store_tokens,
    tokens_of,
    vector_of,
)  # fmt: skip
from sparsec.targets.cuda.parts.mma_epilogue import deliver
from sparsec.targets.cuda.parts.mma_tiles import (
    ACCUMULATORS,
    CHUNK,
    Staged,
    copier,
    matrix,
    warp_place,
    zeros,
)  # fmt: skip
from sparsec.targets.cuda.parts.operand_order import LANE_WORDS, SIDE, WORDS, load_tile, streamer
from sparsec.targets.cuda.parts.shared_inputs import SLABS, kept
from sparsec.targets.cuda.tir import T
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "nm_gather"
format = "nm"

#: features, tokens, warps along each, and stages of a tile
TILES = (
    (256, 128, 8, 1, 4), (256, 128, 8, 1, 3), (512, 64, 8, 1, 3), (256, 64, 8, 1, 4), (256, 64, 8, 1, 3),
    (128, 128, 4, 2, 3), (128, 64, 4, 2, 4), (64, 32, 2, 1, 4),
)  # fmt: skip
#: bytes a cycle of shared memory that such a kernel reaches, and cycles of a step's barrier
_SHARED_BYTES, _STEP_CYCLES = 100.0, 100.0
#: tokens that one warp turns at a time
_TURNED = 32


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Linear layers of two-byte floats of whose inputs 16 or more outputs at a time share at most half."""
    return problem.conv is None and problem.dtype != "float32" and bool(kept(pattern))


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The best-predicted tiles and slabs for what takes least work, and fewer bytes than all weights."""
    one = kept(pattern)[0]
    # zeros that fill tiles are stored too: fewest for each input
    found = [
        {
            "rows": one.rows, "inputs": inputs, "span": one.span, "tiles": one.tiles(inputs),
            "pairs": one.pairs, "period": one.m, "features": features, "tokens": tokens, "high": high,
            "wide": wide, "stages": stages,
        }
        for inputs in SLABS if one.tiles(inputs) * 16 <= one.work * inputs
        for features, tokens, high, wide, stages in TILES
    ]  # fmt: skip
    whole = problem.rows * problem.inner * cost.item_bytes(problem)
    fit = [
        config
        for config, s in ((config, Shape.of(config)) for config in found)
        if s.shared_bytes <= MOST_SHARED and stored_bytes(s, problem.rows, problem.inner) < whole
    ]
    return ranked(problem, fit, lambda sized, config: predict(sized, pattern, config, target))


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch."""
    s, item = Shape.of(config), cost.item_bytes(problem)
    columns = cost.columns_of(problem)
    down, across = -(-columns // s.tokens), -(-problem.rows // s.features)
    steps = -(-problem.inner // s.inputs)
    resident = max(1, min(MOST_SHARED // s.shared_bytes, 32768 // (s.features * s.tokens)))
    # a sparse instruction takes as long as a dense one of the weights it stores
    products = 2.0 * s.elements * s.tokens
    slab = s.inputs * s.tokens * item
    # a slab is written, read, and written turned; tiles are written, and read by all warps of other tokens;
    # of eight lines of inputs two are in one bank more often than not
    moved = 3 * slab + (1 + s.wide) * s.elements * item + 2 * s.groups * s.kept * s.tokens * item
    rate = mma_rate(target, s.rows, s.tiling.warp_columns)
    step = max(products / rate, moved / _SHARED_BYTES) + _STEP_CYCLES / resident
    out = problem.rows * columns * item * (1 + problem.extras.count("full"))
    weight = stored_bytes(s, problem.rows, problem.inner)
    read = down * across * steps * slab * CHUNK / vector_of(problem.inner) + down * weight
    return cost.kernel_cycles(
        target, operations=down * across * steps * step, rate=1.0, blocks=down * across, resident=resident,
        memory_bytes=columns * problem.inner * item + weight + out, l2_bytes=FOUND_ONCE * read + out,
    )  # fmt: skip


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """The weights of kept inputs, which inputs they are, and which two of four."""
    return stored_bytes(Shape.of(config), problem.rows, problem.inner)


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight[M, K]`` as gathered_rows has it."""
    shape, arrays = packed(np.asarray(weight), Shape.of(config))
    return Packing(arrays, 0, tuple(sorted(asdict(shape).items())))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A thread block for each tile."""
    s = Shape.of(dict(packing.config))
    return blocks(problem, sizes, columns, s.tokens, s.features)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    s = Shape.of(dict(packing.config))

    def body(k: Kernel) -> None:
        token, feature = block_tile(k, problem, s.tokens, s.features)
        x = Staged(k, s.tokens, s.inputs, s.stages, problem.dtype)
        turned = Staged(k, s.inputs, s.tokens, 2, problem.dtype)
        weights = _Weights(k, s, problem)
        from_x = matrix(k, k["x"], problem.inner, token, s.inputs, tokens_of(k, problem), problem.inner)
        copy_x = copier(k, x, from_x, vector_of(problem.inner))
        accumulators = zeros(k, s.tiling)
        multiply = _multiplier(k, s, turned, weights, accumulators)
        turn = _turner(k, s, x, turned)
        steps = -(-problem.inner // s.inputs)

        def fetch(stage: Any, step: Any) -> None:
            copy_x(stage, step)
            weights.copy(stage, feature // s.features * steps + step)

        _pipeline(k, s.stages, steps, fetch, turn, multiply)
        store = store_tokens(k, problem, token, feature)
        deliver(k, s.tiling, accumulators, store, vector_of(problem.rows), turned=True)

    pointers = [
        ("x", problem.dtype), ("values", problem.dtype), ("columns", "uint8"),
        *([("positions", "uint32")] if s.pairs else []), *extra_pointers(problem), ("y", problem.dtype),
    ]  # fmt: skip
    return device_function(name, s.tiling.threads, pointers, run_time_sizes(problem), body)


class _Weights:
    """The weights of a step in shared memory, the inputs they are for, and with pairs which two of four."""

    def __init__(self, k: Kernel, s: Shape, problem: Problem) -> None:
        # array in shared memory, in memory, and elements of a step and of 16 bytes
        self._parts = [(k.shared(s.elements * s.stages, problem.dtype), k["values"], s.elements, CHUNK)]
        self._parts += [
            (k.shared(s.groups * s.kept * s.stages, "uint8"), k["columns"], s.groups * s.kept, 16)
        ]
        if s.pairs:
            self._parts += [(k.shared(s.words * s.stages, "uint32"), k["positions"], s.words, 4)]
        self._streams = [streamer(k, to, source, size // per, per) for to, source, size, per in self._parts]
        self.words, self.columns = k.words(self._parts[0][0]), self._parts[1][0]
        self.positions = self._parts[-1][0]

    def copy(self, stage: Any, line: Any) -> None:
        """Issue the copies of a line (int64) of every array."""
        for (_, _, size, _), stream in zip(self._parts, self._streams, strict=True):
            stream(stage * size, line * size, None)


def _pipeline(
    k: Kernel, stages: int, steps: int, fetch: Callable[[Any, Any], None], turn: Callable[[Any, Any], None],
    multiply: Callable[[Any, Any], None],
) -> None:  # fmt: skip
    """All steps: each turns the slab of the next while it multiplies with its own, between two barriers."""
    ahead = stages - 1
    for step in range(ahead):
        if step < steps:
            fetch(step, integer(step))
        k.call(instructions.cp_async_commit)
    k.call(instructions.cp_async_wait(ahead - 1))
    k.sync()
    turn(0, 0)
    with k.loop(steps, dtype="int32") as step:
        k.call(instructions.cp_async_wait(ahead - 2))
        # the next step's copies are there, this one's slab is turned, the last one's memory is free
        k.sync()
        with k.when(step + ahead < steps):
            fetch((step + ahead) % stages, step + ahead)
        k.call(instructions.cp_async_commit)
        with k.when(step + 1 < steps):
            turn((step + 1) % stages, (step + 1) % 2)
        multiply(step % stages, step % 2)


def _turner(k: Kernel, s: Shape, x: Staged, turned: Staged) -> Callable[[Any, Any], None]:
    """``turn(stage, side)`` writes a slab with its inputs as lines.

    A warp turns 8 inputs of 32 tokens at once.
    """
    chunks, warps = s.inputs // CHUNK, s.high * s.wide
    words = k.words(turned.array)
    units = chunks * (s.tokens // _TURNED) // warps
    four = k.registers(4 * units, "uint32")

    def turn(stage: Any, side: Any) -> None:
        places = []
        for i in range(units):
            unit = k.warp + i * warps
            chunk, token = unit % chunks, unit // chunks * _TURNED
            place = stage * x.size + x.place(token + k.lane, chunk)
            k.call(instructions.ldmatrix_x4_trans, four.pointer(4 * i), x.array.pointer(place))
            places.append((chunk * CHUNK + k.lane // 4, token // CHUNK))
        for i, (line, first) in enumerate(places):
            for part in range(4):
                place = (side * turned.size + turned.place(line, first + part)) // 2 + k.lane % 4
                words.put(place, four[4 * i + part])

    return turn


def _multiplier(
    k: Kernel, s: Shape, turned: Staged, weights: _Weights, accumulators: Array
) -> Callable[[Any, Any], None]:
    """``multiply(stage, side)`` adds the products of all groups with the inputs they keep."""
    tiling = s.tiling
    row, column = warp_place(k, tiling)
    group, tall = k.bind(row // s.rows), s.rows // SIDE
    eights = tiling.warp_columns // CHUNK
    # eight lanes point at the lines of one 8 x 8 matrix: those of span inputs, then of the next tokens
    loads, across = eights * s.span // 32, 32 // s.span
    words, tile = k.registers(loads * 4, "uint32"), k.registers(tall * LANE_WORDS, "uint32")
    positions = k.registers(-(-tall // 2), "uint32")
    first = k.bind(column // CHUNK + k.lane // s.span)

    def multiply(stage: Any, side: Any) -> None:
        for at in range(tiling.warp_rows // s.rows):
            for part in range(s.tiles):
                product(at, k.bind((stage * s.groups + group + at) * s.tiles + part), side * turned.size)

    def product(at: int, place: Any, base: Any) -> None:
        line = k.bind(T.cast(weights.columns[place * s.span + k.lane % s.span], "int32"))
        for i in range(loads):
            source = turned.array.pointer(base + turned.place(line, first + i * across))
            k.call(instructions.ldmatrix_x4_trans, words.pointer(i * 4), source)
        for i in range(tall):
            load_tile(k, tile, i * LANE_WORDS, weights.words, (place * tall + i) * WORDS)
        if s.pairs:
            for i in range(-(-tall // 2)):
                positions.put(i, weights.positions[(place * -(-tall // 2) + i) * 32 + k.lane])
        for i in range(tall):
            for j in range(eights):
                to = accumulators.pointer(((at * tall + i) * eights + j) * ACCUMULATORS)
                add(to, i, words.pointer(j * (4 * s.span // 32)))

    def add(to: Any, i: int, inputs: Any) -> None:
        dtype, left = turned.array.dtype, tile.pointer(i * LANE_WORDS)
        if s.pairs:
            k.call(instructions.mma_sp_m16n8k32(dtype, i % 2), to, left, inputs, positions[i // 2])
        else:
            k.call(instructions.mma_m16n8k16(dtype), to, left, inputs)

    return multiply

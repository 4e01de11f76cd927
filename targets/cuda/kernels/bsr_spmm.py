"""bsr_spmm: weights of dense blocks times tokens, on tensor cores.

A thread block makes a tile of tokens x output features.  Its features are several *block rows* of the weight;
its steps are the slabs of 32 inputs in which any of them stores a block.  A step copies that slab of the
tile's tokens and the stored blocks, already in the order of ``mma``'s registers (see operand_order), several
steps ahead; a mask says which blocks there are: the others are neither stored, nor read, nor multiplied.  All
warps do all blocks for tokens of their own, so none waits for another.

What limits such a product is L2.  Blocks of r features use each x they read r times: 4096^3 with 10 % of
blocks of 64 x 64 reads 215 MB of x for 14 GFLOP, 64 operations a byte, where tensor cores want over 100.  So

1. block rows that store the same slabs are made by one thread block, which reads such a slab once: packing
   groups them greedily by the slabs they share (all, if the true blocks are larger than those looked for), up
   to 16 block rows in a group: 185 MB for the example in tiles of 128 features;
2. tiles are up to 256 tokens wide, since each tile of tokens reads the blocks again, 54 MB in the example;
3. tiles of the same tokens run at one time, so that L2 has x when it is read again, longest first.

That is 270 MB with y, under 60 us of an H200's L2; the products, 25,000 ``mma`` a multiprocessor, take 23 us.

Blocks are stored by the sizes that tensor cores work on; others run so where few zeros are added.
See Gray, Radford and Kingma, "GPU Kernels for Block-Sparse Weights" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import cost, expressions
from sparsec.targets.cuda.builder import Array, Kernel, device_function, int64
from sparsec.targets.cuda.instructions import mma_m16n8k16
from sparsec.targets.cuda.parts.block_steps import DEPTH, MOST_BLOCKS, STEP, Shape, arrays_of
from sparsec.targets.cuda.parts.linear_tiles import mma_rate, ranked, run_time_sizes, tokens_of, vector_of
from sparsec.targets.cuda.parts.mma_epilogue import Store, deliver
from sparsec.targets.cuda.parts.mma_tiles import (
    ACCUMULATORS,
    CHUNK,
    SLAB,
    Fragments,
    Place,
    Reader,
    Source,
    Staged,
    copier,
    pipeline,
    warp_place,
    zeros,
)  # fmt: skip
from sparsec.targets.cuda.parts.operand_order import ELEMENTS, LANE_WORDS, WORDS, load_tile, streamer
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "bsr_spmm"
format = "bsr"

#: blocks that are stored whole: (output features, inputs)
BLOCKS = ((32, 32), (32, 16), (16, 32), (16, 16))
#: features, tokens, warps and stages of a tile; L2 and the number of multiprocessors decide between them
TILES = (
    (128, 256, 8, 5), (256, 128, 8, 5), (64, 256, 8, 4), (128, 128, 4, 4), (128, 64, 4, 5), (64, 64, 4, 6),
    (32, 64, 4, 6), (32, 32, 2, 8),
)  # fmt: skip
#: share of the weight that must be left out for the kernel to be weighed
_LEFT_OUT = 0.25
#: cycles that a step waits for the slowest warp, and that a warp takes to find a block not there
_STEP_CYCLES, _TEST_CYCLES = 100.0, 8.0


def block_sizes(pattern: Pattern) -> list[tuple[int, int]]:
    """Sizes of blocks to store the weight in, those that store fewest elements first."""
    found = []
    for rows, inputs in BLOCKS:
        fit = pattern.block_fit(rows, inputs)
        elements = fit.stored * rows * inputs if fit else 0
        if 0 < elements <= (1 - _LEFT_OUT) * pattern.shape[0] * pattern.shape[1]:
            found.append((elements, -rows * inputs, (rows, inputs)))
    return [size for _, _, size in sorted(found)]


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Linear layers of two-byte floats of whose blocks a quarter or more is zeros."""
    return problem.conv is None and problem.dtype != "float32" and bool(block_sizes(pattern))


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The best-predicted tiles of the two block sizes that store least."""
    found = [
        {
            "block_rows": rows, "block_columns": inputs, "together": features // rows, "tokens": tokens,
            "warps": warps, "stages": stages,
        }
        for rows, inputs in block_sizes(pattern)[:2]
        for features, tokens, warps, stages in TILES
        if features // rows * (DEPTH // inputs) <= MOST_BLOCKS
    ]  # fmt: skip
    return ranked(problem, found, lambda one, config: predict(one, pattern, config, target))


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch, as if block rows stored blocks independently of one another."""
    s, item = Shape.of(config), cost.item_bytes(problem)
    stored = _stored(pattern, s)
    across, down = -(-problem.inner // DEPTH), -(-problem.rows // s.block_rows)
    share = min(1.0, stored / max(1, across * s.parts * down))
    groups = -(-down // s.together)
    steps = groups * across * (1 - (1 - share) ** (s.parts * s.together))
    columns = cost.columns_of(problem)
    turns = -(-columns // s.tokens)
    # a step's fragments of x serve all of its blocks
    at_once = s.block_rows * max(1.0, stored / s.parts / max(1.0, steps))
    rate = mma_rate(target, s.tokens // s.warps, round(at_once))
    waiting = steps * turns * (_STEP_CYCLES + _TEST_CYCLES * s.parts * s.together) / s.resident
    out = problem.rows * columns * item * (1 + problem.extras.count("full"))
    weight = stored * s.tiles * ELEMENTS * item
    slabs = steps * turns * s.tokens * DEPTH * item * CHUNK / vector_of(problem.inner)
    return cost.kernel_cycles(
        target, operations=stored * s.tiles * 2.0 * ELEMENTS * s.tokens * turns + waiting * rate, rate=rate,
        blocks=groups * turns, resident=s.resident,
        memory_bytes=columns * problem.inner * item + weight + out, l2_bytes=slabs + weight * turns + out,
    )  # fmt: skip


def _stored(pattern: Pattern, s: Shape) -> int:
    """Blocks that hold a nonzero."""
    fit = pattern.block_fit(s.block_rows, s.block_columns)
    return fit.stored if fit else 0


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every element of a stored block, and the tables: as if no two blocks shared a step."""
    s = Shape.of(config)
    stored = _stored(pattern, s)
    tables = 4 * STEP * (stored + 1) + 8 * -(-problem.rows // s.block_rows)
    return stored * s.tiles * ELEMENTS * cost.item_bytes(problem) + tables


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight[M, K]`` as block_steps has it."""
    arrays = arrays_of(np.asarray(weight), Shape.of(config))
    return Packing(arrays, 0, tuple(sorted({**config, "groups": len(arrays["starts"]) - 1}.items())))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A thread block for each group of block rows and tile of tokens."""
    s = Shape.of(dict(packing.config))
    return sizes.multiply(sizes.of(s.groups), sizes.ceil_divide(columns, s.tokens))


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    s = Shape.of(dict(packing.config))

    def body(k: Kernel) -> None:
        group = k.bind(T.cast(k.block % s.groups, "int32"))
        token = k.bind(k.block // s.groups * s.tokens)
        begin = k.bind(k["starts"][group])
        accumulators = zeros(k, s.tiling)
        fetch, compute = _step(k, problem, s, begin, token, accumulators)
        pipeline(k, s.stages, k.bind(k["starts"][group + 1] - begin), fetch, compute)
        deliver(k, s.tiling, accumulators, _store(k, problem, s, group, token), vector_of(problem.rows))

    pointers = [
        ("x", problem.dtype), ("values", problem.dtype), ("steps", "int32"), ("starts", "int32"),
        ("rows", "int32"), *expressions.extra_pointers(problem), ("y", problem.dtype),
    ]  # fmt: skip
    return device_function(name, s.tiling.threads, pointers, run_time_sizes(problem), body)


def _step(
    k: Kernel, problem: Problem, s: Shape, begin: Any, token: Any, accumulators: Array
) -> tuple[Callable[[Any, Any], None], Callable[[Any], None]]:
    """How a step is fetched and computed (see mma_tiles.pipeline)."""
    x = Staged(k, s.tokens, DEPTH, s.stages, problem.dtype)
    room = s.together * s.parts * s.tiles * ELEMENTS
    values = k.shared(room * s.stages, problem.dtype)
    masks = k.shared(s.stages, "int32")
    copy_x = copier(k, x, _slabs(k, problem, token), vector_of(problem.inner))
    stream = streamer(k, values, k["values"], room // CHUNK)
    # the table's line is read a step before it is needed, so that no copy waits for it
    line = k.registers(STEP, "int32")
    line.put(0, k["steps"].vector(begin * STEP, STEP), STEP)

    def fetch(stage: Any, step: Any) -> None:
        copy_x(stage, line[0])
        with k.when(k.thread == 0):
            masks.put(stage, line[1])
        stream(stage * room, int64(line[2]) * ELEMENTS, line[3] * (ELEMENTS // CHUNK))
        line.put(0, k["steps"].vector((begin + step + 1) * STEP, STEP), STEP)

    return fetch, _multiplier(k, s, x, values, masks, accumulators)


def _slabs(k: Kernel, problem: Problem, token: Any) -> Source:
    """Where the tile's tokens are read; a slab's first input stands for a step's number."""
    last = tokens_of(k, problem) - 1

    def source(line: Any, element: Any) -> Reader:
        # tokens past the last are read as the last: what comes of them is not stored
        start = k.bind(T.min(token + int64(line), last) * problem.inner + int64(element))

        def read(first: Any) -> Place:
            inside = None if problem.inner % DEPTH == 0 else element + first < problem.inner
            return Place(k["x"], start + int64(first), inside)

        return read

    return source


def _multiplier(
    k: Kernel, s: Shape, x: Staged, values: Array, masks: Array, accumulators: Array
) -> Callable[[Any], None]:
    """Adds the products of the blocks that are there."""
    tiling = s.tiling
    tall, wide = s.block_rows // SLAB, s.block_columns // SLAB
    inputs = Fragments(k, x, warp_place(k, tiling)[0], tiling.warp_rows // SLAB, second=False)
    words, weights = k.words(values), k.registers(s.tiles * LANE_WORDS, "uint32")
    place = k.registers(1, "int32")
    mma = mma_m16n8k16(x.array.dtype)

    def compute(stage: Any) -> None:
        mask = k.bind(masks[stage])
        place.put(0, stage * (s.together * s.parts * s.tiles * WORDS))
        for part in range(DEPTH // SLAB):
            inputs.load(stage * x.size, part, part)
        for bit in range(s.together * s.parts):
            with k.when((mask >> bit) % 2 != 0):
                block(*divmod(bit, s.parts))

    def block(row: int, part: int) -> None:
        at = k.bind(place[0])
        place.put(0, at + s.tiles * WORDS)
        for tile in range(s.tiles):
            load_tile(k, weights, tile * LANE_WORDS, words, at + tile * WORDS)
        for tile in range(s.tiles):
            depth, high = divmod(tile, tall)
            for half in range(2):
                column = (row * tall + high) * 2 + half
                for i in range(tiling.warp_rows // SLAB):
                    to = accumulators.pointer((i * (s.features // 8) + column) * ACCUMULATORS)
                    factor = weights.pointer(tile * LANE_WORDS + half * 2)
                    k.call(mma, to, inputs.slab(part * wide + depth, i), factor)

    return compute


def _store(k: Kernel, problem: Problem, s: Shape, group: Any, token: Any) -> Store:
    """Stores a token's features where their block row belongs, with the layer's epilogue."""
    tokens = tokens_of(k, problem)

    def store(line: Any, first: Any, values: list[Any]) -> None:
        row = k.bind(token + int64(line))
        start = k["rows"][group * s.together + first // s.block_rows]
        feature = k.bind(int64(start + first % s.block_rows))
        with k.when(tirx.all(row < tokens, feature < problem.rows)):
            offset = k.bind(row * problem.rows + feature)
            expressions.store(k, k["y"], offset, expressions.finish(k, problem, values, feature, offset))

    return store

"""dense_gemm: dense weights times tokens, on tensor cores for halves, by plain multiply-adds for float32.

``y[N, M] = x[N, K] weight[M, K]^T``: rows of a block's tile are tokens, its columns output features.  The
weight is stored padded with zeros to whole tiles, so that its copies need no checks; x is checked where
tokens or K end.  Its rows are dealt out so that a thread of a tensor core's warp makes eight neighbouring
features, and four threads 64 bytes (``mma_epilogue.column_order``): accumulators go straight to memory.

Hopper multiplies by ``wgmma``, straight from shared memory, other GPUs by ``mma.sync``, which on Hopper has
about 60 % of the rate.  A step of a 128 x 256 tile reads 48 KB for 2 x 128 x 256 x 64 operations, 85 for each
byte, and tiles of one time share what they read.  What is left undone there: copies by the tensor memory
accelerator to several multiprocessors at once.  Tiles are smaller where large ones would leave
multiprocessors idle.

float32 is not rounded to tf32: eight by eight elements a thread
(:mod:`sparsec.targets.cuda.parts.float_tiles`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import cost
from sparsec.targets.cuda.builder import Kernel, device_function
from sparsec.targets.cuda.expressions import extra_pointers
from sparsec.targets.cuda.parts import float_tiles, warpgroup_tiles
from sparsec.targets.cuda.parts.float_tiles import FloatTiling
from sparsec.targets.cuda.parts.linear_tiles import (
    block_tile,
    blocks,
    has_wgmma,
    product_cycles,
    ranked,
    resident_blocks,
    run_time_sizes,
    store_tokens,
    tile_rate,
    tokens_of,
    vector_of,
)  # fmt: skip
from sparsec.targets.cuda.parts.mma_epilogue import column_order, deliver_columns
from sparsec.targets.cuda.parts.mma_tiles import (
    Place,
    Reader,
    Source,
    Staged,
    Tiling,
    copier,
    matrix,
    multiplier,
    pipeline,
    zeros,
)  # fmt: skip
from sparsec.targets.cuda.tir import T
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "dense_gemm"
format = "dense"

#: the weight's K is padded to a multiple of this, which every tiling's depth divides
DEPTH = 128

#: tiles of tokens x features by mma.sync
TILINGS = (
    Tiling(128, 256, 32, 2, 4, 4), Tiling(128, 128, 32, 2, 2, 4), Tiling(128, 64, 32, 2, 2, 4),
    Tiling(64, 128, 32, 2, 2, 4), Tiling(64, 64, 64, 2, 2, 4), Tiling(32, 64, 64, 1, 2, 5),
    Tiling(32, 32, 128, 1, 2, 4), Tiling(16, 64, 128, 1, 4, 4), Tiling(16, 32, 128, 1, 2, 5),
)  # fmt: skip
#: those of them that wgmma makes, where there is one
GROUPED = (
    Tiling(128, 256, 64, 8, 1, 4, True), Tiling(128, 128, 64, 8, 1, 3, True),
    Tiling(128, 64, 64, 8, 1, 4, True), Tiling(64, 128, 64, 4, 1, 4, True), Tiling(64, 64, 64, 4, 1, 4, True),
)  # fmt: skip
FLOAT_TILINGS = (
    FloatTiling(128, 128, 16, 8, 8, 3), FloatTiling(64, 64, 16, 8, 4, 4), FloatTiling(32, 64, 32, 4, 4, 3),
    FloatTiling(16, 32, 32, 2, 4, 4),
)  # fmt: skip
#: share of the float32 units' rate that the tiles reach, and a thread's elements over the sum of its rows and
#: columns from which on shared memory keeps up
_FLOAT_SHARE, _FLOAT_REUSE = 0.7, 4.0


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Every linear layer."""
    return problem.conv is None


def _tilings(problem: Problem) -> tuple[Tiling, ...] | tuple[FloatTiling, ...]:
    return FLOAT_TILINGS if problem.dtype == "float32" else TILINGS


def _tiling(problem: Problem, config: Mapping[str, int], target: Target) -> Tiling | FloatTiling:
    sizes = (config["tokens"], config["features"])
    grouped = GROUPED if has_wgmma(target) and problem.dtype != "float32" else ()
    tilings: tuple[Tiling | FloatTiling, ...] = (*grouped, *_tilings(problem))
    return next(t for t in tilings if (t.rows, t.columns) == sizes)


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that are predicted best."""
    found = [{"tokens": t.rows, "features": t.columns} for t in _tilings(problem)]
    return ranked(problem, found, lambda one, config: predict(one, pattern, config, target))


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch."""
    tiling = _tiling(problem, config, target)
    if isinstance(tiling, Tiling):
        rate = tile_rate(target, tiling)
    else:
        reuse = tiling.high * tiling.wide / (tiling.high + tiling.wide)
        rate = cost.gpu_of(target).flops * _FLOAT_SHARE * min(1.0, reuse / _FLOAT_REUSE)
    return product_cycles(
        problem, target, tokens=tiling.rows, features=tiling.columns, rate=rate,
        resident=resident_blocks(tiling.threads, tiling.accumulators),
        weight_bytes=nbytes(problem, pattern, config, target),
    )  # fmt: skip


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every weight, and the zeros that fill tiles."""
    features, inner = _padded(problem, config)
    return features * inner * cost.item_bytes(problem)


def _padded(problem: Problem, config: Mapping[str, int]) -> tuple[int, int]:
    """Features and inputs in whole tiles."""
    features = config["features"]
    return -(-problem.rows // features) * features, -(-problem.inner // DEPTH) * DEPTH


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight[M, K]`` padded: for float32 tile by tile, [M / features][K][features], for halves row-major.

    Every 32 rows of halves (16 of narrow tiles) are in the order of ``mma_epilogue.column_order``.
    """
    features, inner = _padded(problem, config)
    padded = np.zeros((features, inner), weight.dtype)
    padded[: problem.rows, : problem.inner] = weight
    if problem.dtype == "float32":
        padded = padded.reshape(-1, config["features"], inner).transpose(0, 2, 1)
    else:
        group = _group(config)
        padded = padded.reshape(-1, group, inner)[:, column_order(group)]
    values = np.ascontiguousarray(padded).reshape(-1)
    return Packing({"values": values}, 0, tuple(sorted(config.items())))


def _group(config: Mapping[str, int]) -> int:
    """Features that four threads make together."""
    sizes = (config["tokens"], config["features"])
    return min(32, *(t.warp_columns for t in (*TILINGS, *GROUPED) if (t.rows, t.columns) == sizes))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A block for each tile."""
    config = dict(packing.config)
    return blocks(problem, sizes, columns, config["tokens"], config["features"])


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    tiling = _tiling(problem, dict(packing.config), target)

    def body(k: Kernel) -> None:
        if isinstance(tiling, Tiling):
            _halves(k, problem, tiling)
        else:
            _floats(k, problem, tiling)

    dtype = problem.dtype
    pointers = [("x", dtype), ("values", dtype), *extra_pointers(problem), ("y", dtype)]
    return device_function(name, tiling.threads, pointers, run_time_sizes(problem), body)


def _halves(k: Kernel, problem: Problem, tiling: Tiling) -> None:
    token, feature = block_tile(k, problem, tiling.rows, tiling.columns)
    depth, stages = tiling.depth, tiling.stages
    x = Staged(k, tiling.rows, depth, stages, problem.dtype)
    w = Staged(k, tiling.columns, depth, stages, problem.dtype)
    from_x = matrix(k, k["x"], problem.inner, token, depth, tokens_of(k, problem), problem.inner)
    copy_x = copier(k, x, from_x, vector_of(problem.inner))
    copy_w = copier(k, w, matrix(k, k["values"], -(-problem.inner // DEPTH) * DEPTH, feature, depth))
    accumulators = zeros(k, tiling)
    steps = -(-problem.inner // depth)

    def fetch(stage: Any, step: Any) -> None:
        copy_x(stage, step)
        copy_w(stage, step)

    if tiling.grouped:
        issue = warpgroup_tiles.dense_issuer(k, tiling, x, w, accumulators)
        warpgroup_tiles.pipeline(k, stages, steps, fetch, issue)
    else:
        pipeline(k, stages, steps, fetch, multiplier(k, tiling, (x, False), (w, False), accumulators))
    store = store_tokens(k, problem, token, feature, (tiling.rows, tiling.columns))
    group = _group({"tokens": tiling.rows, "features": tiling.columns})
    deliver_columns(k, tiling, accumulators, store, vector_of(problem.rows, group // 4), group)


def _floats(k: Kernel, problem: Problem, tiling: FloatTiling) -> None:
    token, feature = block_tile(k, problem, tiling.rows, tiling.columns)
    depth = tiling.depth
    x, w = float_tiles.staged(k, tiling)
    from_x = matrix(k, k["x"], problem.inner, token, depth, tokens_of(k, problem), problem.inner)
    copy_x = copier(k, x, from_x, vector_of(problem.inner, 4))
    first = feature * (-(-problem.inner // DEPTH) * DEPTH)
    copy_w = copier(k, w, _tiles(k, first, tiling), 4)
    accumulators = float_tiles.zeros(k, tiling)
    multiply = float_tiles.multiplier(k, tiling, x, w, accumulators)

    def fetch(stage: Any, step: Any) -> None:
        copy_x(stage, step)
        copy_w(stage, step)

    pipeline(k, tiling.stages, -(-problem.inner // depth), fetch, multiply)
    store = store_tokens(k, problem, token, feature, (tiling.rows, tiling.columns))
    float_tiles.deliver(k, tiling, accumulators, store, vector_of(problem.rows, 4))


def _tiles(k: Kernel, first: Any, tiling: FloatTiling) -> Source:
    """The weight's tiles, whose lines are K, from element ``first`` on."""

    def source(line: Any, element: Any) -> Reader:
        start = k.bind(first + T.cast(line * tiling.columns + element, "int64"))
        return lambda step: Place(k["values"], start + step * (tiling.depth * tiling.columns))

    return source

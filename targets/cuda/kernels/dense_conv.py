"""dense_conv: convolution with dense weights, as implicit matrix products.

``y[M, positions] = weight[M, K] x[K, positions]`` for each group, M in tiles, all images' positions in one
row of tiles, on tensor cores for halves and by plain multiply-adds for float32 (which tensor cores would
round). The weight is stored padded to whole tiles and steps, so that its copies need no checks.

x comes in one of two ways.  Along *lines* (see conv_lines), for halves and windows of several taps: pixels
come from memory once for all taps.  As *columns* otherwise: a step's tile of x is copied element by element
(copies of 4 bytes and more asynchronously, several steps ahead), K counting taps before channels.
Positions of 1x1 convolutions are neighbours in memory: copies take up to 16 bytes.  No channel is padded,
so few of them (a network's first layer), windows too large for shared memory, and all of float32, where a
multiply-add takes longer than the copy, go this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import cost
from sparsec.targets.cuda.builder import Kernel, device_function
from sparsec.targets.cuda.expressions import extra_pointers
from sparsec.targets.cuda.parts import conv_lines, conv_plans, conv_tiles, float_tiles
from sparsec.targets.cuda.parts.conv_plans import (
    geometry_of,
    inner_of,
    row_of_positions,
    row_tiles,
    vector_of,
)
from sparsec.targets.cuda.parts.float_tiles import FloatTiling
from sparsec.targets.cuda.parts.linear_tiles import mma_rate
from sparsec.targets.cuda.parts.mma_epilogue import deliver
from sparsec.targets.cuda.parts.mma_tiles import Staged, Tiling, copier, multiplier, pipeline, zeros
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "dense_conv"
format = "dense"

#: tiles of output channels x positions on tensor cores
TILINGS = (
    Tiling(128, 128, 32, 2, 2, 3), Tiling(128, 128, 32, 2, 4, 3), Tiling(64, 128, 32, 2, 2, 3),
    Tiling(128, 64, 32, 2, 2, 3), Tiling(64, 64, 32, 2, 2, 4), Tiling(32, 64, 32, 1, 4, 4),
    Tiling(32, 32, 32, 1, 2, 4), Tiling(16, 128, 32, 1, 4, 4), Tiling(64, 128, 16, 2, 2, 4),
    Tiling(16, 128, 16, 1, 4, 4), Tiling(32, 64, 64, 1, 4, 4), Tiling(32, 32, 128, 1, 2, 4),
    Tiling(16, 32, 128, 1, 2, 4),
)  # fmt: skip
FLOAT_TILINGS = (
    FloatTiling(128, 128, 16, 8, 8, 3), FloatTiling(64, 128, 16, 8, 8, 3), FloatTiling(64, 64, 16, 8, 4, 4),
    FloatTiling(32, 64, 32, 4, 4, 3), FloatTiling(16, 32, 32, 2, 4, 4),
)  # fmt: skip
#: share of the float32 units' rate that tiles reach
_FLOAT_SHARE = 0.7


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Every convolution."""
    return problem.conv is not None


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that are predicted best."""
    return conv_plans.ranked(
        problem, configurations(problem), lambda one, config: predict(one, pattern, config, target)
    )


def configurations(problem: Problem) -> Iterator[dict[str, int]]:
    """Every tile, and both ways of x where both are possible."""
    for t in FLOAT_TILINGS if problem.dtype == "float32" else TILINGS:
        config = {"rows": t.rows, "positions": t.columns, "depth": t.depth, "threads": t.threads}
        yield {**config, "line": 0}
        weights = t.rows * t.depth * t.stages * cost.item_bytes(problem)
        if isinstance(t, Tiling) and conv_plans.line_fits(problem, config, weights):
            yield {**config, "line": 1}


def _tiling(problem: Problem, config: Mapping[str, int]) -> Tiling | FloatTiling:
    sizes = tuple(config[key] for key in ("rows", "positions", "depth", "threads"))
    tilings = FLOAT_TILINGS if problem.dtype == "float32" else TILINGS
    return next(t for t in tilings if (t.rows, t.columns, t.depth, t.threads) == sizes)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch."""
    tiling = _tiling(problem, config)
    if isinstance(tiling, Tiling):
        rate = mma_rate(target, tiling.warp_rows, tiling.warp_columns)
    else:
        # multiply-adds for each element that is read from shared memory
        reach = tiling.high * tiling.wide / (tiling.high + tiling.wide) / 4
        rate = cost.gpu_of(target).flops * _FLOAT_SHARE * min(1.0, reach)
    weights = nbytes(problem, pattern, config, target)
    return conv_plans.cycles(problem, config, target, rate, weights)


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every weight, and the zeros that fill tiles."""
    rows = geometry_of(problem).groups * row_tiles(problem, config["rows"]) * config["rows"]
    return rows * inner_of(problem, config) * cost.item_bytes(problem)


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight`` as [groups][row tiles][rows][K], and each tap's place on the line."""
    steps = conv_plans.in_steps(weight, problem, config)
    tall = row_tiles(problem, config["rows"]) * config["rows"]
    padded = np.zeros((len(steps), tall, steps.shape[2]), weight.dtype)
    padded[:, : steps.shape[1]] = steps
    arrays = {"values": padded.reshape(-1), **conv_plans.taps_of(problem, config)}
    return Packing(arrays, 0, tuple(sorted(config.items())))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A block for each tile."""
    return conv_tiles.grid(problem, dict(packing.config), sizes, columns)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    config, dtype = dict(packing.config), problem.dtype
    tiling, inner = _tiling(problem, config), inner_of(problem, config)

    def body(k: Kernel) -> None:
        if isinstance(tiling, FloatTiling):
            _floats(k, problem, tiling, inner)
        elif config["line"]:
            line = conv_plans.line_of(problem, config)
            conv_lines.body(
                k, problem, tiling, line, lambda *held: conv_lines.dense_operand(k, tiling, inner, *held)
            )
        else:
            _halves(k, problem, tiling, inner)

    taps = [("taps", "int32")] if conv_plans.has_taps(problem, config) else []
    pointers = [("x", dtype), ("values", dtype), *taps, *extra_pointers(problem), ("y", dtype)]
    return device_function(name, tiling.threads, pointers, conv_tiles.run_time_sizes(problem), body)


def _halves(k: Kernel, problem: Problem, tiling: Tiling, inner: int) -> None:
    """x as columns, on tensor cores."""
    tile, depth = conv_tiles.tile_of(k, problem, tiling.rows, tiling.columns), tiling.depth
    w = Staged(k, tiling.rows, depth, tiling.stages, problem.dtype)
    x = Staged(k, depth, tiling.columns, tiling.stages, problem.dtype)
    copy_w = copier(k, w, conv_tiles.weights(k, tile, inner, depth))
    copy_x = copier(k, x, conv_tiles.pixels(k, problem, tile, depth), row_of_positions(problem))
    accumulators = zeros(k, tiling)
    multiply = multiplier(k, tiling, (w, False), (x, True), accumulators)

    def fetch(stage: Any, step: Any) -> None:
        copy_w(stage, step)
        copy_x(stage, step)

    pipeline(k, tiling.stages, inner // depth, fetch, multiply)
    store = conv_tiles.store_positions(k, problem, tile)
    deliver(k, tiling, accumulators, store, vector_of(problem))


def _floats(k: Kernel, problem: Problem, tiling: FloatTiling, inner: int) -> None:
    """x as columns, by plain multiply-adds."""
    tile, depth = conv_tiles.tile_of(k, problem, tiling.rows, tiling.columns), tiling.depth
    w, x = float_tiles.staged(k, tiling)
    copy_w = copier(k, w, conv_tiles.weights(k, tile, inner, depth), 4)
    copy_x = copier(k, x, conv_tiles.pixels(k, problem, tile, depth), min(4, row_of_positions(problem)))
    accumulators = float_tiles.zeros(k, tiling)
    multiply = float_tiles.multiplier(k, tiling, w, x, accumulators)

    def fetch(stage: Any, step: Any) -> None:
        copy_w(stage, step)
        copy_x(stage, step)

    pipeline(k, tiling.stages, inner // depth, fetch, multiply)
    store = conv_tiles.store_positions(k, problem, tile)
    float_tiles.deliver(k, tiling, accumulators, store, min(4, vector_of(problem)))

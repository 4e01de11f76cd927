"""dense_conv: convolution with dense weights.

The loop order of dense_gemm over windows of the input: for each tile of output positions and each
block of channels, micro-tiles of output channels by positions read tap (r, s) at a constant offset
from the output position (direct convolution: Zhang et al. 2018), and partial sums rest in scratch
between blocks.  A 1x1 convolution of neighbouring positions may read x where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.kernels import conv_plans
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.conv_plans import Plan, plan_of
from sparsec.targets.kernels.epilogue import extra_pointers
from sparsec.targets.kernels.micro_tiles import Across, Along, Place
from sparsec.targets.kernels.window_moves import WindowMoves
from sparsec.targets.kernels.window_visits import place, run_time_sizes
from sparsec.targets.target import Packing, Problem, Target

name = "dense_conv"
format = "dense"

#: configurations offered
_OFFERED = 4


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Any convolution whose window of one channel fits a part of L2."""
    return problem.conv is not None and conv_plans.possible(problem.conv, target)


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that promise most, the best first."""
    found = conv_plans.candidates(problem, target)
    return tuple(sorted(found, key=lambda c: predict(problem, pattern, c, target))[:_OFFERED])


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core."""
    return conv_plans.cycles(plan_of(problem, config, target), target)


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every weight."""
    return 4 * problem.rows * problem.inner


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight[M, R*S*C]`` as [group][block of channels][row tile][channel][tap][height]."""
    plan = plan_of(problem, config, target)
    g, height = plan.geometry, plan.height
    padded = np.zeros((g.groups, plan.row_tiles * height, g.taps, g.channels), np.float32)
    padded[:, : plan.rows] = np.asarray(weight).reshape(g.groups, plan.rows, g.taps, g.channels)
    tiled = padded.reshape(g.groups, plan.row_tiles, height, g.taps, g.channels).transpose(0, 1, 4, 3, 2)
    blocks = [
        tiled[group, :, start : start + plan.channels].reshape(-1)
        for group in range(g.groups)
        for start in range(0, g.channels, plan.channels)
    ]
    down, across = plan.window.tiles
    chunks = down * across * g.groups * plan.row_chunks
    arrays = {"values": np.concatenate(blocks)}
    if plan.listed:
        arrays["offsets"] = _offsets(plan)
    return Packing(arrays, chunks, tuple(sorted({**config, "chunks": chunks}.items())))


def _offsets(plan: Plan) -> Any:
    """Where each (channel, tap) of a block lies in the windows.

    Read from memory, since LLVM makes shuffles of overlapping vectors whose distance it knows.
    """
    high, wide = plan.geometry.kernel
    taps = np.array([plan.window.offset(r, s) for r in range(high) for s in range(wide)])
    return np.add.outer(np.arange(plan.channels) * plan.window.size, taps).astype(np.int32).reshape(-1)


def scratch_floats(problem: Problem, packing: Packing, target: Target) -> int:
    """The windows of a block of channels, then the resting accumulators."""
    plan = plan_of(problem, dict(packing.config), target)
    return max(16, plan.windows + plan.resting)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    plan = plan_of(problem, dict(packing.config), target)

    def body(k: Kernel) -> None:
        micro = Across(k, plan) if plan.across else Along(k, plan)
        if not plan.direct:
            WindowMoves(plan.window).clear(k, k.scratch, 0, plan.channels)
        with k.tiles() as tile:
            _tile(k, plan, micro, tile)

    arrays = [("values", "float32"), ("offsets", "int32")][: 1 + plan.listed]
    pointers = [("x", "float32"), *arrays, *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, target.lanes, pointers, run_time_sizes(problem), body)


def _tile(k: Kernel, plan: Plan, micro: Along, tile: Any) -> None:
    """One unit of work: all channels of a tile of positions, for a chunk of rows of one group."""
    from tvm.script.ir_builder import tirx as T

    g, chunks = plan.geometry, plan.row_chunks
    image, part, corner = place(k, plan.window, tile, chunks * g.groups)
    group, chunk = (k.bind(part // chunks), k.bind(part % chunks)) if g.groups > 1 else (k.constant(0), part)
    plane, per_channel = g.height * g.width, plan.row_tiles * plan.height * g.taps
    number = k.bind(image * g.groups + group)
    x = k.bind(number * (g.channels * plane) + (corner[1] if plan.direct else 0))
    y = k.bind(number * (plan.rows * g.positions))
    low = k.bind(chunk * plan.tiles_per_chunk)
    with k.loop(plan.blocks) as block:
        start = k.bind(block * plan.channels)
        channels = k.bind(T.min(k.constant(plan.channels), g.channels - start))
        source = k.bind(x + start * plane)
        weights = k.bind((group * g.channels + start) * per_channel)
        feature = k.bind(group * plan.rows)
        if plan.direct:
            at = Place(k["x"], source, plane, channels, weights, feature, low, y, corner, block)
        else:
            WindowMoves(plan.window).stage(k, k["x"], source, channels, k.scratch, 0, corner)
            zero, size = k.constant(0), plan.window.size
            at = Place(k.scratch, zero, size, channels, weights, feature, low, y, corner, block)
        _rows(k, plan, micro, at, chunk)


def _rows(k: Kernel, plan: Plan, micro: Along, at: Place, chunk: Any) -> None:
    """The row tiles of a chunk."""
    from tvm.script.ir_builder import tirx as T

    whole, left = divmod(plan.rows, plan.height)
    with k.loop(at.first_tile, T.min(at.first_tile + plan.tiles_per_chunk, k.constant(whole))) as number:
        micro.row_tile(at, number, plan.height)
    if left:
        with k.when(chunk == plan.row_chunks - 1):
            micro.row_tile(at, k.constant(whole), left)

"""csr_conv: convolution with unstructured weights, by constant distances on a line of positions (see lines).

A block of eight warps holds a tile of the line for some channels in shared memory, twice, so that the next
channels arrive while these are used.  All its warps read that tile, each for rows (output channels) of its
own, whose accumulators stay in registers.  A nonzero of a row is a multiply-add for each of the warp's
numbers: its value and its place are one read for all lanes (six bytes, or four, four nonzeros at a time and
one step ahead), and lane ``l`` reads x at the place plus ``l``, plus 32, and so on: constant distances, no
conflict of banks whatever the tap.

What bounds it: nothing is shared between rows, so every multiply-add takes its x from shared memory, which
gives 32 words a cycle: a quarter of a multiprocessor's float32 multiply-adds.  In float32 that is ahead of
dense, which reaches most of them, where four fifths are zero.  16-bit elements are read in pairs: twice as
many a cycle, yet each pair takes two conversions and two multiply-adds; tensor cores do over ten times as
many, so there it pays for weights nearly all zero, or where the weight's bytes are what takes time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.cost import gpu_of, item_bytes, kernel_cycles
from sparsec.targets.cuda.parts import conv_plans, conv_rows, csr_conv_body
from sparsec.targets.cuda.parts.conv_rows import STEP
from sparsec.targets.cuda.parts.lines import Line
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "csr_conv"
format = "csr"

WARPS = 8
#: bytes of shared memory for the two buffers: three blocks of sm_90 and two of sm_80 fit a multiprocessor
_SHARED = 72 << 10
#: bytes below which a single channel must stay
_MOST = 144 << 10
#: cycles from one step of a warp to the next, if nothing else keeps it
_LATENCY = 80
#: accumulators of a thread
_ACCUMULATORS = 64


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Any ungrouped convolution, one channel of whose tile fits shared memory twice."""
    g = problem.conv
    return g is not None and g.groups == 1 and 2 * _line(problem, 1, 1).bytes <= _MOST


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that promise most, the best first."""
    return conv_plans.ranked(
        problem, _tiles(problem), lambda one, config: predict(one, pattern, config, target)
    )


def _tiles(problem: Problem) -> Iterator[dict[str, int]]:
    """``wide`` reads of a lane by ``high`` rows of a warp, and as many channels at a time as fit."""
    neighbours = _line(problem, 1, 1).neighbours
    for wide in (8, 4, 2, 1):
        one = _line(problem, wide, 1)
        if 2 * one.bytes > _MOST:
            continue
        channels = max(1, min(one.geometry.channels, _SHARED // (2 * one.bytes)))
        blocks = -(-one.geometry.channels // channels)
        channels = -(-one.geometry.channels // blocks)
        for high in (16, 8, 4, 2, 1):
            fits = wide * high * neighbours <= _ACCUMULATORS
            if fits and (high == 1 or high * WARPS < 2 * problem.rows):
                yield {"wide": wide, "high": high, "channels": channels}


def _line(problem: Problem, wide: int, channels: int) -> Line:
    assert problem.conv is not None
    neighbours = 1 if problem.dtype == "float32" else 2
    return Line(replace(problem.conv, images=None), 32 * wide * neighbours, channels, problem.dtype)


def line_of(problem: Problem, config: Mapping[str, int]) -> Line:
    """The line that a configuration cuts."""
    return _line(problem, config["wide"], config["channels"])


def _cells(problem: Problem, config: Mapping[str, int]) -> int:
    """Warps with rows of their own, a multiple of a block's."""
    return -(-problem.rows // (WARPS * config["high"])) * WARPS


def _runs(problem: Problem, config: Mapping[str, int]) -> int:
    return _cells(problem, config) * line_of(problem, config).blocks * config["high"]


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run."""
    line, gpu, item = line_of(problem, config), gpu_of(target), item_bytes(problem)
    assert problem.conv is not None
    images = problem.conv.images or 1
    tiles = -(-images * line.per_image // line.count)
    blocks = tiles * _cells(problem, config) // WARPS
    steps = conv_rows.stored_steps(pattern.nonzeros, _runs(problem, config))
    # cycles of a multiprocessor for a warp's step: reads of shared memory, instructions of four schedulers,
    # or what a read takes, shared by the warps that are there
    wide, pairs = config["wide"], line.neighbours == 2
    issued = (STEP * ((5 if pairs else 2) * wide + 3) + 12) / 4
    waiting = _LATENCY / WARPS / max(1.0, min(3.0, blocks / gpu.multiprocessors))
    step = max(STEP * wide + 2, issued, waiting)
    # and a few hundred cycles a block of channels until all warps are there
    cycles = tiles * (1.05 * steps * step + 40.0 * line.blocks * _cells(problem, config))
    weights = nbytes(problem, pattern, config, target)
    plane = problem.conv.channels * problem.conv.height * problem.conv.width
    moved = images * (plane + problem.rows * problem.conv.positions) * item
    staged = blocks * line.length * len(line.phases) * problem.conv.channels * item
    return kernel_cycles(
        target, operations=cycles * gpu.flops, rate=gpu.flops, blocks=blocks,
        memory_bytes=moved + weights, l2_bytes=staged + tiles * weights,
    )  # fmt: skip


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A value and a place for every nonzero, and where rows begin."""
    runs = _runs(problem, config)
    steps = conv_rows.stored_steps(pattern.nonzeros, runs)
    return conv_rows.stored_bytes(steps, item_bytes(problem), runs, problem.rows)


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """The arrays of conv_rows."""
    places = line_of(problem, config).places()
    arrays = conv_rows.pack(weight, places, _cells(problem, config), config["high"])
    return Packing(arrays, 0, tuple(sorted(config.items())))


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function; its size is the number of images, if that is not known."""
    from sparsec.targets.cuda.builder import device_function

    config, dtype = dict(packing.config), problem.dtype
    pointers = [
        ("x", dtype), ("values", dtype), ("places", "uint16"), ("starts", "int32"), ("rows", "int32"),
        *expressions.extra_pointers(problem), ("y", dtype),
    ]  # fmt: skip
    cells = _cells(problem, config) // WARPS
    body = partial(
        csr_conv_body.body, problem=problem, line=line_of(problem, config), high=config["high"], chunks=cells
    )
    sizes = ["images"] if problem.columns is None else []
    return device_function(name, 32 * WARPS, pointers, sizes, body)


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """Blocks: tiles of the line of all images, by rows."""
    config = dict(packing.config)
    line = line_of(problem, config)
    tiles = sizes.ceil_divide(sizes.multiply(columns, sizes.of(line.per_image)), line.count)
    return sizes.multiply(tiles, sizes.of(_cells(problem, config) // WARPS))

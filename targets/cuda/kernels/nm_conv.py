"""nm_conv: convolution with 2:4 weights on the sparse tensor cores.

At most two of every four neighbouring inputs (taps counted before channels) of an output channel are not
zero. ``mma.sp`` takes such rows as its operand A: as in dense_conv output channels are the rows of a tile
and positions its columns, x comes along lines or as columns, and a step has 64 of K.  The weight is 9/16 of
its dense bytes (see sparse_tiles), and one instruction does what two of the dense kernel do for the same
registers of x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda.builder import Array, Kernel, device_function
from sparsec.targets.cuda.expressions import extra_pointers
from sparsec.targets.cuda.parts import conv_lines, conv_plans, conv_tiles, sparse_tiles
from sparsec.targets.cuda.parts.conv_lines import Operand
from sparsec.targets.cuda.parts.conv_plans import geometry_of, inner_of, row_of_positions, vector_of
from sparsec.targets.cuda.parts.conv_tiles import Tile
from sparsec.targets.cuda.parts.linear_tiles import mma_rate
from sparsec.targets.cuda.parts.mma_epilogue import deliver
from sparsec.targets.cuda.parts.mma_tiles import Staged, Tiling, copier, pipeline, warp_place, zeros
from sparsec.targets.cuda.parts.sparse_tiles import TILE, DeepFragments, PackedTiles
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "nm_conv"
format = "nm"

#: tiles of output channels x positions
TILINGS = (
    Tiling(128, 128, TILE, 2, 2, 3), Tiling(128, 64, TILE, 2, 2, 3), Tiling(64, 128, TILE, 2, 2, 3),
    Tiling(64, 64, TILE, 2, 2, 4), Tiling(64, 32, TILE, 2, 2, 4),
)  # fmt: skip
#: how many dense operations' time a sparse instruction saves, counting what feeds it
_DOUBLED = 1.6


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Ungrouped convolutions of halves, two of four inputs at most, that padding leaves smaller."""
    fit = pattern.nm_fit(4)
    if problem.conv is None or problem.conv.groups > 1 or problem.dtype == "float32":
        return False
    return fit is not None and fit.n <= 2 and any(True for _ in configurations(problem))


def configurations(problem: Problem) -> Iterator[dict[str, int]]:
    """Every tile and way of x whose packed weight is no larger than the dense one."""
    for t in TILINGS:
        config = {"rows": t.rows, "positions": t.columns, "depth": TILE}
        stage = t.rows // TILE * (2 * sparse_tiles.VALUES + 4 * sparse_tiles.WORDS)
        # along lines, four neighbours must be channels of one tap
        lines = geometry_of(problem).channels % 4 == 0 and conv_plans.line_fits(
            problem, config, stage * t.stages
        )
        for line in range(2 if lines else 1):
            found = {**config, "line": line}
            if _nbytes(problem, found) <= 2 * problem.rows * problem.inner:
                yield found


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that are predicted best."""
    return conv_plans.ranked(
        problem, configurations(problem), lambda one, config: predict(one, pattern, config, target)
    )


def _tiling(config: Mapping[str, int]) -> Tiling:
    return next(t for t in TILINGS if (t.rows, t.columns) == (config["rows"], config["positions"]))


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch."""
    tiling = _tiling(config)
    rate = _DOUBLED * mma_rate(target, tiling.warp_rows, tiling.warp_columns)
    weights = nbytes(problem, pattern, config, target)
    return conv_plans.cycles(problem, config, target, rate, weights, share=9 / 16)


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Half the weights and two bits for each of those, and the zeros that fill tiles."""
    return _nbytes(problem, config)


def _nbytes(problem: Problem, config: Mapping[str, int]) -> int:
    return sparse_tiles.nbytes(problem.rows, inner_of(problem, config), config["rows"])


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """See :mod:`sparsec.targets.cuda.parts.sparse_tiles`; and each tap's place on the line."""
    (steps,) = conv_plans.in_steps(weight, problem, config)
    arrays = {**sparse_tiles.pack(steps, config["rows"]), **conv_plans.taps_of(problem, config)}
    return Packing(arrays, 0, tuple(sorted(config.items())))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A block for each tile."""
    return conv_tiles.grid(problem, dict(packing.config), sizes, columns)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    config, dtype = dict(packing.config), problem.dtype
    tiling, deep = _tiling(config), inner_of(problem, config) // TILE

    def body(k: Kernel) -> None:
        if config["line"]:
            line = conv_plans.line_of(problem, config)
            conv_lines.body(k, problem, tiling, line, lambda *held: _operand(k, tiling, deep, *held))
        else:
            _columns(k, problem, tiling, deep)

    taps = [("taps", "int32")] if conv_plans.has_taps(problem, config) else []
    pointers = [
        ("x", dtype), ("values", dtype), ("positions", "uint32"), *taps, *extra_pointers(problem),
        ("y", dtype),
    ]  # fmt: skip
    return device_function(name, tiling.threads, pointers, conv_tiles.run_time_sizes(problem), body)


def _columns(k: Kernel, problem: Problem, tiling: Tiling, deep: int) -> None:
    """x as columns."""
    tile = conv_tiles.tile_of(k, problem, tiling.rows, tiling.columns)
    w, copy_w = _weights(k, tiling, deep, tile, problem.dtype)
    x = Staged(k, TILE, tiling.columns, tiling.stages, problem.dtype)
    copy_x = copier(k, x, conv_tiles.pixels(k, problem, tile, TILE), row_of_positions(problem))
    accumulators = zeros(k, tiling)
    multiply = sparse_tiles.multiplier(k, tiling, w, (x, True), accumulators)

    def fetch(stage: Any, step: Any) -> None:
        copy_w(stage, step)
        copy_x(stage, step)

    pipeline(k, tiling.stages, deep, fetch, multiply)
    store = conv_tiles.store_positions(k, problem, tile)
    deliver(k, tiling, accumulators, store, vector_of(problem))


def _weights(k: Kernel, tiling: Tiling, deep: int, tile: Tile, dtype: str) -> tuple[PackedTiles, Any]:
    """The block's rows of the weight, and what copies a step of them."""
    from sparsec.targets.cuda.builder import int64

    w = PackedTiles(k, tiling, dtype)
    return w, w.copier(k, k["values"], k["positions"], k.bind(int64(tile.line // TILE)), deep)


class _Shifted(DeepFragments):
    """Fragments of B whose lines are pixels, some distance on from the warp's own."""

    def __init__(self, k: Kernel, staged: Staged, first: Any, slabs: int) -> None:
        super().__init__(k, staged, first, slabs)
        self._line, self._chunk = k.bind(first + k.lane % 8), k.bind(k.lane // 8)

    def shift(self, base: Any, distance: Any) -> None:
        """As conv_lines.Shifted."""
        k, line = self._k, self._k.bind(self._line + distance)
        self._starts = [k.bind(base + self._staged.place(line, 4 * i + self._chunk)) for i in range(2)]

    def load(self, base: Any, part: int, turn: int) -> None:
        """As for DeepFragments; the buffer is that of ``shift``."""
        super().load(0, part, turn)


def _operand(
    k: Kernel, tiling: Tiling, deep: int, tile: Tile, pixels: Staged, accumulators: Array
) -> Operand:
    w, copy = _weights(k, tiling, deep, tile, pixels.array.dtype)
    right = _Shifted(k, pixels, warp_place(k, tiling)[1], tiling.warp_columns // 8)
    multiply = sparse_tiles.multiplier(k, tiling, w, (pixels, False), accumulators, right)
    return Operand(copy, right.shift, multiply)

"""nm_spmm: 2:4 weights times tokens on the sparse tensor cores.

At most two of every four neighbouring inputs of an output feature are not zero.  ``mma.sp`` takes such rows
as its operand A, so the block's tile has output features as rows and tokens as columns.  Rows are dealt out
to threads so that each makes four neighbouring features of a token, and eight threads 64 bytes
(``mma_epilogue.row_order``). The weight is 9/16 of its dense bytes
(:mod:`sparsec.targets.cuda.parts.sparse_tiles`).

A step of 64 inputs reads, for 256 features and 128 tokens, 18 KB of weights and 16 KB of x, and does 4.2
million operations (zeros counted): 123 for each byte from L2, where the dense kernel's 128 x 128 have 64 at
half the rate.  A warp of 64 x 64 reads 12 times 512 bytes of shared memory for 32 instructions of 8192
operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda.builder import Kernel, device_function
from sparsec.targets.cuda.expressions import extra_pointers
from sparsec.targets.cuda.parts import sparse_tiles, warpgroup_tiles
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
from sparsec.targets.cuda.parts.mma_epilogue import PAIR, deliver_rows, row_order
from sparsec.targets.cuda.parts.mma_tiles import Staged, Tiling, copier, matrix, pipeline, zeros
from sparsec.targets.cuda.parts.sparse_tiles import TILE, PackedTiles
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "nm_spmm"
format = "nm"

#: tiles of features x tokens by mma.sp
TILINGS = (
    Tiling(256, 128, TILE, 4, 2, 4), Tiling(128, 128, TILE, 2, 2, 3), Tiling(128, 64, TILE, 2, 2, 4),
    Tiling(64, 64, TILE, 2, 2, 4), Tiling(64, 32, TILE, 2, 2, 6), Tiling(64, 16, TILE, 2, 2, 8),
)  # fmt: skip
#: those of them that wgmma makes, where there is one; of all but the largest a multiprocessor holds two
#: blocks, so that one multiplies while the other begins or ends
GROUPED = (
    Tiling(256, 128, TILE, 8, 1, 5, True), Tiling(128, 128, TILE, 4, 1, 4, True),
    Tiling(128, 64, TILE, 4, 1, 5, True),
)  # fmt: skip
#: what of the operations of dense instructions their sparse ones really double, counting what feeds them
_DOUBLED = 1.6


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Layers of halves with at most two nonzeros in every aligned four inputs, where that saves bytes."""
    fit = pattern.nm_fit(4)
    if problem.conv is not None or problem.dtype == "float32" or fit is None or fit.n > 2:
        return False
    return bool(_smaller(problem))


def _smaller(problem: Problem) -> list[dict[str, int]]:
    """The tiles whose packed weight is no larger than the dense one."""
    dense = problem.rows * problem.inner * 2
    fitting = [t for t in TILINGS if sparse_tiles.nbytes(problem.rows, problem.inner, t.rows) <= dense]
    return [{"tokens": t.columns, "features": t.rows} for t in fitting]


def _tiling(config: Mapping[str, int], target: Target) -> Tiling:
    tilings = (*GROUPED, *TILINGS) if has_wgmma(target) else TILINGS
    return next(t for t in tilings if (t.rows, t.columns) == (config["features"], config["tokens"]))


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tiles that are predicted best."""
    return ranked(problem, _smaller(problem), lambda one, config: predict(one, pattern, config, target))


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch."""
    tiling = _tiling(config, target)
    return product_cycles(
        problem, target, tokens=tiling.columns, features=tiling.rows,
        rate=_DOUBLED * tile_rate(target, tiling),
        resident=resident_blocks(tiling.threads, tiling.accumulators),
        weight_bytes=nbytes(problem, pattern, config, target),
    )  # fmt: skip


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Half the weights and two bits for each of those, and the zeros that fill tiles."""
    return sparse_tiles.nbytes(problem.rows, problem.inner, config["features"])


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Tiles of ``sparse_tiles.pack``; every 32 rows are in the order of ``mma_epilogue.row_order``."""
    rows = -(-problem.rows // config["features"]) * config["features"]
    padded = np.zeros((rows, problem.inner), weight.dtype)
    padded[: problem.rows] = weight
    dealt = padded.reshape(-1, PAIR, problem.inner)[:, row_order()].reshape(rows, problem.inner)
    arrays = sparse_tiles.pack(dealt, config["features"])
    return Packing(arrays, 0, tuple(sorted(config.items())))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A block for each tile."""
    config = dict(packing.config)
    return blocks(problem, sizes, columns, config["tokens"], config["features"])


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    tiling = _tiling(dict(packing.config), target)
    dtype, deep = problem.dtype, -(-problem.inner // TILE)

    def body(k: Kernel) -> None:
        token, feature = block_tile(k, problem, tiling.columns, tiling.rows)
        x = Staged(k, tiling.columns, TILE, tiling.stages, dtype)
        w = PackedTiles(k, tiling, dtype)
        copy_w = w.copier(k, k["values"], k["positions"], k.bind(feature // TILE), deep)
        from_x = matrix(k, k["x"], problem.inner, token, TILE, tokens_of(k, problem), problem.inner)
        copy_x = copier(k, x, from_x, vector_of(problem.inner))
        accumulators = zeros(k, tiling)

        def fetch(stage: Any, step: Any) -> None:
            copy_w(stage, step)
            copy_x(stage, step)

        if tiling.grouped:
            issue = warpgroup_tiles.sparse_issuer(k, tiling, w, x, accumulators)
            warpgroup_tiles.pipeline(k, tiling.stages, deep, fetch, issue)
        else:
            multiply = sparse_tiles.multiplier(k, tiling, w, (x, False), accumulators)
            pipeline(k, tiling.stages, deep, fetch, multiply)
        # mma.sp leaves no registers for the reads that stores without checks would begin early
        tile = (tiling.columns, tiling.rows) if tiling.grouped else (0, 0)
        store = store_tokens(k, problem, token, feature, tile)
        deliver_rows(k, tiling, accumulators, store, vector_of(problem.rows, 4))

    pointers = [
        ("x", dtype), ("values", dtype), ("positions", "uint32"), *extra_pointers(problem), ("y", dtype),
    ]  # fmt: skip
    return device_function(name, tiling.threads, pointers, run_time_sizes(problem), body)

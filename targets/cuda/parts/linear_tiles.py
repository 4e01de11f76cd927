"""linear_tiles: what tiled kernels of linear layers share: which tile a block makes, its stores, its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparsec.ir.graph import replace
from sparsec.targets.cuda import cost, expressions, instructions
from sparsec.targets.cuda.builder import Kernel, int64, integer
from sparsec.targets.cuda.parts.mma_epilogue import Store, tile_of_block
from sparsec.targets.cuda.parts.mma_tiles import Tiling
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Problem, Target

#: bytes a cycle that a multiprocessor reads from shared memory
_SHARED_BYTES = 128
#: share of the tensor cores' peak rate that instructions reach: on Hopper only wgmma has all of it
_MMA_SHARE, _MMA_SHARE_HOPPER, _WGMMA_SHARE = 0.85, 0.6, 0.75
#: of the bytes that tiles read, the share that L2 must find: blocks that run at one time read the same
#: tiles, and an H100 reaches 600 to 660 Tflop/s with tiles of 128 x 256, for which all bytes would be more
#: than L2 has
FOUND_ONCE = 0.6
#: few and many tokens, to weigh tiles for a number that only the run tells
_FEW, _MANY = 32, 2048


def vector_of(length: int, most: int = 8) -> int:
    """The most neighbours (a power of two, up to ``most``) that lines of a length divide into."""
    return next(v for v in (8, 4, 2, 1) if v <= most and length % v == 0)


def run_time_sizes(problem: Problem) -> list[str]:
    """The kernel's sizes."""
    return [] if problem.columns is not None else ["tokens"]


def tokens_of(k: Kernel, problem: Problem) -> Any:
    """How many tokens there are, int64."""
    return k.sizes["tokens"] if problem.columns is None else integer(problem.columns)


def block_tile(k: Kernel, problem: Problem, tokens: int, features: int) -> tuple[Any, Any]:
    """The first token and output feature of the block's tile of ``tokens`` x ``features``, int64."""
    slow = T.cast((tokens_of(k, problem) + (tokens - 1)) // tokens, "int32")
    feature, token = tile_of_block(k, -(-problem.rows // features), slow)
    return k.bind(int64(token) * tokens), k.bind(int64(feature) * features)


def blocks(problem: Problem, sizes: Sizes, columns: int, tokens: int, features: int) -> int:
    """The expression of how many tiles there are; ``columns`` is that of tokens."""
    return sizes.multiply(sizes.of(-(-problem.rows // features)), sizes.ceil_divide(columns, tokens))


def store_tokens(
    k: Kernel, problem: Problem, token: Any, feature: Any, tile: tuple[int, int] = (0, 0)
) -> Store:
    """Store lines that are tokens, with the layer's epilogue (see ``mma_epilogue.deliver``).

    The tile's first token and feature are ``token`` and ``feature``; how many neighbours come together must
    divide both ``feature`` and the layer's output features.  ``tile``: its tokens and features, so that
    what always ends with a tile is not checked.
    """
    tokens = tokens_of(k, problem)
    checks_rows = problem.columns is None or not tile[0] or problem.columns % tile[0] > 0
    checks_columns = not tile[1] or problem.rows % tile[1] > 0

    def store(line: Any, first: Any, values: list[Any]) -> None:
        row, column = k.bind(token + int64(line)), k.bind(feature + int64(first))
        checks = [row < tokens] * checks_rows + [column < problem.rows] * checks_columns
        if not checks:
            _put(k, problem, row * problem.rows + column, column, values)
            return
        # what is past the end reads the first elements: without a branch the reads of many stores overlap
        valid = k.bind(tirx.all(*checks))
        at = k.bind(T.Select(valid, row * problem.rows + column, int64(0)))
        _put(k, problem, at, T.Select(valid, column, int64(0)), values, valid)

    return store


def _put(k: Kernel, problem: Problem, offset: Any, column: Any, values: list[Any], valid: Any = None) -> None:
    """Finish neighbours and store them, if ``valid``."""
    offset = k.bind(offset)
    finished = expressions.finish(k, problem, values, k.bind(column), offset)

    def write() -> None:
        if problem.dtype != "float32" or len(finished) != 4:
            expressions.store(k, k["y"], offset, finished)
            return
        quad = k.registers(4)
        for i, value in enumerate(finished):
            quad.put(i, value)
        k.call(instructions.store_quad, k["y"].pointer(offset), quad.pointer())

    if valid is None:
        write()
        return
    with k.when(valid):
        write()


def has_wgmma(target: Target) -> bool:
    """Whether code for a target may use Hopper's asynchronous matrix instructions."""
    return target.mcpu == "sm_90a"


def mma_rate(target: Target, high: int, wide: int) -> float:
    """Dense operations a cycle of a multiprocessor whose warps make ``high`` x ``wide`` elements by mma.sync.

    Each fragment that a warp reads from shared memory serves that warp only: small parts of tiles wait for
    it.
    """
    gpu = cost.gpu_of(target)
    share = _MMA_SHARE if gpu.tensor_flops < 4096 else _MMA_SHARE_HOPPER
    return min(gpu.tensor_flops * share, 0.8 * _SHARED_BYTES * high * wide / (high + wide))


def tile_rate(target: Target, tiling: Tiling) -> float:
    """Dense operations a cycle that a multiprocessor does in a kernel of such tiles."""
    if tiling.grouped:
        return cost.gpu_of(target).tensor_flops * _WGMMA_SHARE
    return mma_rate(target, tiling.warp_rows, tiling.warp_columns)


def resident_blocks(threads: int, accumulators: int) -> int:
    """How many blocks' registers a multiprocessor holds: accumulators, and 90 for addresses and operands."""
    return max(1, 65536 // (threads * (accumulators + 90)))


def product_cycles(
    problem: Problem, target: Target, *, tokens: int, features: int, rate: float, resident: int,
    weight_bytes: float,
) -> float:  # fmt: skip
    """Predicted cycles of a product made tile by tile.

    Args:
        problem: the layer.
        target: whose GPU.
        tokens: of a tile.
        features: of a tile.
        rate: operations a cycle of a multiprocessor, counted as if dense.
        resident: blocks that a multiprocessor holds.
        weight_bytes: bytes of the packed weight.
    """
    columns, item = cost.columns_of(problem), cost.item_bytes(problem)
    down, across = -(-columns // tokens), -(-problem.rows // features)
    full = sum(extra == "full" for extra in problem.extras)
    moved = (columns * (problem.inner + problem.rows * (1 + full))) * item + weight_bytes
    return cost.kernel_cycles(
        target,
        operations=2.0 * down * tokens * across * features * problem.inner,
        rate=rate, blocks=down * across,
        # few blocks have a multiprocessor each
        resident=min(resident, -(-down * across // cost.gpu_of(target).multiprocessors)), memory_bytes=moved,
        l2_bytes=FOUND_ONCE * down * (across * tokens * problem.inner * item + weight_bytes),
    )  # fmt: skip


def ranked(
    problem: Problem, configurations: Sequence[dict[str, int]],
    predict: Callable[[Problem, dict[str, int]], float], most: int = 4,
) -> tuple[dict[str, int], ...]:  # fmt: skip
    """The best-predicted configurations, best first.

    Where only the run tells how many tokens there are, few and many count alike.  Of equals, the last:
    tiles are listed from large to small.
    """
    counts = [problem.columns] if problem.columns is not None else [_FEW, _MANY]

    def worth(config: dict[str, int]) -> float:
        product = 1.0
        for count in counts:
            product *= predict(replace(problem, columns=count), config)
        return product

    order = sorted(range(len(configurations)), key=lambda i: (worth(configurations[i]), -i))
    return tuple(configurations[i] for i in order[:most])

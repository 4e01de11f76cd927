"""bsr_spmm on CUDA: block sizes, tiles, dtypes and ragged shapes against float64, its packing, its code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_layers import check_layer, layer, run_layer
from sass import TARGETS, needs_sass, sass

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import bsr_spmm, dense_gemm
from sparsec.targets.cuda.kernels.bsr_spmm import BLOCKS, TILES
from sparsec.targets.cuda.parts.block_steps import DEPTH, MOST_BLOCKS, Shape, grouped
from sparsec.targets.cuda.parts.operand_order import as_first, as_second
from sparsec.targets.target import Packing, Problem, Target


def blocks(rows: int, inner: int, size: tuple[int, int], density: float, seed: int = 0) -> Any:
    """Random blocks on a grid, whole ones only where the grid ends."""
    rng = np.random.default_rng([seed, rows, inner, *size])
    grid = rng.random((-(-rows // size[0]), -(-inner // size[1]))) < density
    return np.kron(grid, np.ones(size))[:rows, :inner] * rng.standard_normal((rows, inner))


def configuration(block: tuple[int, int], tile: tuple[int, int, int, int]) -> dict[str, int]:
    features, tokens, warps, stages = tile
    return {
        "block_rows": block[0], "block_columns": block[1], "together": features // block[0], "tokens": tokens,
        "warps": warps, "stages": stages,
    }  # fmt: skip


SMALL = configuration((32, 32), (64, 64, 4, 6))


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t[0]}x{t[1]}")
def test_every_tile(tile: tuple[int, int, int, int]) -> None:
    # groups of block rows that are not full, a tile of tokens that is not, and K that ends within a step
    weight = blocks(tile[0] + 40, 200, (32, 32), 0.3)
    one = layer(weight, tile[1] + 13, "float16", "bias_gelu_residual")
    check_layer(bsr_spmm, one, configuration((32, 32), tile))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b[0]}x{b[1]}")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_block_size(block: tuple[int, int], dtype: str) -> None:
    one = layer(blocks(200, 136, block, 0.3), 70, dtype, "bias_relu", run_time=True)
    check_layer(bsr_spmm, one, configuration(block, (64, 64, 4, 3)))


def test_all_32_blocks_that_a_step_may_have() -> None:
    # the mask's highest bit too, and steps in which only the last block is there
    weight = blocks(256, 160, (16, 16), 0.6)
    weight[:240, 64:96] = 0
    config = configuration((16, 16), (256, 128, 8, 5))
    assert Shape.of(config).parts * config["together"] == MOST_BLOCKS
    masks = bsr_spmm.pack(
        weight.astype(np.float16), Problem(256, 160, 9, 0, dtype="float16"), config, gpus.SM80
    )
    assert (masks.arrays["steps"][:, 1] < 0).any()
    check_layer(bsr_spmm, layer(weight, 9, "float16"), config)


@pytest.mark.parametrize("epilogue", ["none", "bias_relu", "bias_gelu_residual", "scale"])
@pytest.mark.parametrize(
    ("tokens", "rows", "inner"), [(1, 97, 131), (3, 100, 34), (33, 70, 100), (5, 36, 67)]
)
def test_any_shape(epilogue: str, tokens: int, rows: int, inner: int) -> None:
    weight = blocks(rows, inner, (32, 32), 0.4, seed=tokens)
    weight[:32, :32] = 1
    weight[32:64] = 0
    check_layer(bsr_spmm, layer(weight, tokens, "float16", epilogue), SMALL)


def test_rows_without_blocks_and_weights_of_zeros_give_the_bias() -> None:
    one = layer(np.zeros((80, 64)), 9, "float16", "bias_relu")
    made = run_layer(bsr_spmm, one, SMALL)
    np.testing.assert_array_equal(made, np.broadcast_to(np.maximum(one.extras[0], 0), made.shape))


def test_dense_weights_are_right_too() -> None:
    one = layer(np.random.default_rng(4).standard_normal((72, 70)), 11, "bfloat16")
    exact, allowed = one.exact
    assert np.all(np.abs(run_layer(bsr_spmm, one, SMALL).astype(np.float64) - exact) <= allowed)


def test_packing_stores_each_block_once_and_nothing_else() -> None:
    weight = blocks(300, 500, (32, 32), 0.15).astype(np.float16)
    packing = bsr_spmm.pack(weight, Problem(300, 500, 8, 0, dtype="float16"), SMALL, gpus.SM80)
    fit = infer(weight).block_fit(32, 32)
    assert fit
    assert packing.arrays["values"].size == fit.stored * 32 * 32
    np.testing.assert_array_equal(
        np.sort(packing.arrays["values"][packing.arrays["values"] != 0]), np.sort(weight[weight != 0])
    )
    assert packing.nbytes <= bsr_spmm.nbytes(
        Problem(300, 500, 8, 0, dtype="float16"), infer(weight), SMALL, gpus.SM80
    )
    steps, starts = packing.arrays["steps"], packing.arrays["starts"]
    assert steps[:-1, 3].sum() == fit.stored * 4 and starts[-1] == len(steps) - 1
    assert sorted(packing.arrays["rows"]) == [32 * i for i in range(10)]


def test_packing_does_not_depend_on_the_gpu() -> None:
    weight = blocks(100, 100, (16, 16), 0.3).astype(np.float16)
    problem = Problem(100, 100, 8, 0, dtype="float16")
    first, second = (bsr_spmm.pack(weight, problem, SMALL, target) for target in TARGETS)
    assert first.config == second.config
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])


def test_block_rows_of_larger_blocks_share_all_their_steps() -> None:
    # blocks of 64 x 64 stored as 32 x 32, the order of rows of blocks shuffled
    weight = blocks(1024, 1024, (64, 64), 0.1)
    steps = len(np.argwhere(weight.reshape(16, 64, 32, 32).any(axis=(1, 3))))
    shuffled = weight.reshape(32, 32, 1024)[np.random.default_rng(1).permutation(32)].reshape(1024, 1024)
    packing = bsr_spmm.pack(shuffled, Problem(1024, 1024, 8, 0, dtype="float16"), SMALL, gpus.SM80)
    assert len(packing.arrays["steps"]) - 1 == steps


def test_groups_share_more_than_neighbours_do_and_the_longest_come_first() -> None:
    slabs = np.random.default_rng(2).random((64, 128)) < 0.1
    order = grouped(slabs, 4)
    assert sorted(order.reshape(-1)) == list(range(64))
    together = slabs[order].any(axis=1).sum(axis=1)
    assert list(together) == sorted(together, reverse=True)
    assert together.sum() < 0.9 * slabs.reshape(16, 4, 128).any(axis=1).sum()


def test_operand_orders_are_what_ldmatrix_would_load() -> None:
    tile = np.arange(256).reshape(1, 16, 16)
    lane = np.arange(32)
    group, quad = lane // 4, lane % 4
    for half in range(2):
        for register, (row, column) in enumerate([(0, 0), (8, 0), (0, 8), (8, 8)]):
            expected = (group + row) * 16 + 2 * quad + column + half
            np.testing.assert_array_equal(as_first(tile)[0, :, 2 * register + half], expected)
        for register, (row, column) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
            expected = (group + row) * 16 + 2 * quad + column + half
            np.testing.assert_array_equal(as_second(tile)[0, :, 2 * register + half], expected)


@pytest.mark.parametrize(
    ("size", "density", "accepted"),
    [
        ((32, 32), 0.3, True),
        ((16, 16), 0.3, True),
        ((1, 1), 0.1, False),
        ((32, 32), 0.95, False),
        ((4, 4), 0.005, True),
    ],
)
def test_accepts_what_blocks_leave_out(size: tuple[int, int], density: float, accepted: bool) -> None:
    pattern = infer(blocks(256, 256, size, density))
    assert bsr_spmm.accepts(Problem(256, 256, 8, 0, dtype="float16"), pattern, gpus.SM80) is accepted
    assert not bsr_spmm.accepts(Problem(256, 256, 8, 0), pattern, gpus.SM80)


def predicted(kernel: Any, problem: Problem, pattern: Any, target: Target) -> float:
    return min(kernel.predict(problem, pattern, c, target) for c in kernel.space(problem, pattern, target))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
@pytest.mark.parametrize("tokens", [4096, 256, 16])
def test_predictions_rank_densities(target: Any, tokens: int) -> None:
    problem = Problem(2048, 2048, tokens, 0, dtype="float16")
    patterns = [infer(blocks(2048, 2048, (32, 32), d)) for d in (0.1, 0.3, 0.7)]
    cycles = [predicted(bsr_spmm, problem, p, target) for p in patterns]
    assert cycles == sorted(cycles)
    assert cycles[0] < 0.6 * predicted(dense_gemm, problem, patterns[0], target)


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
@pytest.mark.parametrize(
    ("tile", "registers"), [(TILES[0], 200), (TILES[1], 200), (TILES[2], 128), (TILES[3], 200)],
    ids=lambda t: f"{t[0]}x{t[1]}" if isinstance(t, tuple) else "",
)  # fmt: skip
def test_code(target: Any, tile: tuple[int, int, int, int], registers: int) -> None:
    config = {**configuration((32, 32), tile), "groups": 7}
    problem = Problem(1024, 1024, None, 0, dtype="float16")
    function = bsr_spmm.emit(problem, Packing({}, 0, tuple(sorted(config.items()))), target, "blocks")
    code = sass(function, target)
    assert code.local_accesses == 0
    # two thread blocks of 64 x 256 must fit a multiprocessor, or one of 256 threads
    assert code.registers <= registers
    multiplies = config["together"] * 32 * DEPTH // 128 * (tile[1] // tile[2] // 16)
    assert code.count(r"HMMA\.16816\.F32") == multiplies
    assert code.count("LDSM") == 2 * (tile[1] // tile[2] // 16)
    assert code.count(r"LDS\.128") >= config["together"] * 4
    assert code.count(r"LDGSTS\.E\.BYPASS\.128") > 0
    assert code.count(r"LDG\.E\.128") >= 1 and code.count(r"STG\.E\.128") >= 1
    assert code.count(r"STG\.E(\.U16)?$") == 0

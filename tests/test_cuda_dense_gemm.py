"""dense_gemm on CUDA: every tile, dtype and ragged shape against float64, and what it compiles to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_layers import check_layer, layer
from sass import TARGETS, needs_sass, sass

from sparsec.sparsity.pattern import Pattern, infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import dense_gemm
from sparsec.targets.cuda.kernels.dense_gemm import FLOAT_TILINGS, GROUPED, TILINGS
from sparsec.targets.cuda.parts.mma_epilogue import column_order
from sparsec.targets.target import Packing, Problem

HALVES = [{"tokens": t.rows, "features": t.columns} for t in TILINGS]
BY_WGMMA = [{"tokens": t.rows, "features": t.columns} for t in GROUPED]
FLOATS = [{"tokens": t.rows, "features": t.columns} for t in FLOAT_TILINGS]


def weight(rows: int, inner: int) -> Any:
    return np.random.default_rng([rows, inner]).standard_normal((rows, inner))


def label(config: dict[str, int]) -> str:
    return f"{config['tokens']}x{config['features']}"


@pytest.mark.parametrize("config", HALVES, ids=label)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_tile_of_halves(config: dict[str, int], dtype: str) -> None:
    # more than one tile each way, the last one short, and K that ends within a step
    one = layer(weight(config["features"] + 24, 200), config["tokens"] + 13, dtype, "bias_gelu_residual")
    check_layer(dense_gemm, one, config)


@pytest.mark.parametrize("config", BY_WGMMA, ids=label)
@pytest.mark.parametrize(("dtype", "inner"), [("float16", 40), ("bfloat16", 300)])
def test_every_tile_of_wgmma(config: dict[str, int], dtype: str, inner: int) -> None:
    # one step only, and an odd number of them
    one = layer(weight(config["features"] + 24, inner), config["tokens"] + 13, dtype, "bias_gelu_residual")
    check_layer(dense_gemm, one, config, gpus.SM90A)


def test_whole_tiles_by_wgmma() -> None:
    check_layer(dense_gemm, layer(weight(128, 256), 128, "float16", "bias_relu"), BY_WGMMA[2], gpus.SM90A)


@pytest.mark.parametrize("config", FLOATS, ids=label)
def test_every_tile_of_floats(config: dict[str, int]) -> None:
    one = layer(weight(config["features"] + 20, 100), config["tokens"] + 7, "float32", "bias_gelu_residual")
    check_layer(dense_gemm, one, config)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("tokens", "rows", "inner"),
    [(1, 1, 1), (3, 17, 31), (33, 10, 2), (5, 6, 44), (16, 129, 127), (70, 4, 260)],
)
def test_any_shape(dtype: str, tokens: int, rows: int, inner: int) -> None:
    one = layer(weight(rows, inner), tokens, dtype, "bias_relu")
    pattern = infer(one.weight.astype(np.float32))
    for config in dense_gemm.space(one.problem, pattern, gpus.SM90A)[:2]:
        check_layer(dense_gemm, one, config)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("epilogue", ["none", "bias_relu", "bias_gelu_residual", "scale"])
def test_epilogues_and_run_time_tokens(dtype: str, epilogue: str) -> None:
    one = layer(weight(40, 48), 37, dtype, epilogue, run_time=True)
    config = {"tokens": 64, "features": 64}
    check_layer(dense_gemm, one, config)


def test_weights_of_zeros_give_the_bias() -> None:
    check_layer(dense_gemm, layer(np.zeros((24, 40)), 9, "float16", "bias_relu"), HALVES[-1])


def test_what_lies_past_the_tokens_is_not_multiplied() -> None:
    # one row only: whatever the tile's other rows hold, it must not reach y, nor be written
    one = layer(weight(16, 24), 1, "bfloat16")
    check_layer(dense_gemm, one, HALVES[0])


def test_packing_is_the_weight_and_zeros() -> None:
    problem = Problem(70, 130, 8, 0, dtype="float16")
    matrix = weight(70, 130).astype(np.float16)
    packing = dense_gemm.pack(matrix, problem, HALVES[3], gpus.SM80)
    dealt = packing.arrays["values"].reshape(-1, 32, 256)
    values = np.full_like(dealt, np.nan)
    values[:, column_order(32)] = dealt
    values = values.reshape(128, 256)
    np.testing.assert_array_equal(values[:70, :130], matrix)
    assert not values[70:].any() and not values[:, 130:].any()
    assert packing.nbytes == dense_gemm.nbytes(
        problem, Pattern((70, 130), (70, 130), "float16", 1), HALVES[3], gpus.SM80
    )


def test_packing_does_not_depend_on_the_gpu() -> None:
    problem = Problem(70, 130, 8, 0, dtype="float32")
    matrix = weight(70, 130).astype(np.float32)
    first, second = (dense_gemm.pack(matrix, problem, FLOATS[1], target) for target in TARGETS)
    np.testing.assert_array_equal(first.arrays["values"], second.arrays["values"])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_many_tokens_take_the_largest_tile_and_few_a_narrow_one(target: Any) -> None:
    pattern = infer(np.ones((64, 64), np.float32))
    chosen = [
        dense_gemm.space(Problem(4096, 4096, n, 0, dtype="float16"), pattern, target)[0] for n in (4096, 16)
    ]
    assert chosen[0]["tokens"] >= 128 and chosen[0]["features"] >= 128
    assert chosen[1]["tokens"] == 16


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_predictions_grow_with_the_work(target: Any) -> None:
    pattern = infer(np.ones((64, 64), np.float32))

    def cycles(tokens: int, rows: int) -> float:
        problem = Problem(rows, 1024, tokens, 0, dtype="float16")
        config = dense_gemm.space(problem, pattern, target)[0]
        return dense_gemm.predict(problem, pattern, config, target)

    assert cycles(1024, 4096) > 2 * cycles(128, 1024)
    # no faster than the tensor cores are
    gpu = target.gpu
    assert cycles(4096, 4096) > 2 * 4096 * 4096 * 1024 / (gpu.tensor_flops * gpu.multiprocessors)


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_code_of_the_large_tile(target: Any) -> None:
    problem = Problem(1024, 1024, None, 0, dtype="float16")
    function = dense_gemm.emit(problem, Packing({}, 0, tuple(sorted(HALVES[0].items()))), target, "dense")
    code = sass(function, target)
    assert code.local_accesses == 0
    # 128 accumulators a thread
    assert code.registers <= 232
    assert code.count(r"HGMMA\.64" if target is gpus.SM90A else r"HMMA\.16816\.F32") >= 8
    assert code.count(r"LDGSTS\.E(\.BYPASS)?\.128") >= 16
    assert code.count("STG") == code.count(r"STG\.E\.128") == 16


@needs_sass
def test_code_of_floats() -> None:
    problem = Problem(1024, 1024, None, 0)
    function = dense_gemm.emit(problem, Packing({}, 0, tuple(sorted(FLOATS[0].items()))), gpus.SM80, "dense")
    code = sass(function, gpus.SM80)
    assert code.local_accesses == 0
    assert code.registers <= 168
    # 8 x 8 elements by 16 of K a step, four reads of 16 bytes for 64 multiply-adds
    assert code.count("FFMA") == 1024
    assert code.count(r"LDS\.128") <= 64
    assert code.count(r"STG\.E\.128") == 16

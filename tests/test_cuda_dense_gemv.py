"""dense_gemv on CUDA: columns, dtypes and ragged shapes against float64, and what it compiles to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_layers import check_layer, layer
from sass import TARGETS, needs_sass, sass
from sparse_weights import facts, layer_of

from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import dense_gemm, dense_gemv
from sparsec.targets.target import Packing

SHAPES = ({"octets": 1, "high": 1, "deep": 8}, {"octets": 2, "high": 2, "deep": 4})
FLOATS = {"octets": 0, "high": 1, "deep": 8}


def weight(rows: int, inner: int) -> Any:
    return np.random.default_rng([rows, inner]).standard_normal((rows, inner))


@pytest.mark.parametrize("config", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("columns", "epilogue"), [(1, "none"), (8, "bias_relu"), (11, "bias_gelu_residual")])
def test_halves(config: dict[str, int], dtype: str, columns: int, epilogue: str) -> None:
    # rows that end within a block, K within a warp's step; some warps have nothing to do
    check_layer(dense_gemv, layer(weight(41, 264), columns, dtype, epilogue), config)


@pytest.mark.parametrize(("columns", "epilogue"), [(1, "scale"), (3, "bias_gelu_residual"), (16, "none")])
def test_floats(columns: int, epilogue: str) -> None:
    check_layer(dense_gemv, layer(weight(41, 1164), columns, "float32", epilogue), FLOATS)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_row_of_one_vector(dtype: str) -> None:
    inner = 8 if dtype == "float16" else 4
    config = SHAPES[0] if dtype == "float16" else FLOATS
    check_layer(dense_gemv, layer(weight(1, inner), 16, dtype), config)


def test_what_it_leaves_to_others() -> None:
    pattern = facts(64, 64, 1.0)
    assert not dense_gemv.accepts(layer_of(64, 64, None), pattern, gpus.SM90A)
    assert not dense_gemv.accepts(layer_of(64, 64, 17), pattern, gpus.SM90A)
    assert not dense_gemv.accepts(layer_of(64, 60, 1), pattern, gpus.SM90A)
    assert not dense_gemv.accepts(layer_of(64, 66, 1, "float32"), pattern, gpus.SM90A)
    assert dense_gemv.accepts(layer_of(64, 64, 16), pattern, gpus.SM90A)


@pytest.mark.parametrize("columns", [1, 4])
def test_few_columns_are_predicted_at_the_rate_of_memory(columns: int) -> None:
    problem, pattern = layer_of(8192, 28672, columns), facts(8192, 28672, 1.0)
    best, other = (
        min(
            kernel.predict(problem, pattern, c, gpus.SM90A)
            for c in kernel.space(problem, pattern, gpus.SM90A)
        )
        for kernel in (dense_gemv, dense_gemm)
    )
    gpu = gpus.SM90A.gpu
    assert gpu
    alone = 2.0 * 8192 * 28672 / gpu.dram_bytes
    assert alone < best < 1.3 * alone
    assert best < other


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("columns", [1, 16])
def test_code_of_halves(target: Any, columns: int) -> None:
    problem = layer_of(4096, 4096, columns)
    config = SHAPES[0] if columns == 1 else SHAPES[1]
    function = dense_gemv.emit(problem, Packing({}, 0, tuple(config.items())), target, "kernel")
    code = sass(function, target)
    assert code.count("HMMA.16816.F32") >= 8
    # weights pass L1 by; four loads of 128 bits for each octet
    assert code.count(r"LDG\.E(\.NA|.*\.128).*128") >= 4 * config["octets"]
    assert code.local_accesses == 0
    assert code.registers <= 128


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_code_of_floats(target: Any) -> None:
    problem = layer_of(4096, 4096, 4, "float32")
    function = dense_gemv.emit(problem, Packing({}, 0, tuple(FLOATS.items())), target, "kernel")
    code = sass(function, target)
    # four rows' weights and four columns, 128 bits each
    assert code.count(r"LDG\.E\.128") >= 8
    assert code.count("FFMA") >= 64
    assert code.local_accesses == 0

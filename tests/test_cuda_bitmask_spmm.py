"""bitmask_spmm on CUDA: tiles, dtypes and ragged shapes against float64, predictions and code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_layers import check_layer, layer
from sass import TARGETS, needs_sass, sass
from sparse_weights import facts, layer_of, unstructured

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import bitmask_gemv, bitmask_spmm, csr_spmm, dense_gemm, dense_gemv
from sparsec.targets.target import Packing


def shape(tokens: int, octets: int, high: int, deep: int) -> dict[str, int]:
    return {"tokens": tokens, "octets": octets, "high": high, "deep": deep}


SHAPES = (shape(16, 4, 1, 8), shape(16, 2, 2, 4), shape(32, 2, 2, 8), shape(64, 2, 4, 2), shape(128, 1, 2, 2))


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize(("dtype", "density"), [("float16", 0.5), ("bfloat16", 0.1)])
def test_every_tile(config: dict[str, int], dtype: str, density: float) -> None:
    # a second tile of tokens and of rows, both short; chunks that no warp, or not all warps, have
    one = layer(unstructured(74, 712, density), config["tokens"] + 5, dtype, "bias_gelu_residual")
    check_layer(bitmask_spmm, one, config)


@pytest.mark.parametrize(("tokens", "rows", "inner"), [(1, 1, 8), (3, 130, 16), (17, 9, 1160)])
def test_any_shape_that_is_aligned(tokens: int, rows: int, inner: int) -> None:
    one = layer(unstructured(rows, inner, 0.3), tokens, "float16", "bias_relu")
    for config in bitmask_spmm.space(one.problem, infer(one.weight.astype(np.float32)), gpus.SM80)[:2]:
        check_layer(bitmask_spmm, one, config)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_zero_and_all_dense_with_tokens_of_run_time(density: float) -> None:
    weight = np.random.default_rng(2).standard_normal((40, 264)) * density
    check_layer(bitmask_spmm, layer(weight, 21, "float16", "scale", run_time=True), SHAPES[1])


def test_stages_fit_the_smallest_shared_memory() -> None:
    problem, pattern = layer_of(256, 1024, 64), facts(256, 1024, 1.0)
    weight = np.ones((256, 1024), np.float16)
    for config in bitmask_spmm.space(problem, pattern, gpus.SM80):
        packing = bitmask_spmm.pack(weight, problem, config, gpus.SM80)
        function = bitmask_spmm.emit(problem, Packing({}, 0, packing.config), gpus.SM80, "kernel")
        assert int(function.attrs["sparsec_shared"]) <= gpus.SM80.l1


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_predicted_bytes(density: float) -> None:
    one = layer(unstructured(512, 1024, density), 16, "float16")
    pattern = infer(one.weight.astype(np.float32))
    predicted = bitmask_spmm.nbytes(one.problem, pattern, SHAPES[1], gpus.SM80)
    packed = bitmask_spmm.pack(one.weight, one.problem, SHAPES[1], gpus.SM80).nbytes
    assert packed == pytest.approx(predicted, rel=0.03)


def best(kernel: Any, columns: int, density: float) -> float:
    problem, pattern = layer_of(4096, 4096, columns), facts(4096, 4096, density)
    return min(
        kernel.predict(problem, pattern, config, gpus.SM90A)
        for config in kernel.space(problem, pattern, gpus.SM90A)
    )


def test_few_columns_gain_over_dense_and_many_lose() -> None:
    dense = min(best(dense_gemm, 16, 0.1), best(dense_gemv, 16, 0.1))
    assert 1.2 * best(bitmask_spmm, 16, 0.1) < dense
    assert 1.3 * best(bitmask_gemv, 16, 0.1) < dense
    # many tokens keep tensor cores busy with products, and there decoding only costs
    assert best(dense_gemm, 8192, 0.1) < best(bitmask_spmm, 8192, 0.1)


def test_decoding_gains_over_single_nonzeros_where_there_are_enough() -> None:
    assert 3 * best(bitmask_spmm, 256, 0.1) < best(csr_spmm, 256, 0.1)
    assert best(csr_spmm, 256, 0.001) < best(bitmask_spmm, 256, 0.001)


def test_what_it_leaves_to_others() -> None:
    pattern = facts(64, 64, 0.5)
    assert not bitmask_spmm.accepts(layer_of(64, 64, 64, "float32"), pattern, gpus.SM90A)
    assert not bitmask_spmm.accepts(layer_of(64, 60, 64), pattern, gpus.SM90A)
    assert bitmask_spmm.accepts(layer_of(64, 64, None), pattern, gpus.SM90A)


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("config", [SHAPES[0], SHAPES[3]], ids=lambda c: f"{c['tokens']} tokens")
def test_code(target: Any, config: dict[str, int]) -> None:
    learned = {**config, "pieces": 40 * config["octets"], "stages": 3}
    function = bitmask_spmm.emit(
        layer_of(4096, 4096, config["tokens"]), Packing({}, 0, tuple(learned.items())), target, "kernel"
    )
    code = sass(function, target)
    octets, slabs = config["octets"], config["tokens"] // 16
    # one step of 32 inputs: two tiles of each octet, by all slabs of tokens, two 128-bit loads of each
    assert 2 * octets * slabs <= code.count("HMMA.16816.F32") <= 4 * octets * slabs
    assert 2 * slabs <= code.count(r"LDS\.128") <= 4 * slabs
    assert 8 * octets <= code.count(r"LDS\.U16") <= 16 * octets
    assert code.count(r"LDGSTS.*128") >= 1
    assert code.local_accesses == 0
    assert code.registers <= 168

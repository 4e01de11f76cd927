"""csr_spmm on CUDA: tiles, dtypes and any shape against float64, its packing, predictions and code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_layers import check_layer, layer, run_layer
from sass import TARGETS, needs_sass, sass
from sparse_weights import facts, layer_of, unstructured

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import csr_spmm, dense_gemm
from sparsec.targets.target import Packing


def shape(lanes: int, visits: int, inner: int) -> dict[str, int]:
    return {"lanes": lanes, "visits": visits, "inner": inner}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("config", [shape(1, 4, 64), shape(2, 8, 96), shape(4, 4, 352)], ids=str)
def test_every_tile(config: dict[str, int], dtype: str) -> None:
    # second tiles that are short; rows of x at multiples of 16 bytes
    one = layer(unstructured(75, 328, 0.15), 32 * config["lanes"] + 3, dtype, "bias_gelu_residual")
    check_layer(csr_spmm, one, config)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_eight_tokens_a_lane(dtype: str) -> None:
    check_layer(csr_spmm, layer(unstructured(20, 136, 0.2), 259, dtype, "bias_relu"), shape(8, 4, 64))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("tokens", "rows", "inner", "density"),
    [(1, 1, 1, 1.0), (2, 31, 17, 0.5), (37, 10, 333, 0.1), (70, 4, 131, 0.02), (5, 3, 7, 0.0)],
)
def test_any_shape(dtype: str, tokens: int, rows: int, inner: int, density: float) -> None:
    one = layer(unstructured(rows, inner, density), tokens, dtype, "bias_relu")
    pattern = infer(one.weight.astype(np.float32))
    for config in csr_spmm.space(one.problem, pattern, gpus.SM90A)[:2]:
        check_layer(csr_spmm, one, config)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tokens_of_run_time(dtype: str) -> None:
    check_layer(
        csr_spmm, layer(unstructured(40, 64, 0.3), 45, dtype, "scale", run_time=True), shape(1, 4, 32)
    )


def test_zeros_are_not_multiplied() -> None:
    """What fills up a visit's last four is no product with x, whatever x is."""
    weight = unstructured(3, 64, 0.3)
    unused = np.arange(64) % 3 == 0
    weight[:, unused] = 0
    one = layer(weight, 3, "float32")
    one.x[:, unused] = np.inf
    made = run_layer(csr_spmm, one, shape(1, 4, 32))
    exact = one.x[:, ~unused].astype(np.float64) @ one.weight[:, ~unused].T.astype(np.float64)
    np.testing.assert_allclose(made, exact, rtol=1e-5, atol=1e-5)


def test_visits_hold_the_weight_and_share_out_rows() -> None:
    weight = unstructured(70, 200, 0.1).astype(np.float16)
    config = shape(1, 4, 64)
    arrays = csr_spmm.pack(weight, layer_of(70, 200, 8), config, gpus.SM80).arrays
    values, places = arrays["values"].reshape(-1, 4), arrays["places"].reshape(-1, 4)
    found = np.zeros((70, 257), np.float16)
    for row, slot in enumerate(arrays["slots"]):
        for block in range(4):
            visit = (row // 32 * 4 + block) * 32 + slot
            fours = slice(*arrays["starts"][visit : visit + 2])
            inside = places[fours] < 64
            found[row, block * 64 + places[fours][inside]] = values[fours][inside]
            assert not values[fours][~inside].any()
    np.testing.assert_array_equal(found[:, :200], weight)
    for group in range(3):
        slots = arrays["slots"][group * 32 : group * 32 + 32].astype(int)
        assert len(set(slots)) == len(slots)
        lengths = (weight[group * 32 : group * 32 + 32] != 0).sum(axis=1)
        loads = np.bincount(slots // 4, weights=lengths, minlength=8)
        assert loads.max() - loads.min() <= lengths.max()


def test_predicted_bytes() -> None:
    one = layer(unstructured(512, 1024, 0.1), 64, "float32")
    pattern = infer(one.weight.astype(np.float32))
    for config in csr_spmm.space(one.problem, pattern, gpus.SM80):
        predicted = csr_spmm.nbytes(one.problem, pattern, config, gpus.SM80)
        packed = csr_spmm.pack(one.weight, one.problem, config, gpus.SM80).nbytes
        assert packed == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize(("density", "wins"), [(0.1, True), (1.0, False)])
def test_ranked_against_dense(density: float, wins: bool) -> None:
    problem, pattern = layer_of(4096, 4096, 256, "float32"), facts(4096, 4096, density, "float32")
    sparse, dense = (
        min(
            kernel.predict(problem, pattern, c, gpus.SM90A)
            for c in kernel.space(problem, pattern, gpus.SM90A)
        )
        for kernel in (csr_spmm, dense_gemm)
    )
    assert (sparse < dense) == wins


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("density", [0.001, 0.1, 1.0])
def test_shared_memory_fits_and_two_blocks_do(dtype: str, density: float) -> None:
    problem, pattern = layer_of(4096, 4096, 256, dtype), facts(4096, 4096, density, dtype)
    for config in csr_spmm.space(problem, pattern, gpus.SM80):
        function = csr_spmm.emit(problem, Packing({}, 0, tuple(config.items())), gpus.SM80, "kernel")
        assert int(function.attrs["sparsec_shared"]) <= gpus.SM80.l1


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("dtype", "lanes", "reads"), [("float32", 4, r"LDS\.128"), ("float16", 4, r"LDS\.64")]
)
def test_code(target: Any, dtype: str, lanes: int, reads: str) -> None:
    problem, config = layer_of(4096, 4096, 256, dtype), shape(lanes, 8, 128)
    function = csr_spmm.emit(problem, Packing({}, 0, tuple(config.items())), target, "kernel")
    code = sass(function, target)
    # four nonzeros at least: their tokens read as vectors, a multiply-add each, no more registers than
    # two blocks of 256 threads have room for
    assert code.count(reads) >= 4
    assert code.count("FFMA") >= 4 * lanes
    assert code.count(r"LDG\.E\.128") >= 1
    assert code.local_accesses == 0
    assert code.registers <= 128

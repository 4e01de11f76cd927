"""nm_spmm on CUDA: 2:4 weights on the sparse tensor cores against float64, and what it compiles to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_layers import check_layer, layer
from sass import TARGETS, needs_sass, sass

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.interpreter import fragments
from sparsec.targets.cuda.kernels import dense_gemm, nm_spmm
from sparsec.targets.cuda.kernels.nm_spmm import GROUPED, TILINGS
from sparsec.targets.cuda.parts import sparse_tiles
from sparsec.targets.target import Packing, Problem

CONFIGS = [{"tokens": t.columns, "features": t.rows} for t in TILINGS]
BY_WGMMA = [{"tokens": t.columns, "features": t.rows} for t in GROUPED]


def two_of_four(rows: int, inner: int, seed: int = 0) -> Any:
    """Random: 0, 1 or 2 nonzeros in each group of four, anywhere in it."""
    rng = np.random.default_rng([rows, inner, seed])
    padded = rng.standard_normal((rows, -(-inner // 4), 4))
    rank = np.argsort(np.argsort(rng.random(padded.shape), axis=2), axis=2)
    padded[rank >= rng.choice(3, size=(*padded.shape[:2], 1), p=[0.1, 0.2, 0.7])] = 0
    return padded.reshape(rows, -1)[:, :inner]


def label(config: dict[str, int]) -> str:
    return f"{config['features']}x{config['tokens']}"


@pytest.mark.parametrize("config", CONFIGS, ids=label)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_tile(config: dict[str, int], dtype: str) -> None:
    one = layer(
        two_of_four(2 * config["features"] - 16, 248), config["tokens"] + 11, dtype, "bias_gelu_residual"
    )
    check_layer(nm_spmm, one, config)


@pytest.mark.parametrize("config", BY_WGMMA, ids=label)
@pytest.mark.parametrize(("dtype", "inner"), [("float16", 64), ("bfloat16", 376)])
def test_every_tile_of_wgmma(config: dict[str, int], dtype: str, inner: int) -> None:
    # a single step, and six: turns of registers in pairs
    weight = two_of_four(2 * config["features"] - 16, inner)
    one = layer(weight, config["tokens"] + 11, dtype, "bias_gelu_residual")
    check_layer(nm_spmm, one, config, gpus.SM90A)


def test_whole_tiles_and_an_odd_number_of_steps_by_wgmma() -> None:
    one = layer(two_of_four(256, 320), 128, "float16", "bias_relu")
    check_layer(nm_spmm, one, {"tokens": 64, "features": 128}, gpus.SM90A)


def test_one_packing_serves_both_instructions() -> None:
    assert set(map(label, BY_WGMMA)) <= set(map(label, CONFIGS))
    problem = Problem(256, 128, 64, 0, dtype="float16")
    weight = two_of_four(256, 128).astype(np.float16)
    first, second = (nm_spmm.pack(weight, problem, BY_WGMMA[0], target).arrays for target in TARGETS)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


@pytest.mark.parametrize(
    ("tokens", "rows", "inner"), [(1, 64, 64), (3, 125, 190), (33, 122, 252), (70, 131, 191)]
)
def test_any_shape(tokens: int, rows: int, inner: int) -> None:
    # rows of x that no 16 bytes divide, features that no two halves do, a last group cut short
    one = layer(two_of_four(rows, inner), tokens, "bfloat16", "bias_relu")
    for config in (CONFIGS[-1], CONFIGS[-3]):
        check_layer(nm_spmm, one, config)


@pytest.mark.parametrize("epilogue", ["none", "bias_relu", "bias_gelu_residual", "scale"])
def test_epilogues_and_run_time_tokens(epilogue: str) -> None:
    check_layer(nm_spmm, layer(two_of_four(72, 64), 41, "float16", epilogue, run_time=True), CONFIGS[3])


def test_rows_of_zeros_and_one_of_four() -> None:
    weight = two_of_four(128, 128)
    weight[5:70] = 0
    weight[:, 1::2] = 0
    check_layer(nm_spmm, layer(weight, 20, "float16", "bias_relu"), CONFIGS[4])


def test_each_position_of_a_group_is_told_apart() -> None:
    # one nonzero in every row, each at another place of K
    weight = np.zeros((128, 128))
    weight[np.arange(128), np.arange(128)] = np.arange(1, 129)
    check_layer(nm_spmm, layer(weight, 9, "float16"), CONFIGS[-1])


def test_positions_are_packed_as_the_instruction_reads_them() -> None:
    weight = two_of_four(128, 128).astype(np.float16)
    arrays = sparse_tiles.pack(weight, 64)
    words = arrays["positions"].reshape(2, 2, 32, 4)
    for row in range(2):
        for tile in range(2):
            for slab in range(4):
                for half in range(2):
                    first = row * 64 + slab * 16, tile * 64 + half * 32
                    block = weight[first[0] : first[0] + 16, first[1] : first[1] + 32].reshape(16, 8, 4)
                    indices = fragments.sparse_indices(words[row, tile, :, slab], half)
                    kept = np.take_along_axis(block, indices.reshape(16, 8, 2).astype(np.int64), axis=2)
                    assert np.all(np.diff(indices.reshape(16, 8, 2).astype(int), axis=2) > 0)
                    assert np.count_nonzero(kept) == np.count_nonzero(block)


def test_accepts_only_two_of_four() -> None:
    problem = Problem(128, 128, 32, 0, dtype="float16")
    weight = two_of_four(128, 128).astype(np.float32)
    assert nm_spmm.accepts(problem, infer(weight), gpus.SM90A)
    three = weight.copy()
    three[7, 8:11] = 1
    assert not nm_spmm.accepts(problem, infer(three), gpus.SM90A)
    # float32 would be rounded; ten features would be padded beyond the dense weight
    assert not nm_spmm.accepts(Problem(128, 128, 32, 0), infer(weight), gpus.SM90A)
    assert not nm_spmm.accepts(Problem(10, 128, 32, 0, dtype="float16"), infer(weight[:10]), gpus.SM90A)


@pytest.mark.parametrize("shape", [(1024, 1024), (768, 776), (200, 72), (64, 64)])
def test_bytes_are_predicted_and_below_dense(shape: tuple[int, int]) -> None:
    problem = Problem(*shape, 128, 0, dtype="float16")
    weight = two_of_four(*shape).astype(np.float16)
    pattern = infer(weight.astype(np.float32))
    for config in nm_spmm.space(problem, pattern, gpus.SM90A):
        packing = nm_spmm.pack(weight, problem, config, gpus.SM90A)
        assert packing.nbytes == nm_spmm.nbytes(problem, pattern, config, gpus.SM90A) <= weight.nbytes


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_predicted_faster_than_dense(target: Any) -> None:
    problem = Problem(4096, 4096, 4096, 0, dtype="bfloat16")
    pattern = infer(two_of_four(64, 64).astype(np.float32))
    cycles = [
        kernel.predict(problem, pattern, kernel.space(problem, pattern, target)[0], target)
        for kernel in (nm_spmm, dense_gemm)
    ]
    assert 1.3 * cycles[0] < cycles[1] < 2.2 * cycles[0]


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
@pytest.mark.parametrize("config", CONFIGS[:2], ids=label)
def test_code(target: Any, config: dict[str, int]) -> None:
    problem = Problem(1024, 1024, None, 0, dtype="bfloat16")
    function = nm_spmm.emit(problem, Packing({}, 0, tuple(sorted(config.items()))), target, "nm")
    code = sass(function, target)
    assert code.local_accesses == 0
    assert code.registers <= 255
    by_wgmma = target is gpus.SM90A
    assert code.count(r"HGMMA\.SP\.64" if by_wgmma else r"HMMA\.SP\.16832\.F32") == (8 if by_wgmma else 64)
    assert code.count(r"LDGSTS\.E(\.BYPASS)?\.128") >= 8
    # four features a store, and nothing goes through shared memory on its way out
    assert code.count("STG") == code.count(r"STG\.E\.64") == 32
    assert code.count("STS") == 0

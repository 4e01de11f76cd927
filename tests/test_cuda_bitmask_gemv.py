"""bitmask_gemv on CUDA: masks and gaps against float64, their packing, predictions and code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_layers import DTYPES, check_layer, layer
from sass import TARGETS, needs_sass, sass
from sparse_weights import facts, layer_of, unstructured

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import bitmask_gemv, dense_gemv
from sparsec.targets.cuda.parts import gap_runs, mask_stream
from sparsec.targets.cuda.parts.gap_runs import Split
from sparsec.targets.target import Packing

MASKS = ({"gaps": 0, "octets": 1, "high": 1, "deep": 8}, {"gaps": 0, "octets": 2, "high": 2, "deep": 4})
GAPS = ({"gaps": 1, "octets": 1, "high": 1, "deep": 8}, {"gaps": 1, "octets": 1, "high": 4, "deep": 2})


@pytest.mark.parametrize("config", MASKS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("density", "columns", "epilogue"),
    [(0.5, 1, "none"), (0.1, 5, "bias_gelu_residual"), (0.8, 16, "bias_relu")],
)
def test_masks(config: dict[str, int], dtype: str, density: float, columns: int, epilogue: str) -> None:
    # nine chunks for eight warps, the last of them short
    check_layer(bitmask_gemv, layer(unstructured(37, 1048, density), columns, dtype, epilogue), config)


@pytest.mark.parametrize("config", GAPS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("density", "columns", "epilogue"),
    [(0.1, 1, "none"), (0.3, 3, "bias_gelu_residual"), (0.02, 16, "bias_relu")],
)
def test_gaps(config: dict[str, int], dtype: str, density: float, columns: int, epilogue: str) -> None:
    # rows of x that begin at no multiple of 16 bytes
    check_layer(bitmask_gemv, layer(unstructured(37, 331, density), columns, dtype, epilogue), config)


@pytest.mark.parametrize("config", [MASKS[0], GAPS[0]], ids=str)
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_zero_and_all_dense(config: dict[str, int], density: float) -> None:
    weight = np.random.default_rng(1).standard_normal((11, 136)) * density
    check_layer(bitmask_gemv, layer(weight, 2, "float16", "bias_relu"), config)


def test_gaps_that_a_byte_does_not_hold() -> None:
    config = {**GAPS[0], "deep": 1}
    one = layer(unstructured(3, 4000, 0.005), 1, "float16")
    assert dict(bitmask_gemv.pack(one.weight, one.problem, config, gpus.SM80).config)["gap_bytes"] == 2
    check_layer(bitmask_gemv, one, config)


def test_more_sums_than_x() -> None:
    check_layer(bitmask_gemv, layer(unstructured(20, 5, 0.5), 16, "float16"), GAPS[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_stream_holds_the_weight(dtype: str) -> None:
    """Read back as the module describes it, element by element."""
    weight = unstructured(19, 300, 0.4).astype(DTYPES[dtype])
    stream, starts, pieces = mask_stream.pack(weight, 2, 2)
    found = np.zeros((32, 384), weight.dtype)
    assert len(starts) == 2 * 3 + 1
    assert pieces == np.diff(starts).max()
    assert starts[-1] * mask_stream.PIECE == len(stream)
    for run in range(6):
        at = int(starts[run]) * mask_stream.PIECE
        for octet in range(2):
            words, taken = stream[at : at + 64].view(np.uint32), 0
            for tile in range(8):
                for lane in range(32):
                    row, step = lane // 4, tile // 2
                    half = int(words[8 * step + row]) >> tile % 2 * 16
                    for i in range(4):
                        if half >> lane % 4 * 4 + i & 1:
                            column = run % 3 * 128 + 32 * step + 8 * (lane % 4) + 4 * (tile % 2) + i
                            value = stream[at + 64 + taken]
                            found[(run // 3 * 2 + octet) * 8 + row, column] = value.view(weight.dtype)
                            taken += 1
            at += 64 + -(-taken // 8) * 8
    np.testing.assert_array_equal(found[:19, :300], weight)
    assert not found[19:].astype(bool).any() and not found[:, 300:].astype(bool).any()


def test_runs_of_gaps_hold_the_weight() -> None:
    weight, split = unstructured(21, 500, 0.2).astype(np.float16), Split(1, 2)
    arrays, gap_bytes = gap_runs.pack(weight, split)
    assert gap_bytes == 1
    found = np.zeros_like(weight)
    values, gaps = (arrays[name].reshape(-1, 32, 8) for name in ("values", "gaps"))
    for unit, lanes in enumerate(arrays["firsts"].reshape(-1, 32)):
        steps = slice(*arrays["starts"][unit : unit + 2])
        for lane, first in enumerate(lanes):
            row = arrays["rows"][unit // 2 * 8 + lane // 4]
            numbers = values[steps, lane].reshape(-1)
            columns = first + np.cumsum(gaps[steps, lane].reshape(-1).astype(np.int64))
            if numbers.any():
                found[row, columns[numbers != 0]] = numbers[numbers != 0]
    np.testing.assert_array_equal(found, weight)


@pytest.mark.parametrize("config", [*MASKS, *GAPS], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_predicted_bytes(config: dict[str, int], density: float) -> None:
    one = layer(unstructured(512, 1024, density), 1, "float16")
    pattern = infer(one.weight.astype(np.float32))
    predicted = bitmask_gemv.nbytes(one.problem, pattern, config, gpus.SM80)
    packed = bitmask_gemv.pack(one.weight, one.problem, config, gpus.SM80).nbytes
    assert packed == pytest.approx(predicted, rel=0.1 if config["gaps"] else 0.02)


@pytest.mark.parametrize(("density", "gaps", "times"), [(0.5, 0, 1.5), (0.1, 1, 4.0)])
def test_predicted_to_gain_what_memory_allows(density: float, gaps: int, times: float) -> None:
    problem, pattern = layer_of(8192, 28672, 1), facts(8192, 28672, density)
    best = bitmask_gemv.space(problem, pattern, gpus.SM90A)[0]
    assert best["gaps"] == gaps
    dense = dense_gemv.space(problem, pattern, gpus.SM90A)[0]
    gained = dense_gemv.predict(problem, pattern, dense, gpus.SM90A) / bitmask_gemv.predict(
        problem, pattern, best, gpus.SM90A
    )
    saved = 2.0 * 8192 * 28672 / bitmask_gemv.nbytes(problem, pattern, best, gpus.SM90A)
    assert times < gained < saved


@pytest.mark.parametrize(("rows", "columns"), [(64, 1), (8192, 1), (8192, 16)])
def test_shared_memory_fits_whatever_the_weight(rows: int, columns: int) -> None:
    problem, pattern = layer_of(rows, 256, columns), facts(rows, 256, 1.0)
    weight = np.ones((rows, 256), np.float16)
    for config in bitmask_gemv.space(problem, pattern, gpus.SM80):
        packing = bitmask_gemv.pack(weight, problem, config, gpus.SM80)
        function = bitmask_gemv.emit(problem, Packing({}, 0, packing.config), gpus.SM80, "kernel")
        assert int(function.attrs["sparsec_shared"]) <= gpus.SM80.l1


def test_a_weight_without_zeros_is_predicted_to_lose() -> None:
    problem, pattern = layer_of(8192, 28672, 1), facts(8192, 28672, 1.0)
    dense = dense_gemv.space(problem, pattern, gpus.SM90A)[0]
    for config in bitmask_gemv.space(problem, pattern, gpus.SM90A):
        assert bitmask_gemv.predict(problem, pattern, config, gpus.SM90A) > dense_gemv.predict(
            problem, pattern, dense, gpus.SM90A
        )


def test_what_it_leaves_to_others() -> None:
    pattern = facts(64, 64, 0.5)
    assert not bitmask_gemv.accepts(layer_of(64, 64, None), pattern, gpus.SM90A)
    assert not bitmask_gemv.accepts(layer_of(64, 64, 17), pattern, gpus.SM90A)
    # masks need aligned rows, gaps room for x
    assert not bitmask_gemv.accepts(layer_of(64, 20001, 16), pattern, gpus.SM90A)
    assert {c["gaps"] for c in bitmask_gemv.space(layer_of(64, 61, 1), pattern, gpus.SM90A)} == {1}
    assert {c["gaps"] for c in bitmask_gemv.space(layer_of(64, 20000, 16), pattern, gpus.SM90A)} == {0}


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("config", MASKS, ids=str)
def test_code_of_masks(target: Any, config: dict[str, int]) -> None:
    learned = {**config, "pieces": 80 * config["octets"], "stages": 4}
    function = bitmask_gemv.emit(
        layer_of(8192, 4096, 1), Packing({}, 0, tuple(learned.items())), target, "kernel"
    )
    code = sass(function, target)
    octets = config["octets"]
    # eight tiles of an octet: a multiply instruction, four loads and a shuffle each; the compiler writes
    # some shuffles, and what is near them, once more for threads that come apart
    assert 8 * octets <= code.count("HMMA.16816.F32") <= 16 * octets
    assert 32 * octets <= code.count(r"LDS\.U16") <= 64 * octets
    assert (8 + 8) * octets - 1 <= code.count("SHFL") <= 2 * (8 + 8) * octets
    assert code.count(r"LDGSTS.*128") >= 1
    assert code.local_accesses == 0
    assert code.registers <= (128 if octets == 1 else 168)


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_code_of_gaps(target: Any) -> None:
    learned = {**GAPS[1], "gap_bytes": 1}
    function = bitmask_gemv.emit(
        layer_of(8192, 4096, 1), Packing({}, 0, tuple(learned.items())), target, "kernel"
    )
    code = sass(function, target)
    # four vectors of eight values and gaps on their way together
    assert code.count(r"LDG\.E(\.NA)?\..*128") == 4
    assert code.count(r"LDG\.E\.64") == 4
    assert code.count(r"LDS\.U16") == 32
    assert code.local_accesses == 0
    assert code.registers <= 64

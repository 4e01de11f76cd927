"""dense_conv for CUDA: results through the interpreter, and machine code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from conv_cases import LAYERS, Layer, layer
from cuda_convs import check_convolution, convolution
from cuda_layers import DTYPES, EPILOGUES
from kernel_cases import unstructured
from sass import TARGETS, needs_sass, sass

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import dense_conv
from sparsec.targets.target import Packing, Target

#: several images, rows and channels that no tile divides
MIXED = layer(21, 37, (5, 6), (3, 3), padding=(1, 1, 1, 1), images=3)
#: what a block takes no part of but the whole
SMALL = layer(9, 5, (4, 3), (3, 2), (2, 1), (1, 1, 1, 0), images=2)


def _weight(a: Layer) -> Any:
    return unstructured(a.rows, a.inner, 1.0)


def _all(a: Layer, dtype: str) -> list[dict[str, int]]:
    return list(dense_conv.configurations(convolution(a, _weight(a), dtype).problem))


def _first(a: Layer, dtype: str, line: int) -> Mapping[str, int] | None:
    """The best-predicted configuration of either way of x."""
    problem, pattern = convolution(a, _weight(a), dtype).problem, infer(_weight(a))
    found = [c for c in _all(a, dtype) if c["line"] == line]
    return min(found, key=lambda c: dense_conv.predict(problem, pattern, c, gpus.SM80), default=None)


def _id(config: Mapping[str, int]) -> str:
    return " ".join(f"{k}{v}" for k, v in config.items())


@pytest.mark.parametrize("name", LAYERS)
def test_columns(name: str) -> None:
    """Every kind of window, in each dtype in turn; known images and those of the run in turn."""
    number = list(LAYERS).index(name)
    a, dtype = LAYERS[name], list(DTYPES)[number % 3]
    config = _first(a, dtype, 0)
    assert config is not None
    check_convolution(dense_conv, convolution(a, _weight(a), dtype, run_time=number % 2 == 1), config)


@pytest.mark.parametrize("name", LAYERS)
def test_lines(name: str) -> None:
    number = list(LAYERS).index(name)
    a, dtype = LAYERS[name], ("float16", "bfloat16")[number % 2]
    config = _first(a, dtype, 1)
    if config is None:
        assert name in ("many_points", "wide"), "rows that copies take, or lines too long"
        return
    one = convolution(a, _weight(a), dtype, "bias_relu", run_time=number % 3 == 1)
    check_convolution(dense_conv, one, config)


@pytest.mark.parametrize("config", _all(MIXED, "float16"), ids=_id)
def test_every_tile_of_halves(config: Mapping[str, int]) -> None:
    check_convolution(dense_conv, convolution(MIXED, _weight(MIXED), "float16", "bias_relu"), config)


@pytest.mark.parametrize("config", _all(SMALL, "float32"), ids=_id)
def test_every_tile_of_floats(config: Mapping[str, int]) -> None:
    check_convolution(dense_conv, convolution(SMALL, _weight(SMALL), "float32", "bias_relu"), config)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("dtype, line", [("float32", 0), ("float16", 0), ("bfloat16", 1)])
def test_epilogues(dtype: str, line: int, epilogue: str) -> None:
    config = _first(SMALL, dtype, line)
    assert config is not None
    check_convolution(dense_conv, convolution(SMALL, _weight(SMALL), dtype, epilogue), config)


def test_points_are_copied_and_stored_eight_at_a_time() -> None:
    a = layer(40, 50, (4, 6), images=3)
    config = _first(a, "float16", 0)
    assert config is not None
    check_convolution(dense_conv, convolution(a, _weight(a), "float16", "bias_gelu_residual"), config)


def test_an_empty_weight_makes_zeros() -> None:
    config = _first(SMALL, "float16", 1)
    assert config is not None
    check_convolution(dense_conv, convolution(SMALL, np.zeros((SMALL.rows, SMALL.inner)), "float16"), config)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_windows_of_many_channels_go_along_lines(target: Target) -> None:
    """And a network's first layer, three channels of which are padded to sixteen along a line, as columns."""
    for a, line in ((layer(128, 128, (28, 28), (3, 3), padding=(1, 1, 1, 1), images=32), 1),
                    (layer(64, 3, (224, 224), (7, 7), (2, 2), (3, 3, 3, 3), images=32), 0)):  # fmt: skip
        problem = convolution(a, _weight(a), "float16").problem
        assert dense_conv.space(problem, infer(_weight(a)), target)[0]["line"] == line


def _code(a: Layer, dtype: str, target: Target, config: Mapping[str, int]) -> Any:
    problem = convolution(a, _weight(a), dtype).problem
    packing = Packing({}, 0, tuple(sorted(config.items())))
    return sass(dense_conv.emit(problem, packing, target, "kernel"), target)


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_code_of_lines(target: Target) -> None:
    a = layer(128, 64, (28, 28), (3, 3), padding=(1, 1, 1, 1))
    config = {"rows": 128, "positions": 128, "depth": 32, "threads": 256, "line": 1}
    code = _code(a, "float16", target, config)
    # a step of a warp: 4 x 4 instructions for each 16 of 32 channels, 6 reads of fragments each
    assert code.count(r"HMMA\.16816\.F32") % 32 == 0
    assert code.count(r"LDSM") * 32 == code.count(r"HMMA") * 12
    assert code.count(r"LDGSTS\.E\.BYPASS\.128") > 0 and code.count(r"STS\.(64|128)") > 0
    assert code.local_accesses == 0 and code.registers <= 200


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_code_of_points(target: Target) -> None:
    a = layer(128, 64, (28, 28))
    config = {"rows": 128, "positions": 128, "depth": 32, "threads": 128, "line": 0}
    code = _code(a, "bfloat16", target, config)
    assert code.count(r"HMMA\.16816\.F32\.BF16") % 64 == 0
    assert code.count(r"LDSM\.16\.MT88\.4") > 0 and code.count(r"LDGSTS\.E\.BYPASS\.128") > 0
    assert code.count(r"STG\.E\.128") > 0
    assert code.local_accesses == 0 and code.registers <= 240


@needs_sass
def test_code_of_floats() -> None:
    a = layer(128, 64, (28, 28), (3, 3), padding=(1, 1, 1, 1))
    config = {"rows": 128, "positions": 128, "depth": 16, "threads": 256, "line": 0}
    code = _code(a, "float32", gpus.SM80, config)
    assert code.count(r"FFMA") >= 1024 and code.count(r"HMMA") == 0
    assert code.count(r"LDGSTS") > 0 and code.local_accesses == 0 and code.registers <= 168

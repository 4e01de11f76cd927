"""CUDA kernels of depthwise convolutions and pooling: results through the interpreter, and machine code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cuda_layers import DTYPES, EPILOGUES
from cuda_windows import check_depthwise, check_pool
from sass import TARGETS, needs_sass, sass
from stencil_cases import LAYERS, POOLS, Layer

from sparsec.targets.cuda.kernels import depthwise, pool
from sparsec.targets.cuda.kernels.pool import Pooling
from sparsec.targets.cuda.parts import strips
from sparsec.targets.geometry import Geometry
from sparsec.targets.target import Problem, Target

_LARGE = Layer(1, 40, 45, (27, 25), padding=(13, 12, 13, 12))


def _alternating(layers: list[Layer]) -> Any:
    """Each layer in one of the dtypes."""
    pairs = [(a, list(DTYPES)[i % 3]) for i, a in enumerate(layers)]
    return pytest.mark.parametrize("layer, dtype", pairs, ids=[f"{a} {d}" for a, d in pairs])


@_alternating(LAYERS)
def test_depthwise(layer: Layer, dtype: str) -> None:
    check_depthwise(layer, dtype, "bias_relu")


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_depthwise_epilogues(dtype: str, epilogue: str) -> None:
    check_depthwise(LAYERS[8], dtype, epilogue)


@pytest.mark.parametrize("down", [2, 5, 8])
@pytest.mark.parametrize("layer", [LAYERS[i] for i in (1, 10, 13, 19, 21)], ids=str)
def test_depthwise_tall_strips(layer: Layer, down: int) -> None:
    check_depthwise(layer, "float16", down=down)


def test_depthwise_multiplier() -> None:
    check_depthwise(replace(LAYERS[0], images=2), "float32", "bias_gelu_residual", multiplier=3)


def test_depthwise_taps_in_a_loop() -> None:
    assert not strips.choose(_LARGE.geometry, 1).straight
    check_depthwise(_LARGE, "bfloat16", "bias_relu")


@_alternating(POOLS)
def test_max(layer: Layer, dtype: str) -> None:
    check_pool(layer, dtype, "max")


@_alternating(POOLS[::-1])
def test_mean(layer: Layer, dtype: str) -> None:
    check_pool(layer, dtype, "mean", count_padding=True)
    if any(layer.padding):
        check_pool(layer, dtype, "mean")


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_pool_tall_strips_and_loops(kind: str) -> None:
    check_pool(POOLS[1], "float16", kind, down=8)
    check_pool(POOLS[-3], "float32", kind, down=3)
    check_pool(_LARGE, "float16", kind, count_padding=True)


def test_strips_are_shorter_where_threads_are_few() -> None:
    few = Geometry(1, 14, 14, 14, 14, (3, 3), padding=(1, 1), groups=32)
    assert strips.choose(few, 32).down == 1
    assert strips.choose(replace(few, groups=4096, images=32), 4096).down == 7


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_depthwise_code(target: Target) -> None:
    """A row of x is read once for all rows of the strip: 3 loads for each of 9 rows, 7 x 9 products."""
    g = Geometry(1, 28, 28, 28, 28, (3, 3), padding=(1, 1), groups=64)
    problem = Problem(64, 9, None, 0, None, (), "float16", replace(g, images=None))
    code = sass(depthwise.emit(problem, 7, "kernel"), target)
    assert code.count(r"FFMA") == 63
    assert code.count(r"LDG\.E\.U16") == 27 + 9
    assert code.local_accesses == 0 and code.registers <= 64


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_whole_planes_are_joined_by_shuffles(target: Target) -> None:
    g = Geometry(1, 7, 7, 1, 1, (7, 7), groups=64, images=None)
    code = sass(pool.emit(Pooling("mean", g, "float16"), "kernel"), target)
    assert code.count(r"SHFL\.BFLY") >= 5 and code.count(r"BAR\.SYNC") == 0
    assert code.local_accesses == 0 and code.registers <= 32

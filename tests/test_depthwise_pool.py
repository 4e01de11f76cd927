"""Depthwise convolution and pooling against float64 NumPy, every border, both ways to emit them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_cases import AVX2, AVX512, SPLIT, has_features
from kernel_harness import check_case
from stencil_cases import ENDINGS, LAYERS, POOLS, Layer, depthwise_case, pool_case

from sparsec.targets.build import module_of
from sparsec.targets.kernels import depthwise, pool, stencil_planes
from sparsec.targets.target import Problem, Target


def _on_either(layers: list[Layer]) -> Any:
    """Every other layer in vectors of 16."""
    pairs = [(a, (AVX2, SPLIT)[i % 2]) for i, a in enumerate(layers)]
    return pytest.mark.parametrize("layer, target", pairs, ids=[f"{a} {t.name}" for a, t in pairs])


@_on_either(LAYERS)
def test_depthwise(layer: Layer, target: Target) -> None:
    check_case(depthwise_case(layer, "bias and relu", target))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("layer", [LAYERS[i] for i in (0, 1, 3, 4, 8, 11)], ids=str)
def test_depthwise_endings(layer: Layer, ending: str) -> None:
    check_case(depthwise_case(layer, ending, AVX2))


def test_depthwise_multiplier() -> None:
    check_case(depthwise_case(replace(LAYERS[0], images=2), "bias and relu", AVX2, multiplier=3))


@_on_either(POOLS[::-1])
def test_max(layer: Layer, target: Target) -> None:
    check_case(pool_case(layer, "max", False, target))


@pytest.mark.parametrize("layer", POOLS, ids=str)
def test_mean(layer: Layer) -> None:
    check_case(pool_case(layer, "mean", True, AVX2))
    if any(layer.padding):
        check_case(pool_case(layer, "mean", False, AVX2))


@pytest.fixture
def rolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer is small enough for straight code."""
    monkeypatch.setattr(depthwise, "MOST_STEPS", 0)
    monkeypatch.setattr(pool, "MOST_STEPS", 0)


@pytest.mark.usefixtures("rolled")
@pytest.mark.parametrize("layer", POOLS[::3], ids=str)
def test_rolled(layer: Layer) -> None:
    check_case(depthwise_case(layer, "silu and residual", AVX2))
    for kind, count_padding in (("max", False), ("mean", False), ("mean", True)):
        check_case(pool_case(layer, kind, count_padding, AVX2))


def test_large_kernels_are_rolled() -> None:
    problem = Problem(4, 31 * 31, None, 0, conv=Layer(4, 60, 60, (31, 31), padding=(15,) * 4).geometry)
    assert depthwise.shape_of(problem, AVX2) is None
    small = replace(problem, rows=3, conv=LAYERS[1].geometry)
    assert depthwise.shape_of(small, AVX2) is not None


@pytest.mark.parametrize("layer", [LAYERS[i] for i in (0, 1, 11)], ids=str)
def test_planes_cut_into_parts(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stencil_planes, "TILE_CYCLES", 30)
    case = depthwise_case(replace(layer, images=2), "bias and relu", AVX2)
    assert case.tiles > 2 * layer.channels or layer.width < 8 or layer.strides == (2, 2)
    check_case(replace(case, key=("parts", case.key)))


@pytest.mark.parametrize("seed", range(16))
def test_random(seed: int) -> None:
    random = np.random.default_rng(seed)

    def pair(low: int, high: int) -> tuple[int, int]:
        return int(random.integers(low, high)), int(random.integers(low, high))

    kernel, strides, dilation = pair(1, 6), pair(1, 4), pair(1, 3)
    padding = (*pair(0, 4), *pair(0, 4))
    height, width = pair(1, 40)
    height = max(height, (kernel[0] - 1) * dilation[0] + 1 - padding[0] - padding[2])
    width = max(width, (kernel[1] - 1) * dilation[1] + 1 - padding[1] - padding[3])
    channels, images = int(random.integers(1, 40)), int(random.integers(1, 3))
    layer = Layer(channels, height, width, kernel, strides, padding, dilation, images)
    target = (AVX2, SPLIT)[seed % 2]
    check_case(depthwise_case(layer, "bias and relu", target))
    check_case(pool_case(layer, "max", False, target))
    # a mean of nothing is NaN, which equals nothing
    if padding[0] + padding[2] < kernel[0] and padding[1] + padding[3] < kernel[1]:
        check_case(pool_case(layer, "mean", bool(seed % 3), target))


@pytest.mark.parametrize("layer", [LAYERS[i] for i in (0, 1, 11, 15)], ids=str)
def test_avx512(layer: Layer) -> None:
    cases = [depthwise_case(layer, "bias and relu", AVX512), pool_case(layer, "max", False, AVX512)]
    for case in cases:
        if has_features(AVX512):
            check_case(case)
        else:
            text = module_of(case.emit("kernel_under_test"), AVX512).mod.inspect_source("s")
            assert "zmm" in text or layer.geometry.out_width <= 8

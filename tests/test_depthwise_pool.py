"""Depthwise convolution and pooling against float64 NumPy, every border, both ways to emit them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from kernel_cases import AVX2, AVX512, SPLIT, has_features
from kernel_harness import Case, check_case
from scipy.special import expit

from sparsec.expr import Arg, Scalar, call
from sparsec.targets.build import module_of
from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels import depthwise, pool, stencil
from sparsec.targets.kernels.pool import Pooling
from sparsec.targets.target import Problem, Target


@dataclass(frozen=True, slots=True)
class Layer:
    """x [images, channels, height, width], the window, and the padding (top, left, bottom, right)."""

    channels: int
    height: int
    width: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    images: int = 1
    overhang: tuple[int, int] = (0, 0)

    @property
    def geometry(self) -> Geometry:
        top, left, bottom, right = self.padding
        sizes = (self.height + top + bottom, self.width + left + right)
        out = [
            (size + over - (taps - 1) * step - 1) // stride + 1
            for size, over, taps, step, stride in zip(
                sizes, self.overhang, self.kernel, self.dilation, self.strides, strict=True
            )
        ]
        return Geometry(
            1, self.height, self.width, out[0], out[1], self.kernel, self.strides, (top, left), self.dilation,
            groups=self.channels, images=self.images,
        )  # fmt: skip

    def windows(self, x: Any, fill: float) -> Any:
        """What each output reads: [images, channels, out height, out width, taps down, taps across]."""
        g, (top, left, bottom, right) = self.geometry, self.padding
        after = (bottom + self.overhang[0], right + self.overhang[1])
        padded = np.pad(x, ((0, 0), (0, 0), (top, after[0]), (left, after[1])), constant_values=fill)
        rows, columns = (
            np.arange(out)[:, None] * stride + np.arange(taps) * step
            for out, stride, taps, step in zip(
                (g.out_height, g.out_width), g.strides, g.kernel, g.dilation, strict=True
            )
        )
        return padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]


LAYERS = [
    Layer(5, 7, 7), Layer(3, 40, 40), Layer(2, 11, 13, (5, 5), padding=(2, 2, 2, 2)), Layer(3, 1, 1),
    Layer(2, 3, 5), Layer(2, 1, 9), Layer(2, 9, 1), Layer(4, 2, 2), Layer(3, 6, 4, images=3),
    Layer(2, 28, 57, images=2), Layer(2, 20, 34, (3, 5), padding=(0, 3, 2, 1)),
    Layer(3, 14, 14, strides=(2, 2)), Layer(3, 15, 15, strides=(2, 2)), Layer(3, 35, 66, strides=(2, 2)),
    Layer(2, 14, 14, strides=(2, 2), padding=(0, 0, 1, 1)),
    Layer(2, 22, 23, (5, 5), (2, 2), (2, 2, 2, 2)), Layer(2, 5, 5, strides=(2, 2)),
    Layer(2, 19, 40, (2, 2), (3, 3), (0, 0, 0, 0)), Layer(2, 31, 50, strides=(1, 3)),
    Layer(2, 33, 45, strides=(4, 4)), Layer(2, 26, 29, padding=(2, 2, 2, 2), dilation=(2, 2)),
    Layer(2, 25, 40, (3, 3), (2, 2), (3, 3, 3, 3), (3, 3)), Layer(3, 12, 18, (1, 7), padding=(0, 3, 0, 3)),
    Layer(3, 18, 12, (7, 1), padding=(3, 0, 3, 0)), Layer(40, 12, 9, (1, 1), padding=(0, 0, 0, 0)),
    Layer(1, 4, 90, (4, 4), padding=(1, 2, 2, 1)), Layer(2, 3, 3, (5, 5), padding=(4, 4, 4, 4)),
    Layer(1, 67, 70), Layer(6, 1, 170, (1, 31), padding=(0, 15, 0, 15)), Layer(2, 8, 16, strides=(2, 1)),
    Layer(50, 7, 7, (7, 7), padding=(0, 0, 0, 0)),
]  # fmt: skip

ENDINGS: dict[str, Any] = {
    "none": (None, (), lambda y: y),
    "bias and relu": (
        call("max", call("add", Arg(0), Arg(1)), Scalar(0.0)), ("row",), lambda y, b: np.maximum(y + b, 0),
    ),
    "silu and residual": (
        call("add", call("mul", call("mul", Arg(0), Arg(2)), call("sigmoid", Arg(0))), Arg(1)),
        ("full", "one"), lambda y, r, c: y * c * expit(y) + r,
    ),
}  # fmt: skip


def _draw(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def depthwise_case(layer: Layer, ending: str, target: Target, multiplier: int = 1) -> Case:
    g, (expression, kinds, reference) = layer.geometry, ENDINGS[ending]
    rows = layer.channels * multiplier
    x, w = _draw(1, layer.images, layer.channels, layer.height, layer.width), _draw(2, rows, *layer.kernel)
    windows = np.repeat(layer.windows(x.astype(np.float64), 0.0), multiplier, axis=1)
    y = np.einsum("nchwrs,crs->nchw", windows, w.astype(np.float64))
    shapes = {"row": (rows, 1, 1), "full": y.shape, "one": (1,)}
    extras = [_draw(3 + i, *shapes[kind]) for i, kind in enumerate(kinds)]
    problem = Problem(rows, g.taps, layer.images * g.positions, 0, expression, kinds, conv=g)
    allowed = 3e-6 * np.einsum("nchwrs,crs->nchw", abs(windows), abs(w)) + 3e-6
    return Case(
        f"depthwise {target.name} {layer} {ending} x{multiplier}", target,
        ("depthwise", problem, target, depthwise.MOST_STEPS),
        lambda name: depthwise.emit(problem, target, name), (x, w, *extras), y.shape,
        layer.images * depthwise.division_of(problem, target).tiles(rows), reference(y, *extras), allowed,
    )  # fmt: skip


def pool_case(layer: Layer, kind: str, count_padding: bool, target: Target) -> Case:
    g = layer.geometry
    pooling = Pooling(kind, g, layer.padding if count_padding else (0, 0, 0, 0))
    x = _draw(1, layer.images, layer.channels, layer.height, layer.width)
    if kind == "max":
        y = layer.windows(x.astype(np.float64), -np.inf).max(axis=(4, 5))
    else:
        counted = layer
        if count_padding:
            (top, left, bottom, right), none = layer.padding, (0, 0, 0, 0)
            height, width = layer.height + top + bottom, layer.width + left + right
            counted = replace(layer, height=height, width=width, padding=none)
        inside = np.ones((1, 1, counted.height, counted.width))
        counts = counted.windows(inside, 0.0).sum(axis=(4, 5))
        y = layer.windows(x.astype(np.float64), 0.0).sum(axis=(4, 5)) / counts
    return Case(
        f"pool {kind} {count_padding} {target.name} {layer}", target,
        ("pool", pooling, target, pool.MOST_STEPS),
        lambda name: pool.emit(pooling, target, name), (x,), y.shape,
        layer.images * pool.division_of(pooling, target).tiles(layer.channels), y,
        3e-6 * (1 + abs(y)) if kind == "mean" else 0.0,
    )  # fmt: skip


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


POOLS = [
    *LAYERS,
    Layer(20, 14, 14, (2, 2), (2, 2), (0, 0, 0, 0)), Layer(2, 13, 13, (13, 13), (1, 1), (6, 6, 6, 6)),
    Layer(2, 13, 15, (2, 2), (2, 2), (0, 0, 0, 0), overhang=(1, 1)),
    Layer(2, 14, 30, (3, 3), (2, 2), (0, 0, 0, 0), overhang=(1, 1)),
    Layer(2, 15, 33, (3, 3), (2, 2), (1, 1, 1, 1), overhang=(1, 1)),
    Layer(37, 8, 8, (8, 8), (1, 1), (0, 0, 0, 0), images=2), Layer(16, 5, 4, (5, 4), (1, 1), (0, 0, 0, 0)),
]  # fmt: skip


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
    monkeypatch.setattr(stencil, "TILE_CYCLES", 30)
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

"""Depthwise convolutions and poolings the kernel tests share, native and emulated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from kernel_harness import Case
from scipy.special import expit

from sparsec.ir.expr import Arg, Scalar, call
from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels import depthwise, pool
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
        """As kernels see it."""
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

POOLS = [
    *LAYERS,
    Layer(20, 14, 14, (2, 2), (2, 2), (0, 0, 0, 0)), Layer(2, 13, 13, (13, 13), (1, 1), (6, 6, 6, 6)),
    Layer(2, 13, 15, (2, 2), (2, 2), (0, 0, 0, 0), overhang=(1, 1)),
    Layer(2, 14, 30, (3, 3), (2, 2), (0, 0, 0, 0), overhang=(1, 1)),
    Layer(2, 15, 33, (3, 3), (2, 2), (1, 1, 1, 1), overhang=(1, 1)),
    Layer(37, 8, 8, (8, 8), (1, 1), (0, 0, 0, 0), images=2), Layer(16, 5, 4, (5, 4), (1, 1), (0, 0, 0, 0)),
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
    """A depthwise layer of random weights, one of :data:`ENDINGS` after it."""
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
    """A max or mean; a mean may count the padding."""
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


def depthwise_cases(target: Target) -> list[Case]:
    """Strides, dilation, maps below a vector, kernels looped over, every ending."""
    layers = [LAYERS[i] for i in (0, 2, 3, 4, 5, 8, 11, 15, 17, 20, 24, 26)]
    layers += [Layer(2, 6, 20, (1, 1), padding=(0, 0, 0, 0)), Layer(2, 33, 35, (31, 31), padding=(15,) * 4)]
    found = [depthwise_case(a, "bias and relu", target) for a in layers]
    found += [depthwise_case(LAYERS[i], ending, target) for i in (0, 11) for ending in ENDINGS]
    return [*found, depthwise_case(replace(LAYERS[0], images=2), "bias and relu", target, multiplier=3)]


def pool_cases(target: Target) -> list[Case]:
    """Max and mean, inside and beyond the edge, whole maps."""
    last = len(LAYERS)
    layers = [POOLS[i] for i in (0, 2, 3, 4, 8, 11, 14, 20, *range(last, last + 7))]
    found = [pool_case(a, "max", False, target) for a in layers]
    return [*found, *(pool_case(a, "mean", bool(i % 2), target) for i, a in enumerate(layers))]

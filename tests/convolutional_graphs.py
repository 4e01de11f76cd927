"""Random small convolutional networks as ONNX: images or sequences, sparse in every way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx_graphs import Array, Model

CHANNELS = (4, 6, 8, 16, 24)
BATCHES = (1, 1, 2, 3, 17)


def _dense(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    drawn: Array = rng.standard_normal(shape)
    return drawn / np.sqrt(prod(shape[1:]))


def _unstructured(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    return _dense(rng, shape) * (rng.random(shape) < rng.choice([0.05, 0.2, 0.5]))


def _blocks(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Zero in blocks of several output channels."""
    kept = np.repeat(rng.random((-(-shape[0] // 4), *shape[1:])) < 0.3, 4, axis=0)
    return _dense(rng, shape) * kept[: shape[0]]


def _n_of_m(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Two of every four input channels of a tap."""
    channels = -(-shape[1] // 4) * 4
    order = rng.random((shape[0], channels // 4, 4, *shape[2:])).argsort(2).argsort(2)
    return _dense(rng, shape) * (order < 2).reshape(shape[0], channels, *shape[2:])[:, : shape[1]]


def _dead(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Half the filters empty and half the input channels unread."""
    kept = np.outer(rng.random(shape[0]) < 0.5, rng.random(shape[1]) < 0.5)
    return _dense(rng, shape) * kept.reshape(*kept.shape, *[1] * (len(shape) - 2))


def _nothing(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    return np.zeros(shape)


PATTERNS: tuple[Callable[[np.random.Generator, Sequence[int]], Array], ...] = (
    _dense, _dense, _unstructured, _unstructured, _unstructured, _blocks, _n_of_m, _dead, _nothing,
)  # fmt: skip


@dataclass
class _Writer:
    """Adds nodes over values [batch, channels, *sizes]; there is always a most recent one."""

    rng: np.random.Generator
    batch: int | str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    #: value name -> (channels, *sizes)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def weight(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array, dtype)
        return name

    def add(self, op: str, args: Sequence[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(args), [name], name=f"{op}_{name}", **attributes))
        self.shapes[name] = shape
        return name

    def any(self) -> str:
        """A value, most likely a recent one."""
        names = list(self.shapes)
        return names[int(self.rng.integers(max(0, len(names) - 3), len(names)))]

    def alike(self, x: str, axes: slice) -> str:
        """A value whose (channels, *sizes) agree with x's on some axes, maybe x itself."""
        names = [n for n, s in self.shapes.items() if s[axes] == self.shapes[x][axes]]
        return names[int(self.rng.integers(len(names)))]

    def draw(self, choices: Sequence[int], count: int) -> list[int]:
        return [int(n) for n in self.rng.choice(choices, count)]

    def window(self, x: str, kernels: Sequence[int], dilations: Sequence[int]) -> dict[str, Any]:
        """Kernel, strides, dilations and pads that leave at least one output."""
        sizes = self.shapes[x][1:]
        rank = len(sizes)
        kernel, strides = self.draw(kernels, rank), self.draw((1, 1, 2, 3), rank)
        dilation = self.draw(dilations, rank)
        pads = [int(self.rng.integers(0, kernel[i % rank])) for i in range(2 * rank)]
        for i, size in enumerate(sizes):
            if size + pads[i] + pads[i + rank] < dilation[i] * (kernel[i] - 1) + 1:
                kernel[i], pads[i], pads[i + rank] = 1, 0, 0
        return {"kernel_shape": kernel, "strides": strides, "dilations": dilation, "pads": pads}

    def sizes_after(self, x: str, window: dict[str, Any], ceil: bool = False) -> tuple[int, ...]:
        """The sizes a window leaves, rounded down or up."""
        left, strides = self.left(x, window), window["strides"]
        return tuple((-(-n // s) if ceil else n // s) + 1 for n, s in zip(left, strides, strict=True))

    def left(self, x: str, window: dict[str, Any]) -> list[int]:
        """How far a window can move along each axis."""
        pads, sizes = window["pads"], self.shapes[x][1:]
        reach = [d * (k - 1) + 1 for d, k in zip(window["dilations"], window["kernel_shape"], strict=True)]
        return [n + pads[i] + pads[i + len(sizes)] - reach[i] for i, n in enumerate(sizes)]

    def ceil(self, x: str, window: dict[str, Any]) -> bool:
        """Whether to round up: the last window must begin inside x, or engines disagree on the shape."""
        last = [-(-n // s) * s for n, s in zip(self.left(x, window), window["strides"], strict=True)]
        ends = [n + before for n, before in zip(self.shapes[x][1:], window["pads"], strict=False)]
        return all(a < b for a, b in zip(last, ends, strict=True)) and bool(self.rng.random() < 0.4)

    def conv(self) -> str:
        x = self.any()
        channels = self.shapes[x][0]
        kernels = (1,) if self.rng.random() < 0.3 else (1, 2, 3, 3, 3, 5)
        window = self.window(x, kernels, (1, 1, 1, 2))
        groups = 2 if channels % 2 == 0 and self.rng.random() < 0.15 else 1
        rows = int(self.rng.choice(CHANNELS))
        pattern = PATTERNS[int(self.rng.integers(len(PATTERNS)))]
        w = pattern(self.rng, (rows, channels // groups, *window["kernel_shape"]))
        return self.ended(self.filtered(x, w, groups, window))

    def depthwise(self) -> str:
        x = self.any()
        channels = self.shapes[x][0]
        window = self.window(x, (1, 3, 3, 5), (1, 1, 2))
        rows = channels * int(self.rng.choice([1, 1, 2]))
        return self.ended(
            self.filtered(x, _dense(self.rng, (rows, 1, *window["kernel_shape"])), channels, window)
        )

    def filtered(self, x: str, w: Array, groups: int, window: dict[str, Any]) -> str:
        bias = [self.weight(self.rng.standard_normal(len(w)))] if self.rng.random() < 0.6 else []
        shape = (len(w), *self.sizes_after(x, window))
        return self.add("Conv", (x, self.weight(w), *bias), shape, group=groups, **window)

    def ended(self, x: str) -> str:
        """Perhaps normalised, perhaps activated."""
        shape = self.shapes[x]
        if self.rng.random() < 0.3:
            gamma, beta, mean = (self.weight(self.rng.standard_normal(shape[0])) for _ in range(3))
            variance = self.weight(self.rng.random(shape[0]) + 0.5)
            x = self.add("BatchNormalization", (x, gamma, beta, mean, variance), shape, epsilon=1e-5)
        kind = str(self.rng.choice(["Relu", "Relu", "LeakyRelu", "HardSwish", "Sigmoid", "none", "none"]))
        return x if kind == "none" else self.add(kind, (x,), shape)

    def pool(self) -> str:
        x, largest = self.any(), bool(self.rng.random() < 0.5)
        window = self.window(x, (1, 2, 3, 3), (1, 1, 2) if largest else (1,))
        ceil = self.ceil(x, window)
        shape = (self.shapes[x][0], *self.sizes_after(x, window, ceil))
        if largest:
            return self.add("MaxPool", (x,), shape, ceil_mode=int(ceil), **window)
        padded = int(self.rng.random() < 0.5 and not ceil)
        del window["dilations"]
        return self.add("AveragePool", (x,), shape, ceil_mode=int(ceil), count_include_pad=padded, **window)

    def residual(self) -> str:
        x = self.any()
        op = str(self.rng.choice(["Add", "Add", "Add", "Mul", "Max"]))
        x = self.add(op, (x, self.alike(x, np.s_[:])), self.shapes[x])
        return self.add("Relu", (x,), self.shapes[x]) if self.rng.random() < 0.5 else x

    def concat(self) -> str:
        x = self.any()
        y = self.alike(x, np.s_[1:])
        channels = self.shapes[x][0] + self.shapes[y][0]
        return self.add("Concat", (x, y), (channels, *self.shapes[x][1:]), axis=1)

    def resize(self) -> str:
        x = self.any()
        channels, *sizes = self.shapes[x]
        if max(sizes) > 24:
            return x
        how = {"mode": "linear"}
        if self.rng.random() < 0.6:
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        scales = self.weight([1, 1, *[2] * len(sizes)])
        return self.add("Resize", (x, "", scales), (channels, *(2 * s for s in sizes)), **how)

    def cut(self) -> str:
        x = self.any()
        channels, *sizes = self.shapes[x]
        if channels < 2:
            return x
        ends = [self.weight([v], np.int64) for v in (channels // 2, channels, 1)]
        return self.add("Slice", (x, *ends), (channels - channels // 2, *sizes))

    def gate(self) -> str:
        """Squeeze and excitation."""
        x = self.any()
        channels, *sizes = self.shapes[x]
        mean = self.add("GlobalAveragePool", (x,), (channels, *[1] * len(sizes)))
        w = self.weight(_unstructured(self.rng, (channels, channels, *[1] * len(sizes))))
        gates = self.add("Sigmoid", (self.add("Conv", (mean, w), self.shapes[mean]),), self.shapes[mean])
        return self.add("Mul", (x, gates), self.shapes[x])

    def shuffle(self) -> str:
        """Channels of two halves in turns."""
        x = self.any()
        channels, *sizes = self.shapes[x]
        if channels % 2:
            return x
        batch = -1 if isinstance(self.batch, str) else self.batch
        split = self.weight([batch, 2, channels // 2, *sizes], np.int64)
        order = [0, 2, 1, *range(3, 3 + len(sizes))]
        parts = self.add("Transpose", (self.add("Reshape", (x, split), ()),), (), perm=order)
        del self.shapes[parts], self.shapes[self.nodes[-2].output[0]]
        whole = self.weight([batch, channels, *sizes], np.int64)
        return self.add("Reshape", (parts, whole), self.shapes[x])

    def head(self) -> None:
        x = list(self.shapes)[-1]
        if self.rng.random() < 0.5:
            x = self.add("GlobalAveragePool", (x,), (self.shapes[x][0], *[1] * (len(self.shapes[x]) - 1)))
        width = prod(self.shapes[x])
        flat = self.add("Flatten", (x,), (width,), axis=1)
        w = _unstructured(self.rng, (10, width))
        self.add("Gemm", (flat, self.weight(w), self.weight(self.rng.standard_normal(10))), (10,), transB=1)


def random_network(seed: int) -> Model:
    """A few convolutions and what usually stands between them, with or without a classifier."""
    rng = np.random.default_rng(seed)
    symbolic = bool(rng.random() < 0.3)
    size = int(rng.choice(BATCHES))
    batch: int | str = "batch" if symbolic else size
    w = _Writer(rng, batch)
    rank = 1 if rng.random() < 0.2 else 2
    shape = (int(rng.choice([1, 3, 8, 16])), *w.draw((1, 5, 8, 14, 20), rank))
    w.shapes["x"] = shape
    makers = (
        w.conv, w.conv, w.conv, w.conv, w.depthwise, w.pool, w.pool, w.residual, w.residual, w.concat,
        w.resize, w.cut, w.gate, w.shuffle,
    )  # fmt: skip
    w.conv()
    for _ in range(int(rng.integers(2, 6))):
        makers[int(rng.integers(len(makers)))]()
    if rng.random() < 0.4:
        w.head()
    others = tuple(int(t) for t in rng.choice(BATCHES, 1)) if symbolic else ()
    return Model(tuple(w.nodes), w.weights, {"x": (batch, *shape)}, (size, *others))

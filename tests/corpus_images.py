"""Graphs of convolutions, pooling, and tensors cut and joined."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from graph_build import BATCH, Build

from sparsec.ir.graph import Graph


def conv_batch_norm() -> Graph:
    """As importers spell a batch normalisation, then hard-swish, which reads it twice."""
    b = Build()
    y = b.conv(b.input(BATCH, 3, 9, 8), b.random(6, 3, 3, 3, zeros=0.5), padding=(1, 1, 1, 1))
    mean, gamma, beta = (b.random(1, 6, 1, 1) for _ in range(3))
    spread = b.apply("sqrt", b.apply("add", b.apply("abs", b.random(1, 6, 1, 1)), b.const(1e-3)))
    y = b.apply("add", b.apply("mul", b.apply("div", b.apply("sub", y, mean), spread), gamma), beta)
    gate = b.apply("min", b.apply("max", b.apply("add", y, b.const(3.0)), 0.0), 6.0)
    return b.graph(b.apply("div", b.apply("mul", y, gate), b.const(6.0)))


def conv_residual() -> Graph:
    b = Build()
    x = b.apply("max", b.layer2d(b.input(BATCH, 4, 7, 7), 8), 0.0)
    y = b.layer2d(b.apply("max", b.layer2d(x, 8), 0.0), 8, groups=8)
    short = b.pad(b.cut(x, (0,) * 4, (1, 1, 2, 2), (BATCH, 8, 4, 4)), (0, 2, 0, 0), (0, 2, 0, 0))
    deep = b.layer2d(b.apply("max", b.apply("add", x, y), 0.0), 12, stride=2)
    return b.graph(b.apply("max", b.apply("add", deep, short), 0.0))


def conv_scaled_input() -> Graph:
    """A shift reaches into the weight only where nothing is padded, a multiple always."""
    b = Build()
    x = b.input(2, 4, 6, 6)
    shifted = b.apply("mul", b.apply("sub", x, b.random(4, 1, 1)), b.random(4, 1, 1))
    left = b.conv(shifted, b.random(6, 2, 3, 3), groups=2)
    right = b.conv(b.apply("mul", x, b.random(1, 4, 1, 1)), b.random(3, 4, 3, 3), padding=(1, 1, 0, 0))
    other = b.conv(b.apply("add", x, b.const(0.5)), b.random(3, 4, 3, 3), padding=(1, 1, 1, 1))
    return b.graph(left, right, b.apply("mul", other, b.const(2.0)))


def conv_weight_shared() -> Graph:
    b = Build()
    x, w = b.input(BATCH, 3, 5, 5), b.random(4, 3, 1, 1)
    scaled = b.apply("mul", b.conv(x, w), b.random(4, 1, 1))
    return b.graph(b.apply("tanh", scaled), b.apply("add", b.conv(x, w, (2, 2)), b.random(4, 1, 1)))


def conv_padded_before() -> Graph:
    b = Build()
    x = b.pad(b.input(BATCH, 2, 6, 6), (0, 0, 1, 1), (0, 0, 2, 0))
    y = b.conv(x, b.random(4, 2, 3, 3), padding=(0, 1, 0, 1))
    ones = b.pad(b.input(BATCH, 2, 6, 6), (0, 0, 1, 1), (0, 0, 1, 1), 1.0)
    kept = b.conv(ones, b.random(4, 2, 2, 2))
    sequence = b.pad(b.input(BATCH, 2, 9), (0, 0, 3), (0, 0, 1))
    image = b.conv(b.reshape(sequence, BATCH, 2, 1, 13), b.random(3, 2, 1, 4))
    lowest = b.pool("max", b.pad(y, (0, 0, 1, 1), (0, 0, 1, 1), -np.inf), 3, 2)
    return b.graph(lowest, b.pool("mean", x, 3, 3), b.pool("mean", x, 3, 3, 1), kept, image)


def conv_sequence() -> Graph:
    """Convolved as images of height 1, shifted, activated and joined as sequences."""
    b = Build()
    x = b.input(BATCH, 4, 1, 11)
    left, right = (b.conv(x, b.random(6, 4, 1, 3), (1, 2)) for _ in range(2))
    y = b.apply("add", b.reshape(left, BATCH, 6, 5), b.random(1, 6, 1))
    y = b.apply("mul", y, b.apply("sigmoid", y))
    return b.graph(b.apply("add", b.reshape(right, BATCH, 6, 5), y))


def conv_gated() -> Graph:
    """A gate per image and channel is one per channel only where there is one image."""
    b = Build()

    def gated(x: str) -> str:
        gate = b.layer2d(b.reduce("mean", x, 2, 3, keepdims=True), 4, 1)
        y = b.layer2d(x, 4, 1)
        return b.apply("mul", y, b.apply("sigmoid", gate))

    return b.graph(gated(b.input(1, 4, 5, 5)), gated(b.input(BATCH, 4, 5, 5)))


def pyramid() -> Graph:
    b = Build()
    x = b.apply("max", b.layer2d(b.input(BATCH, 3, 8, 8), 4, stride=2), 0.0)
    small = b.layer2d(b.pool("max", x, 3, 2, 1), 4)
    large = b.apply("add", b.resize(small, 4, 4), x)
    mean = b.resize(b.pool("mean", x, 2, 2), 4, 4, "nearest", "asymmetric", "floor")
    return b.graph(b.concat(1, large, b.concat(1, mean, x)), b.resize(x, 4, 4))


def channel_shuffle() -> Graph:
    """ShuffleNet v2, as exported: joined, shuffled by a transpose, split by its first axis."""
    b = Build()
    x = b.concat(1, b.layer2d(b.input(1, 3, 4, 4), 3), b.input(1, 3, 4, 4))
    y = b.reshape(b.transpose(b.reshape(x, 3, 2, 16), 1, 0, 2), 2, 1, 3, 4, 4)
    parts = [b.cut(y, (part, 0, 0, 0, 0), (1,) * 5, (1, 1, 3, 4, 4)) for part in (0, 1)]
    left, right = (b.reshape(p, 1, 3, 4, 4) for p in parts)
    return b.graph(b.concat(1, left, b.layer2d(right, 3)))


def cuts_and_joins() -> Graph:
    b = Build()
    x, y = b.input(BATCH, 6, 5), b.input(BATCH, 4, 5)
    joined = b.concat(1, x, y)
    inside = b.channels(joined, 7, 9)
    across = b.channels(joined, 5, 8)
    twice = b.cut(b.cut(x, (0, 1, 0), (1, 2, 1), (BATCH, 3, 5)), (0, 1, 1), (1, 1, 3), (BATCH, 2, 2))
    whole = b.concat(1, b.channels(joined, 0, 6))
    padded = b.pad(b.pad(y, (0, 1, 0), (0, 0, 2)), (0, 0, 0), (0, 1, 1))
    fixed = b.cut(b.concat(0, b.random(2, 3), b.pad(b.random(1, 3), (1, 0), (0, 0))), (1, 0), (2, 2), (2, 2))
    return b.graph(inside, across, twice, whole, b.pad(padded, (0,) * 3, (0,) * 3), fixed)


IMAGES: tuple[Callable[[], Graph], ...] = (
    conv_batch_norm, conv_residual, conv_scaled_input, conv_weight_shared, conv_padded_before,
    conv_sequence, conv_gated, pyramid, channel_shuffle, cuts_and_joins,
)  # fmt: skip

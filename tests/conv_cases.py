"""Convolutions the kernel tests share, native and emulated, and what they should answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from kernel_cases import EPILOGUES, blocks_of_rows, groups_of_inputs, unstructured
from kernel_harness import Case

from sparsec.sparsity.pattern import infer
from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels import bsr_conv, csr_conv, dense_conv, nm_conv
from sparsec.targets.target import Packing, Problem, Target


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution to ``rows`` output channels of as many images as its geometry says."""

    rows: int
    geometry: Geometry

    @property
    def inner(self) -> int:
        """Weights an output element reads."""
        return self.geometry.channels * self.geometry.taps


def layer(
    rows: int, channels: int, size: tuple[int, int], kernel: tuple[int, int] = (1, 1),
    strides: tuple[int, int] = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1), groups: int = 1, images: int = 1,
) -> Layer:  # fmt: skip
    """A layer; ``padding`` is (top, left, bottom, right), ``channels`` those of all groups."""
    out = tuple(
        (size[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in (0, 1)
    )
    found = Geometry(
        channels // groups, *size, out[0], out[1], kernel, strides, padding[:2], dilation, groups, images
    )
    return Layer(rows, found)


#: what a kernel must get right, by name
LAYERS: Mapping[str, Layer] = {
    "one": layer(1, 1, (1, 1)),
    "odd": layer(7, 5, (13, 11), (3, 3), padding=(1, 1, 1, 1)),
    "three_images": layer(13, 4, (9, 10), (3, 3), padding=(1, 1, 1, 1), images=3),
    "unpadded": layer(10, 3, (12, 12), (5, 5)),
    "column": layer(6, 4, (19, 1), (3, 3), padding=(1, 1, 1, 1)),
    "row": layer(9, 6, (1, 45), (1, 5), padding=(0, 2, 0, 2), images=2),
    "tiny_map": layer(20, 8, (2, 2), (3, 3), padding=(1, 1, 1, 1)),
    "kernel_beyond_map": layer(5, 3, (3, 4), (7, 7), padding=(3, 3, 3, 3)),
    "padding_beyond_kernel": layer(3, 2, (4, 5), (3, 3), padding=(4, 4, 4, 4)),
    "whole_map_to_one": layer(21, 5, (6, 7), (6, 7)),
    "strided": layer(17, 6, (14, 15), (3, 3), (2, 2), (1, 1, 1, 1)),
    "stride_beyond_kernel": layer(8, 4, (17, 20), (2, 2), (3, 4)),
    "strided_point": layer(12, 16, (15, 14), strides=(2, 2)),
    "uneven_strides": layer(4, 3, (16, 23), (3, 4), (1, 3), (1, 0, 1, 2)),
    "first_layer": layer(16, 3, (37, 45), (7, 7), (2, 2), (3, 3, 3, 3)),
    "dilated": layer(9, 4, (14, 13), (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    "dilated_three": layer(5, 3, (16, 17), (3, 3), padding=(3, 3, 3, 3), dilation=(3, 3)),
    "dilated_strided": layer(6, 3, (19, 21), (3, 3), (2, 2), (2, 2, 2, 2), (2, 2)),
    "dilated_strided_three": layer(6, 3, (19, 21), (3, 2), (2, 3), (3, 1, 2, 0), (3, 2)),
    "same_at_the_end": layer(8, 3, (16, 16), (3, 3), (2, 2), (0, 0, 1, 1)),
    "uneven_padding": layer(11, 4, (9, 12), (4, 2), padding=(1, 0, 2, 1)),
    "grouped": layer(14, 6, (10, 17), (3, 3), padding=(1, 1, 1, 1), groups=2, images=2),
    "grouped_point": layer(18, 12, (5, 7), groups=3),
    "points": layer(29, 21, (7, 7), images=3),
    "many_points": layer(14, 33, (1, 611)),
    "few_points": layer(40, 30, (1, 5), images=2),
    "wide": layer(5, 2, (3, 530), (3, 3), padding=(1, 1, 1, 1)),
    "width_of_vectors": layer(12, 9, (6, 32), (3, 3), padding=(1, 1, 1, 1)),
}


#: wider than tall, several blocks of channels, rows that no micro-tile divides
MIXED = layer(23, 12, (9, 19), (3, 3), padding=(1, 1, 1, 1), images=2)
POINTS = layer(23, 72, (6, 9), images=2)

#: each kernel with zeros it is made for
WEIGHTS: Mapping[ModuleType, Callable[[int, int], Any]] = {
    dense_conv: lambda rows, inner: unstructured(rows, inner, 1.0),
    csr_conv: lambda rows, inner: unstructured(rows, inner, 0.3),
    bsr_conv: lambda rows, inner: blocks_of_rows(rows, inner, 0.3, 4),
    nm_conv: lambda rows, inner: groups_of_inputs(rows, inner, 2, 4),
}
#: settings that say how large something is, not how it is done
_SIZES = frozenset({"rows", "columns", "channels", "chunk", "chunks", "row_chunks", "vectors", "height"})


def weight_of(kernel: ModuleType, a: Layer) -> Any:
    """``[M, R*S*C]`` with zeros as the kernel wants them."""
    return WEIGHTS[kernel](a.rows, a.inner)


def suited(kernel: ModuleType, a: Layer) -> Layer:
    """The layer; for nm_conv with so many channels that whole groups of four lie within a tap."""
    g = a.geometry
    return Layer(a.rows, replace(g, channels=-(-g.channels // 4) * 4)) if kernel is nm_conv else a


def runs(kernel: ModuleType, a: Layer) -> bool:
    """Whether a kernel should accept the layer, its weight being what the kernel is made for."""
    if kernel is dense_conv:
        return True
    few = {bsr_conv: a.rows >= 4, nm_conv: a.geometry.taps <= 25}
    return a.geometry.groups == 1 and few.get(kernel, True)


def kinds(a: Layer, configs: Iterable[Mapping[str, int]]) -> list[Mapping[str, int]]:
    """The first configuration of every kind: all that is no size, and how tiles are cut."""
    found: dict[Any, Mapping[str, int]] = {}
    for c in configs:
        cut = c["rows"] == 1, c["columns"] == a.geometry.out_width, c["channels"] < a.geometry.channels
        found.setdefault((cut, tuple((k, v) for k, v in c.items() if k not in _SIZES)), c)
    return list(found.values())


def images(geometry: Geometry, x: Any) -> Any:
    """``x``, padded so that every tap of every output lies inside."""
    (high, wide), (sh, sw), (dh, dw) = geometry.kernel, geometry.strides, geometry.dilation
    (top, left), (oh, ow) = geometry.padding, (geometry.out_height, geometry.out_width)
    below = (oh - 1) * sh + (high - 1) * dh + 1 - geometry.height - top
    right = (ow - 1) * sw + (wide - 1) * dw + 1 - geometry.width - left
    return np.pad(x, ((0, 0), (0, 0), (top, max(0, below)), (left, max(0, right))))


def convolve(geometry: Geometry, weight: Any, x: Any) -> Any:
    """``weight[M, R*S*C]`` over ``x[N, groups*C, H, W]``, float64."""
    (high, wide), (sh, sw), (dh, dw) = geometry.kernel, geometry.strides, geometry.dilation
    groups, count = geometry.groups, x.shape[0]
    oh, ow = geometry.out_height, geometry.out_width
    taps = weight.astype(np.float64).reshape(groups, -1, high, wide, geometry.channels)
    padded = images(geometry, x.astype(np.float64))
    split = padded.reshape(count, groups, geometry.channels, *padded.shape[2:])
    y = np.zeros((count, groups, taps.shape[1], oh, ow))
    for r in range(high):
        for s in range(wide):
            below, right = r * dh + (oh - 1) * sh + 1, s * dw + (ow - 1) * sw + 1
            window = split[..., r * dh : below : sh, s * dw : right : sw]
            y += np.einsum("gmc,ngchw->ngmhw", taps[:, :, r, s], window)
    return y.reshape(count, -1, oh, ow)


def conv_configs(kernel: ModuleType, a: Layer, weight: Any, target: Target) -> Any:
    """What the kernel offers for a layer, nothing if it does not accept it."""
    problem, pattern = problem_of(a), infer(weight)
    return kernel.space(problem, pattern, target) if kernel.accepts(problem, pattern, target) else ()


def problem_of(a: Layer, epilogue: str = "none", known: bool = True) -> Problem:
    """The layer as a kernel sees it; its images may only be known at run time."""
    ending, g = EPILOGUES[epilogue], a.geometry
    told = g if known else replace(g, images=None)
    columns = (g.images or 1) * g.positions if known else None
    return Problem(a.rows, a.inner, columns, 0, ending.expression, ending.extras, conv=told)


def make_conv_case(
    kernel: ModuleType, a: Layer, weight: Any, target: Target, config: Mapping[str, int],
    epilogue: str = "none", known: bool = True, seed: int = 0,
) -> Case:  # fmt: skip
    """Pack a weight ``[M, R*S*C]`` and draw fresh inputs."""
    g, ending = a.geometry, EPILOGUES[epilogue]
    count = g.images or 1
    problem = problem_of(a, epilogue, known)
    packing = kernel.pack(weight, problem, config, target)
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, g.groups * g.channels, g.height, g.width)).astype(np.float32)
    shape = (count, a.rows, g.out_height, g.out_width)
    sizes = {"row": (a.rows, 1, 1), "full": shape, "one": (1,)}
    extras = [random.standard_normal(sizes[kind]).astype(np.float32) for kind in ending.extras]
    scratch = getattr(kernel, "scratch_floats", lambda *_: 16)
    magnitude = convolve(g, np.abs(weight), np.abs(x))
    # kernels must not look at the arrays: equal problems share one compiled kernel
    blind = Packing({}, packing.tiles, packing.config)
    return Case(
        label=f"{kernel.name} {target.name} {a} {epilogue} {dict(config)}",
        target=target,
        key=(kernel.name, problem, packing.config, target),
        emit=lambda name: kernel.emit(problem, blind, target, name),
        inputs=(x, *packing.arrays.values(), *extras),
        shape=shape,
        # where lanes hold images, the kernel counts the tiles of all of them
        tiles=packing.tiles * (1 if config.get("images") else count),
        expected=ending.reference(convolve(g, weight, x), *(e.astype(np.float64) for e in extras)),
        # a sum's rounding: see kernel_harness.rounding
        allowed=1.2 * np.finfo(np.float32).eps * (4 + a.inner**0.5) * magnitude + 3e-6,
        numbers=() if known else (count,),
        scratch_floats=scratch(problem, packing, target),
        config=dict(packing.config),
    )

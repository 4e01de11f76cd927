"""What sliding windows, resampling, joining and cutting mean, in plain NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import ConvAttrs, PadAttrs, PoolAttrs, ResizeAttrs, SliceAttrs
from sparsec.ir.resampling import taps
from sparsec.ir.verify_windows import positions

Array: TypeAlias = NDArray[Any]


def conv2d(attrs: ConvAttrs, x: Array, w: Array) -> Array:
    """``x[N, C, H, W]`` correlated with ``w[M, C/groups, R, S]``; without the epilogue."""
    images, channels = x.shape[:2]
    outputs, inner, rows, columns = w.shape
    top, left, bottom, right = attrs.padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    sizes = [
        positions(padded.shape[2 + a], w.shape[2 + a], attrs.strides[a], attrs.dilation[a]) for a in (0, 1)
    ]
    groups = attrs.groups
    weight = w.reshape(groups, outputs // groups, inner, rows, columns)
    result: Array = np.zeros((images, groups, outputs // groups, sizes[0] * sizes[1]), np.result_type(x, w))
    for tap, seen in _windows(padded, (rows, columns), sizes, attrs.strides, attrs.dilation):
        result += weight[:, :, :, *tap] @ seen.reshape(images, groups, channels // groups, -1)
    return result.reshape(images, outputs, *sizes)


def pool(attrs: PoolAttrs, x: Array, sizes: Sequence[int]) -> Array:
    """Windows of ``x[N, C, H, W]`` at ``sizes`` (rows, columns) positions, reduced to one number."""
    if attrs.kind == "max":
        widened = _widened(attrs, x, sizes, -np.inf)
        found: Array = np.maximum.reduce([seen for _, seen in _pool_windows(attrs, widened, sizes)])
        return found
    widened = _widened(attrs, x, sizes, 0.0)
    counted = _widened(attrs, _counted(attrs, x), sizes, 0.0, attrs.count_padding)
    total, count = (
        np.add.reduce([seen for _, seen in _pool_windows(attrs, some, sizes)]) for some in (widened, counted)
    )
    found = total / count
    return found


def resize(attrs: ResizeAttrs, x: Array, sizes: Sequence[int]) -> Array:
    """``x[N, C, H, W]`` resampled to ``sizes`` (rows, columns)."""
    for axis, size in zip((2, 3), sizes, strict=True):
        low, high, weight = taps(attrs, x.shape[axis], size)
        first = x.take(low, axis)
        second = weight.astype(x.dtype).reshape(-1, *[1] * (3 - axis))
        x = first * (1 - second) + x.take(high, axis) * second if weight.any() else first
    return x


def cut(attrs: SliceAttrs, x: Array, shape: Sequence[int]) -> Array:
    """The elements of x from ``begin`` by ``step`` that give ``shape``."""
    spans = zip(attrs.begin, attrs.step, shape, strict=True)
    return x[tuple(slice(begin, begin + step * size, step) for begin, step, size in spans)]


def pad(attrs: PadAttrs, x: Array, shape: Sequence[int]) -> Array:
    """x with ``value`` around it, ``shape`` in all."""
    found = np.full(shape, attrs.value, x.dtype)
    found[tuple(slice(b, b + size) for b, size in zip(attrs.before, x.shape, strict=True))] = x
    return found


def _windows(
    x: Array, kernel: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, int], Array]]:
    """For each tap the elements it reads, ``sizes`` (rows, columns) of them per channel."""
    for row, column in product(range(kernel[0]), range(kernel[1])):
        first = (row * dilation[0], column * dilation[1])
        rows, columns = (
            slice(f, f + (size - 1) * stride + 1, stride)
            for f, size, stride in zip(first, sizes, strides, strict=True)
        )
        yield (row, column), x[:, :, rows, columns]


def _pool_windows(
    attrs: PoolAttrs, x: Array, sizes: Sequence[int]
) -> Iterator[tuple[tuple[int, int], Array]]:
    return _windows(x, attrs.kernel, sizes, attrs.strides, attrs.dilation)


def _counted(attrs: PoolAttrs, x: Array) -> Array:
    """1 for every element that a mean divides by, before anything that hangs over the end."""
    top, left, bottom, right = attrs.padding if attrs.count_padding else (0, 0, 0, 0)
    return np.ones((1, 1, x.shape[2] + top + bottom, x.shape[3] + left + right), x.dtype)


def _widened(attrs: PoolAttrs, x: Array, sizes: Sequence[int], value: float, padded: bool = False) -> Array:
    """x with its padding (unless it has it) and what windows hang over the end, filled with ``value``."""
    before = (0, 0) if padded else attrs.padding[:2]
    around = [(0, 0), (0, 0)]
    for axis in (0, 1):
        reach = (sizes[axis] - 1) * attrs.strides[axis] + (attrs.kernel[axis] - 1) * attrs.dilation[axis] + 1
        after = reach - before[axis] - x.shape[2 + axis]
        around.append((before[axis], max(0, after)))
    return np.pad(x, around, constant_values=value)

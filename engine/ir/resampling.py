"""Where a resized axis reads from: shared by the meaning of ``resize`` and by the kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsec.ir.attributes import ResizeAttrs

    Array: TypeAlias = NDArray[Any]

_HALF = Fraction(1, 2)


def taps(attrs: ResizeAttrs, in_size: int, out_size: int) -> tuple[Array, Array, Array]:
    """For each output index the two input indices it reads and the weight of the second.

    Positions are exact fractions, so ties round as ``attrs.rounding`` says.  Nearest reads one
    index twice with weight 0.

    Returns:
        low (int64), high (int64) and weight (float64), ``out_size`` of each.
    """
    last = in_size - 1
    place = COORDINATES[attrs.coordinates]
    places = [min(max(place(i, in_size, out_size), Fraction(0)), Fraction(last)) for i in range(out_size)]
    if attrs.method == "nearest":
        low = high = [ROUNDINGS[attrs.rounding](p) for p in places]
    else:
        low = [floor(p) for p in places]
        high = [min(i + 1, last) for i in low]
    weight = [float(p - i) if h > i else 0.0 for p, i, h in zip(places, low, high, strict=True)]
    return np.array(low, np.int64), np.array(high, np.int64), np.array(weight, np.float64)


def _half_pixel(index: int, in_size: int, out_size: int) -> Fraction:
    return (index + _HALF) * Fraction(in_size, out_size) - _HALF


def _pytorch_half_pixel(index: int, in_size: int, out_size: int) -> Fraction:
    return _half_pixel(index, in_size, out_size) if out_size > 1 else Fraction(0)


def _align_corners(index: int, in_size: int, out_size: int) -> Fraction:
    return Fraction(index * (in_size - 1), out_size - 1) if out_size > 1 else Fraction(0)


def _asymmetric(index: int, in_size: int, out_size: int) -> Fraction:
    return Fraction(index * in_size, out_size)


#: ONNX Resize's coordinate transformations: output index, input size, output size -> position
COORDINATES: Mapping[str, Callable[[int, int, int], Fraction]] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
}
#: ONNX Resize's nearest modes
ROUNDINGS: Mapping[str, Callable[[Fraction], int]] = {
    "floor": floor,
    "ceil": ceil,
    "round_prefer_floor": lambda place: ceil(place - _HALF),
    "round_prefer_ceil": lambda place: floor(place + _HALF),
}

"""ONNX's Resize and Upsample by nearest or linear interpolation, with the very scales they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tvm import ir as tvm_ir
from tvm import relax

from sparsec.frontends.relax_resampling import from_taps, resampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

#: what Resize meant before it had words for it (opset 10), and Upsample always
_OLD: Mapping[str, Any] = {"coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}
_HALF = np.float32(0.5)


def _resize(emit: Callable[[Any], Any], inputs: list[Any], attrs: Mapping[str, Any], opset: int) -> Any:
    """Resize; None for what Relax's own resize is left to.

    Raises:
        ValueError: a size that Relax would take for another.
    """
    x = inputs[0]
    old = opset < 11
    scales = _numbers(inputs, 1 if old else 2)
    sizes = None if old else _numbers(inputs, 3)
    found = _resized(emit, x, scales, sizes, {**attrs, **_OLD} if old else attrs)
    if found is None:
        _refuse_fractions(x, scales)
    return found


def _upsample(emit: Callable[[Any], Any], inputs: list[Any], attrs: Mapping[str, Any], opset: int) -> Any:
    """Upsample, the older name.

    Raises:
        ValueError: scales that depend on the data, or sizes that are open.
    """
    given = np.array(attrs["scales"], np.float32) if opset < 9 else _numbers(inputs, 1)
    mode = {b"bilinear": b"linear"}.get(attrs.get("mode", b"nearest"), attrs.get("mode", b"nearest"))
    found = _resized(emit, inputs[0], given, None, {**_OLD, "mode": mode})
    if found is None:
        raise ValueError("Upsample of open sizes, or by scales that depend on the data")
    return found


def _numbers(inputs: list[Any], index: int) -> Array | None:
    """A constant operand with anything in it."""
    given = inputs[index] if index < len(inputs) else None
    values: Array | None = given.value.numpy() if isinstance(given, tvm_ir.GenericConst) else None
    return values if values is not None and values.size else None


def _resized(
    emit: Callable[[Any], Any], x: Any, scales: Array | None, sizes: Array | None, attrs: Mapping[str, Any]
) -> Any:
    method = attrs.get("mode", b"nearest").decode()
    coordinates = attrs.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounding = attrs.get("nearest_mode", b"round_prefer_floor").decode()
    known = isinstance(x.ty, relax.TensorType) and x.ty.shape is not None and x.ty.dtype.dtype == "float32"
    if not known or method not in ("nearest", "linear") or coordinates not in _PLACES:
        return None
    if (scales is None) == (sizes is None):
        return None
    matrices = {}
    for axis, extent in enumerate(x.ty.shape.values):
        if scales is not None and scales[axis] == 1:
            continue
        if not hasattr(extent, "value"):
            return None
        size = int(extent.value)
        wanted = int(sizes[axis]) if sizes is not None else int(np.float32(size) * scales[axis])  # type: ignore[index]
        scale = np.float32(wanted) / np.float32(size) if scales is None else np.float32(scales[axis])
        places = _PLACES[coordinates](np.arange(wanted, dtype=np.float32), scale, size, wanted)
        matrices[axis] = _matrix(places, size, method, rounding)
    return resampled(emit, x, matrices)


def _matrix(places: Array, size: int, method: str, rounding: str) -> Array:
    if method == "nearest":
        chosen = np.clip(_ROUNDINGS[rounding](places), 0, size - 1).astype(np.int64)
        return from_taps(chosen, chosen, np.zeros(len(chosen)), size)
    inside = np.clip(places, 0, size - 1)
    low = np.floor(inside).astype(np.int64)
    return from_taps(low, np.minimum(low + 1, size - 1), inside - low, size)


def _half_pixel(index: Array, scale: Any, _size: int, _wanted: int) -> Array:
    found: Array = (index + _HALF) / scale - _HALF
    return found


def _pytorch_half_pixel(index: Array, scale: Any, size: int, wanted: int) -> Array:
    return _half_pixel(index, scale, size, wanted) if wanted > 1 else np.zeros_like(index)


def _align_corners(index: Array, _scale: Any, size: int, wanted: int) -> Array:
    found: Array = (
        index * np.float32(size - 1) / np.float32(wanted - 1) if wanted > 1 else np.zeros_like(index)
    )
    return found


def _asymmetric(index: Array, scale: Any, _size: int, _wanted: int) -> Array:
    found: Array = index / scale
    return found


#: in float32, as other runtimes compute
_PLACES: Mapping[str, Callable[[Array, Any, int, int], Array]] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
}
_ROUNDINGS: Mapping[str, Callable[[Array], Array]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda p: np.ceil(p - _HALF),
    "round_prefer_ceil": lambda p: np.floor(p + _HALF),
}


def _refuse_fractions(x: Any, scales: Array | None) -> None:
    """Relax uses the ratio of the sizes where ONNX uses the given scale."""
    if scales is None or not isinstance(x.ty, relax.TensorType) or x.ty.shape is None:
        return
    for size, scale in zip(x.ty.shape.values, scales.tolist(), strict=False):
        known = int(size.value) if hasattr(size, "value") else 1
        if not float(known * scale).is_integer():
            raise ValueError(f"Resize by {scale:g} of {size}: the result is rounded to a whole size")


#: (emit, inputs, attributes, opset) -> a Relax expression, or None to leave the node to TVM
RESAMPLING: Mapping[str, Callable[[Callable[[Any], Any], list[Any], Mapping[str, Any], int], Any]] = {
    "Resize": _resize,
    "Upsample": _upsample,
}

"""Converters of our own, where TVM's lose structure, lose a shape, or are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import onnx
from tvm import ir as tvm_ir
from tvm import relax, tirx
from tvm.relax.frontend.onnx import onnx_frontend

from sparsec.errors import Unsupported

#: (inputs, attributes, opset) -> a Relax expression, or None to leave the node to TVM
Converter: TypeAlias = Callable[[list[Any], Mapping[str, Any], int], Any]


def _cast(inputs: list[Any], attrs: Mapping[str, Any], _opset: int) -> Any:
    """TVM makes a tensor of a shape with open sizes; as whole numbers of any width it stays a shape."""
    whole = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    return inputs[0] if isinstance(inputs[0], relax.ShapeExpr) and attrs["to"] in whole else None


def _concat(inputs: list[Any], _attrs: Mapping[str, Any], _opset: int) -> Any:
    """Shapes joined with whole numbers are a shape; TVM knows that for int64 only."""
    shapes = [i for i in inputs if isinstance(i, relax.ShapeExpr)]
    rest = [i for i in inputs if not isinstance(i, relax.ShapeExpr)]
    if not shapes or not all(_is_shape_like(i) for i in rest):
        return None
    sizes: list[Any] = []
    for i in inputs:
        sizes += list(i.values) if isinstance(i, relax.ShapeExpr) else i.value.numpy().tolist()
    return relax.ShapeExpr(sizes)


def _is_shape_like(value: Any) -> bool:
    return isinstance(value, tvm_ir.GenericConst) and value.value.numpy().dtype.kind == "i"


def _clip(inputs: list[Any], attrs: Mapping[str, Any], _opset: int) -> Any:
    """TVM lowers Clip to TIR at once; constant bounds stay elementwise operators here."""
    result = inputs[0]
    bounds = [_scalar(_get(inputs, 1), attrs.get("min")), _scalar(_get(inputs, 2), attrs.get("max"))]
    if not isinstance(result.ty, relax.TensorType) or any(b is _UNKNOWN for b in bounds):
        return None
    dtype = str(result.ty.dtype.dtype)
    for bound, function in zip(bounds, (relax.op.maximum, relax.op.minimum), strict=True):
        if bound is not None and np.isfinite(bound):
            result = function(result, relax.const(bound, dtype))
    return result if result is not inputs[0] else None


_UNKNOWN = object()


def _scalar(operand: Any, attribute: Any) -> Any:
    if operand is None:
        return attribute
    if not isinstance(operand, tvm_ir.GenericConst):
        return _UNKNOWN
    return operand.value.numpy().reshape(-1)[0].item()


def _gather(inputs: list[Any], attrs: Mapping[str, Any], _opset: int) -> Any:
    """TVM wraps negative indices at run time; constant ones are wrapped here."""
    data, indices = inputs[0], inputs[1]
    axis = int(attrs.get("axis", 0))
    if not isinstance(indices, tvm_ir.GenericConst) or not isinstance(data.ty, relax.TensorType):
        return None
    if isinstance(data, tvm_ir.GenericConst) or data.ty.shape is None:
        return None
    extent = data.ty.shape.values[axis]
    wanted = indices.value.numpy()
    if (wanted < 0).any():
        if not hasattr(extent, "value"):
            return _from_the_end(data, axis, extent, wanted) if wanted.size == 1 else None
        wanted = np.where(wanted < 0, wanted + int(extent.value), wanted)
    return relax.op.take(data, relax.const(wanted, str(wanted.dtype)), axis, mode="clip")


def _from_the_end(data: Any, axis: int, extent: Any, wanted: Any) -> Any:
    """One element of an axis of open size, counted from its end."""
    first = extent + int(wanted.reshape(()))
    part = relax.op.strided_slice(data, [axis], [first], [first + 1], assume_inbound=True)
    sizes = list(data.ty.shape.values)
    axis %= len(sizes)
    return relax.op.reshape(part, [*sizes[:axis], *wanted.shape, *sizes[axis + 1 :]])


def _slice(inputs: list[Any], _attrs: Mapping[str, Any], _opset: int) -> Any:
    """To the end of an axis of open size: TVM keeps the bound that stands for the end in the size."""
    data, given = inputs[0], [_get(inputs, i) for i in range(1, 5)]
    known = all(isinstance(g, tvm_ir.GenericConst) for g in given if g is not None)
    if not known or not isinstance(data.ty, relax.TensorType) or data.ty.shape is None:
        return None
    sizes = list(data.ty.shape.values)
    begins, ends, axes, steps = ([] if g is None else g.value.numpy().tolist() for g in given)
    axes, steps = axes or range(len(begins)), steps or [1] * len(begins)
    cuts, changed = [], False
    for axis, begin, end, step in zip((a % len(sizes) for a in axes), begins, ends, steps, strict=True):
        if begin < 0 or end < _TO_THE_END or step < 1 or isinstance(sizes[axis], tirx.IntImm):
            cuts.append((axis, begin, end, step))
            continue
        changed = True
        if (begin, step) != (0, 1):
            cuts.append((axis, begin, sizes[axis], step))
    if not changed or not cuts:
        return data if changed else None
    return relax.op.strided_slice(data, *map(list, zip(*cuts, strict=True)))


#: exporters write this (TensorFlow's) or more where a slice runs to the end of its axis
_TO_THE_END = 10**9


def _softmax(function: Callable[..., Any]) -> Converter:
    def convert(inputs: list[Any], attrs: Mapping[str, Any], opset: int) -> Any:
        """Before opset 13 the axes from ``axis`` on are one; TVM keeps to that only for known shapes."""
        x = inputs[0]
        if opset >= 13 or not isinstance(x.ty, relax.TensorType) or x.ty.shape is None:
            return None
        sizes = list(x.ty.shape.values)
        axis = int(attrs.get("axis", 1)) % max(len(sizes), 1)
        if axis == len(sizes) - 1:
            return function(x, axis=-1)
        flat = [_product(sizes[:axis]), _product(sizes[axis:])]
        return relax.op.reshape(function(relax.op.reshape(x, flat), axis=-1), sizes)

    return convert


def _product(sizes: Sequence[Any]) -> Any:
    total: Any = tirx.IntImm("int64", 1)
    for size in sizes:
        total = total * size
    return total


def _unsqueeze(inputs: list[Any], _attrs: Mapping[str, Any], _opset: int) -> Any:
    """One axis may be given as a plain number; TVM wants a list."""
    axes = _get(inputs, 1)
    if isinstance(axes, tvm_ir.GenericConst) and axes.value.numpy().ndim == 0:
        inputs[1] = relax.const(axes.value.numpy().reshape(1), "int64")
    return None


def _get(inputs: Any, index: int) -> Any:
    return inputs[index] if index < len(inputs) else None


def _pairwise(function: Callable[[Any, Any], Any]) -> Converter:
    def convert(inputs: list[Any], _attrs: Mapping[str, Any], _opset: int) -> Any:
        """TVM stacks the operands and reduces; pairs stay elementwise."""
        if all(isinstance(i, tvm_ir.GenericConst) for i in inputs):
            return None
        return reduce(function, inputs)

    return convert


def _prelu(inputs: list[Any], _attrs: Mapping[str, Any], _opset: int) -> Any:
    """``max(x, 0) + slope * min(x, 0)``, the slope broadcast from the right."""
    x, slope = inputs[0], inputs[1]
    zero = relax.const(0, str(x.ty.dtype.dtype))
    negative = relax.op.multiply(slope, relax.op.minimum(x, zero))
    return relax.op.add(relax.op.maximum(x, zero), negative)


def _dropout(inputs: list[Any], _attrs: Mapping[str, Any], _opset: int) -> Any:
    """Dropout that stays on outside training is not an inference model's."""
    training = _scalar(_get(inputs, 2), False)
    if training is _UNKNOWN or training:
        raise ValueError("Dropout in training mode; export the model for inference")
    return None


# -- operators of the first converters from Caffe and Core ML, never in ONNX's standard


def _affine(inputs: list[Any], attrs: Mapping[str, Any], _opset: int) -> Any:
    """``alpha * x + beta``."""
    return _scaled(inputs[0], float(attrs.get("alpha", 1.0)), relax.const(attrs.get("beta", 0.0), "float32"))


def _image_scaler(inputs: list[Any], attrs: Mapping[str, Any], _opset: int) -> Any:
    """``scale * x + bias``, a bias for every channel."""
    bias = np.array(attrs.get("bias", [0.0]), np.float32).reshape(-1, 1, 1)
    return _scaled(inputs[0], float(attrs.get("scale", 1.0)), relax.const(bias))


def _scaled(x: Any, factor: float, shift: Any) -> Any:
    return relax.op.add(x if factor == 1 else relax.op.multiply(x, relax.const(factor, "float32")), shift)


def _crop(inputs: list[Any], attrs: Mapping[str, Any], _opset: int) -> Any:
    """Rows and columns cut off an image: ``border`` is left, top, right, bottom; ``scale`` the size kept."""
    x = inputs[0]
    left, top, right, bottom = (int(b) for b in attrs["border"])
    if "scale" in attrs:
        ends = [top + int(attrs["scale"][0]), left + int(attrs["scale"][1])]
    else:
        height, width = x.ty.shape.values[2:]
        ends = [height - bottom, width - right]
    return relax.op.strided_slice(x, [2, 3], [top, left], ends)


def _conv_transpose(inputs: list[Any], attrs: Mapping[str, Any], opset: int) -> Any:
    """``output_shape`` as the paddings it stands for."""
    wanted = attrs.get("output_shape")
    if not wanted:
        return None
    sizes = inputs[0].ty.shape.values[2:]
    kernel = [int(s) for s in inputs[1].ty.shape.values[2:]]
    rank = len(kernel)
    if not all(isinstance(s, tirx.IntImm) for s in sizes):
        raise Unsupported("an output_shape of inputs of open size is not supported")
    strides, dilations = (attrs.get(name, (1,) * rank) for name in ("strides", "dilations"))
    extra = list(attrs.get("output_padding", (0,) * rank))
    begin, end = [0] * rank, [0] * rank
    for i, size in enumerate(sizes):
        full = strides[i] * (int(size) - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1
        surplus = full - int(wanted[-rank:][i])
        extra[i] += max(-surplus, 0)
        half = max(surplus, 0) // 2
        first = half if attrs.get("auto_pad") == b"SAME_UPPER" else max(surplus, 0) - half
        begin[i], end[i] = first, max(surplus, 0) - first
    known = {k: v for k, v in attrs.items() if k not in ("output_shape", "auto_pad")}
    given = known | {"pads": begin + end, "output_padding": extra, "kernel_shape": kernel}
    return onnx_frontend.ConvTranspose.get_converter(opset)(None, inputs, given, None)


CONVERTERS: Mapping[str, Converter] = {
    "Affine": _affine,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "ConvTranspose": _conv_transpose,
    "Crop": _crop,
    "Dropout": _dropout,
    "Gather": _gather,
    "ImageScaler": _image_scaler,
    "LogSoftmax": _softmax(relax.op.nn.log_softmax),
    "Max": _pairwise(relax.op.maximum),
    "Min": _pairwise(relax.op.minimum),
    "PRelu": _prelu,
    "Slice": _slice,
    "Softmax": _softmax(relax.op.nn.softmax),
    "Squeeze": _unsqueeze,
    "Sum": _pairwise(relax.op.add),
    "Unsqueeze": _unsqueeze,
}

"""TVM's ONNX importer, kept apart from its weaknesses.

It names the variables after the model's nodes, goes on after an operator it cannot convert (so
that one error lists all of them), and replaces converters that lose structure.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import onnx
from tvm import ir as tvm_ir
from tvm import relax, tirx
from tvm.relax.frontend.onnx import onnx_frontend

#: (inputs, attributes, opset) -> a Relax expression, or None to leave the node to TVM
Converter: TypeAlias = Callable[[list[Any], Mapping[str, Any], int], Any]

#: operators the importer handles outside its table
_BUILT_IN = frozenset({"If", "Constant"})


#: TVM knows another domain's operator of this name
_OTHER_MEANING = frozenset({"Attention"})


def missing_operators(graph: onnx.GraphProto) -> list[tuple[str, str, str]]:
    """(operator, node, reason) for every node TVM's importer has no right converter for."""
    known = (onnx_frontend._get_convert_map().keys() | _BUILT_IN) - _OTHER_MEANING
    found = [
        (n.op_type, n.name, "TVM's importer does not know it") for n in graph.node if n.op_type not in known
    ]
    return found + [(n.op_type, n.name, wrong) for n in graph.node if (wrong := _wrong_values(n))]


def _wrong_values(node: onnx.NodeProto) -> str:
    """Why TVM's importer computes something else than ONNX defines for this node, or nothing.

    Found by running ONNX's backend suite through TVM 0.27.
    """
    rule = _WRONG.get(node.op_type)
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return f"TVM's importer does not honour {rule[0]}" if rule and rule[1](node, given) else ""


def _unusual_resize(_node: onnx.NodeProto, given: Mapping[str, Any]) -> bool:
    policy = given.get("keep_aspect_ratio_policy", b"stretch")
    return bool(given.get("antialias")) or "axes" in given or policy != b"stretch"


def _one_sided(_node: onnx.NodeProto, given: Mapping[str, Any]) -> bool:
    return 0 in (given.get("detect_positive", 1), given.get("detect_negative", 1))


_WRONG: Mapping[str, tuple[str, Callable[[onnx.NodeProto, Mapping[str, Any]], bool]]] = {
    "BatchNormalization": ("training_mode", lambda _n, a: bool(a.get("training_mode"))),
    "ConvTranspose": ("output_shape", lambda _n, a: "output_shape" in a),
    "IsInf": ("detect_positive and detect_negative", _one_sided),
    "LayerNormalization": ("the Mean and InvStdDev outputs", lambda n, _a: any(n.output[1:])),
    "Resize": ("antialias, axes and keep_aspect_ratio_policy", _unusual_resize),
    "RoiAlign": ("mode max", lambda _n, a: a.get("mode") == b"max"),
    "SpaceToDepth": ("mode CRD", lambda _n, a: a.get("mode", b"DCR") != b"DCR"),
}


class Importer(onnx_frontend.ONNXGraphImporter):  # type: ignore[misc]
    """Imports a prepared graph; ``origins`` and ``failures`` are filled while it runs."""

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        super().__init__({}, "float32", keep_params_in_input=False, sanitize=False)
        self.inferred = outputs
        self.origins: dict[str, tuple[str, str]] = {}
        self.failures: list[tuple[str, str, str]] = []
        self.outputs_of: dict[str, Sequence[str]] = {}

    def run(self, graph: onnx.GraphProto, opset: int) -> Any:
        """The Relax module of a prepared graph."""
        self.outputs_of = {node.name: list(node.output) for node in graph.node}
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return self.from_onnx(graph, opset)

    def _convert_operator(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        node = str(attrs["tvm_custom"]["name"])
        try:
            result = self._converted(op_name, inputs, attrs, opset)
        except Exception as failure:
            stand_in = self._stand_in(node)
            if stand_in is None:
                raise ImportStopped(op_name, node, str(failure)) from failure
            self.failures.append((op_name, node, _reason(failure)))
            return stand_in
        return self._named(result, op_name, node)

    def _converted(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        own = _OWN.get(op_name)
        result = own(inputs, attrs, opset) if own else None
        if result is not None:
            return self.bb.normalize(result)
        return super()._convert_operator(op_name, inputs, attrs, opset)

    def _named(self, result: Any, op_name: str, node: str) -> Any:
        if isinstance(result, relax.Var):
            self.origins.setdefault(str(result.name), (op_name, node))
        if not isinstance(result, tvm_ir.Call) or isinstance(result.ty, relax.ShapeType):
            return result
        if tvm_ir.is_prim_expr(result):
            return result
        var = self.bb.emit(result, name_hint=re.sub(r"\W", "_", node) or "node")
        self.origins[str(var.name)] = (op_name, node)
        return var

    def _stand_in(self, node: str) -> Any:
        """Free variables with the inferred types of a node's outputs, or None if they are not known."""
        types = [self.inferred.get(name) for name in self.outputs_of[node]]
        if not types or any(t is None for t in types):
            return None
        made = [relax.Var(f"refused_{i}", t) for i, t in enumerate(types)]
        return made[0] if len(made) == 1 else relax.Tuple(made)


class ImportStopped(Exception):
    """An operator failed and nothing after it can be examined."""

    def __init__(self, operator: str, node: str, reason: str) -> None:
        super().__init__(reason)
        self.failure = (operator, node, _reason(self))


def inferred_types(inferred: onnx.ModelProto) -> dict[str, Any]:
    """Relax types of the values whose shape is all numbers."""
    found: dict[str, Any] = {}
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        tensor = value.type.tensor_type
        sizes = list(tensor.shape.dim)
        if tensor.elem_type and tensor.HasField("shape") and all(d.HasField("dim_value") for d in sizes):
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            found[value.name] = relax.TensorType([d.dim_value for d in sizes], dtype)
    return found


def _reason(failure: Exception) -> str:
    text = (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
    return f"TVM's importer refuses it here: {text[:200]}"


# -- converters of our own


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
            return None
        wanted = np.where(wanted < 0, wanted + int(extent.value), wanted)
    return relax.op.take(data, relax.const(wanted, str(wanted.dtype)), axis, mode="clip")


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


def _resize(inputs: list[Any], attrs: Mapping[str, Any], _opset: int) -> Any:
    """TVM uses the ratio of the sizes where ONNX uses the given scale: refuse where they differ."""
    scales = _get(inputs, 2)
    if not isinstance(scales, tvm_ir.GenericConst) or not isinstance(inputs[0].ty, relax.TensorType):
        return None
    for size, scale in zip(inputs[0].ty.shape.values, scales.value.numpy().tolist(), strict=False):
        known = int(size.value) if hasattr(size, "value") else 1
        if not float(known * scale).is_integer():
            raise ValueError(f"Resize by {scale:g} of {size}: the result is rounded to a whole size")
    return None


_OWN: Mapping[str, Converter] = {
    "Clip": _clip,
    "Dropout": _dropout,
    "Gather": _gather,
    "LogSoftmax": _softmax(relax.op.nn.log_softmax),
    "Max": _pairwise(relax.op.maximum),
    "Min": _pairwise(relax.op.minimum),
    "PRelu": _prelu,
    "Resize": _resize,
    "Softmax": _softmax(relax.op.nn.softmax),
    "Sum": _pairwise(relax.op.add),
}

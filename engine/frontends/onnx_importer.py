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


def missing_operators(graph: onnx.GraphProto) -> list[tuple[str, str, str]]:
    """(operator, node, reason) for every node TVM's importer has no converter for."""
    known = onnx_frontend._get_convert_map().keys() | _BUILT_IN
    reason = "TVM's importer does not know it"
    return [(n.op_type, n.name, reason) for n in graph.node if n.op_type not in known]


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
        if tensor.elem_type and tensor.HasField("shape"):
            if all(d.HasField("dim_value") for d in tensor.shape.dim):
                dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
                found[value.name] = relax.TensorType([d.dim_value for d in tensor.shape.dim], dtype)
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


_OWN: Mapping[str, Converter] = {
    "Clip": _clip,
    "Gather": _gather,
    "LogSoftmax": _softmax(relax.op.nn.log_softmax),
    "Softmax": _softmax(relax.op.nn.softmax),
}

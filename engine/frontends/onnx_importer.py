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
from typing import Any

import onnx
from tvm import ir as tvm_ir
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from sparsec.errors import Unsupported
from sparsec.frontends.onnx_converters import CONVERTERS
from sparsec.frontends.onnx_recurrent import ACTIVATIONS, convert, refusal
from sparsec.frontends.onnx_resampling import RESAMPLING
from sparsec.frontends.onnx_sizes import Sizes, convert_sizes

#: operators the importer handles outside its table
_BUILT_IN = frozenset({"If", "Constant"})


#: TVM knows another domain's operator of this name
_OTHER_MEANING = frozenset({"Attention"})


def missing_operators(graph: onnx.GraphProto) -> list[tuple[str, str, str]]:
    """(operator, node, reason) for every node TVM's importer has no right converter for."""
    known = (onnx_frontend._get_convert_map().keys() | _BUILT_IN) - _OTHER_MEANING
    known |= CONVERTERS.keys() | ACTIVATIONS.keys()
    found = [
        (n.op_type, n.name, "TVM's importer does not know it") for n in graph.node if n.op_type not in known
    ]
    wrong = [(n.op_type, n.name, _wrong_values(n) or refusal(n)) for n in graph.node]
    return found + [one for one in wrong if one[2]]


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
                raise ImportStopped(op_name, node, _reason(failure)) from failure
            self.failures.append((op_name, node, _reason(failure)))
            return stand_in
        return self._named(result, op_name, node)

    def _converted(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        of_sizes = convert_sizes(op_name, inputs, attrs)
        if of_sizes is not None:
            return self.bb.normalize(of_sizes) if isinstance(of_sizes, tvm_ir.Expr) else of_sizes
        for i, given in enumerate(inputs):
            inputs[i] = given.expression() if isinstance(given, Sizes) else given
        if op_name in ACTIVATIONS:
            return convert(self.bb, op_name, inputs, attrs)
        if op_name in RESAMPLING:
            result = RESAMPLING[op_name](self.bb.normalize, inputs, attrs, opset)
        else:
            own = CONVERTERS.get(op_name)
            result = own(inputs, attrs, opset) if own else None
        if result is not None:
            return self.bb.normalize(result)
        return super()._convert_operator(op_name, inputs, attrs, opset)

    def _named(self, result: Any, op_name: str, node: str) -> Any:
        for part in result.fields if isinstance(result, relax.Tuple) else ():
            self._named(part, op_name, node)
        if isinstance(result, relax.Var):
            self.origins.setdefault(str(result.name), (op_name, node))
        if not isinstance(result, tvm_ir.Call) or isinstance(result.ty, relax.ShapeType):
            return result
        if tvm_ir.is_prim_expr(result):
            return result
        var = self.bb.emit(result, name_hint=re.sub(r"\W", "_", node) or "node")
        self.origins[str(var.name)] = (op_name, node)
        return var

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """Nothing: ``missing_operators`` knows which there are."""

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
        self.failure = (operator, node, reason)


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
    if isinstance(failure, Unsupported):
        return str(failure)
    text = (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
    return f"TVM's importer refuses it here: {text[:200]}"

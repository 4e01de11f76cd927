"""Bringing an ONNX model into the form TVM's importer reads.

Sizes are fixed or named, shape arithmetic is folded, and large constants become inputs, so that
weights never pass through Relax.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from sparsec.errors import ModelError
from sparsec.frontends.names import clean_symbol
from sparsec.frontends.onnx_load import OnnxModel
from sparsec.frontends.onnx_recurrent import arrange
from sparsec.frontends.onnx_shapes import Sizes, kept_sizes, numbers, shape_value, sizes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

Shapes: TypeAlias = Mapping[str, Sequence[int | str | None]]

#: constants of more elements than this are never computed with while importing
_FOLD_LIMIT = 4096

#: operand numbers whose values TVM's importer must know while importing, by operator
_READ_AT_IMPORT: Mapping[str, tuple[int, ...]] = {
    "Clip": (1, 2), "ConstantOfShape": (0,), "CumSum": (1,), "DequantizeLinear": (1, 2), "Dropout": (1, 2),
    "Expand": (1,), "OneHot": (1, 2), "Pad": (1, 2, 3), "QuantizeLinear": (1, 2), "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,),
    "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,), "Pow": (1,),
}  # fmt: skip

#: their results differ from call to call
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                     "Multinomial"})  # fmt: skip


def prepare(model: OnnxModel, shapes: Shapes | None = None) -> dict[str, Array]:
    """Rewrite the model in place; returns the lifted constants, which are now graph inputs.

    Raises:
        ModelError: ``shapes`` names no input, or has another number of axes.
    """
    name_nodes(model.graph)
    set_shapes(model.graph, shapes or {})
    modernise(model)
    fold(model)
    arrange(model)
    return lift(model)


def expand(model: OnnxModel, operators: Iterable[str]) -> None:
    """Replace operators that onnx defines by a function of simpler ones, where it does."""
    wanted = [("", op) for op in sorted(set(operators))]
    if not wanted:
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    _declare(copy.graph, model.constants, set(model.constants))
    try:
        expanded = inliner.inline_selected_functions(copy, wanted, inline_schema_functions=True)
    except Exception:
        # an operator that cannot be expanded stays, and is reported by its own name
        return
    del model.graph.node[:]
    model.graph.node.extend(expanded.graph.node)
    name_nodes(model.graph)


def modernise(model: OnnxModel) -> None:
    """Old forms TVM's importer does not read, in their newer form: Slice by attributes (before opset 10)."""
    for node in model.graph.node:
        if node.op_type == "Slice" and len(node.input) == 1:
            given = {a.name: np.array(a.ints, np.int64) for a in node.attribute}
            given.setdefault("axes", np.arange(len(given["starts"])))
            del node.attribute[:]
            for part in ("starts", "ends", "axes"):
                model.constants[f"{node.name}_{part}"] = given[part]
                node.input.append(f"{node.name}_{part}")


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own; the first output's where it had none."""
    taken: set[str] = set()
    for node in graph.node:
        stem = node.name or (node.output[0] if node.output else node.op_type)
        name, count = stem, 1
        while name in taken:
            name, count = f"{stem}_{count}", count + 1
        node.name = name
        taken.add(name)


def set_shapes(graph: onnx.GraphProto, shapes: Shapes) -> None:
    """Overwrite input sizes; sizes that stay unknown get a name."""
    inputs = {i.name: i for i in graph.input}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise ModelError(f"shapes names {name!r}, but the model's inputs are {', '.join(inputs)}")
        _override(inputs[name], sizes)
    for value in graph.input:
        _name_sizes(value)
    del graph.value_info[:]


def _override(value: onnx.ValueInfoProto, sizes: Sequence[int | str | None]) -> None:
    tensor = value.type.tensor_type
    known = len(tensor.shape.dim)
    if tensor.HasField("shape") and known != len(sizes):
        raise ModelError(f"input {value.name!r} has {known} axes, but shapes gives {len(sizes)} sizes")
    if not tensor.HasField("shape"):
        tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in sizes)
    for dim, size in zip(tensor.shape.dim, sizes, strict=True):
        if isinstance(size, str):
            dim.dim_param = size
        elif size is not None:
            dim.dim_value = int(size)


def _name_sizes(value: onnx.ValueInfoProto) -> None:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ModelError(
            f"input {value.name!r} is no tensor of known rank; "
            f"give its sizes with shapes={{{value.name!r}: (1, ...)}}"
        )
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            continue
        given = dim.dim_param if dim.HasField("dim_param") else ""
        anonymous = not given or given in ("?", "-1")
        dim.dim_param = clean_symbol(f"{value.name}_{axis}" if anonymous else given)


# -- folding


def fold(model: OnnxModel) -> None:
    """Compute what depends on constants and known shapes only, until nothing more folds."""
    while _fold_once(model):
        pass


def _fold_once(model: OnnxModel) -> bool:
    sizes = known_sizes(model)
    shapes = {name: known for name, given in sizes.items() if (known := _all_known(given)) is not None}
    values: dict[str, Array] = {}
    kept: list[onnx.NodeProto] = []
    folded = False
    for node in model.graph.node:
        results = _evaluate(node, model, shapes) or _evaluate_shape(node, model, sizes, values)
        if results is None:
            folded = _keep_sizes(node, model, sizes, values) or folded
            kept.append(node)
            continue
        folded = folded or node.op_type != "Constant"
        model.constants.update(zip(node.output, results, strict=False))
    outputs = {o.name for o in model.graph.output}
    kept += [_constant_output(name, model) for name in outputs if _lost(name, kept, model)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return folded and any(n.op_type == "Shape" for n in kept)


def _evaluate_shape(
    node: onnx.NodeProto, model: OnnxModel, sizes: Mapping[str, Sizes], values: dict[str, Array]
) -> list[Array] | None:
    """Sizes picked from a shape; what has names in it goes to ``values``."""
    value = shape_value(node, sizes, ChainMap(values, model.constants))
    if value is None:
        return None
    values[node.output[0]] = value
    known = numbers(value)
    return None if known is None else [known]


def _keep_sizes(
    node: onnx.NodeProto, model: OnnxModel, sizes: Mapping[str, Sizes], values: Mapping[str, Array]
) -> bool:
    """A reshape to named sizes that stay where they are gets a constant target."""
    known = sizes.get(node.input[0]) if node.op_type == "Reshape" else None
    if not known or node.input[1] not in values or any(a.name == "allowzero" and a.i for a in node.attribute):
        return False
    target = kept_sizes(known, values[node.input[1]])
    if target is None:
        return False
    node.input[1] = f"{node.name}_sizes"
    model.constants[node.input[1]] = target
    return True


def _lost(name: str, kept: Iterable[onnx.NodeProto], model: OnnxModel) -> bool:
    return name in model.constants and not any(name in n.output for n in kept)


def _constant_output(name: str, model: OnnxModel) -> onnx.NodeProto:
    """An output that folded to a constant is made by a node again."""
    source = f"{name}_value"
    model.constants[source] = model.constants.pop(name)
    return helper.make_node("Identity", [source], [name], name=name)


def _evaluate(
    node: onnx.NodeProto, model: OnnxModel, sizes: Mapping[str, tuple[int, ...]]
) -> list[Array] | None:
    if node.op_type == "Constant":
        return [_constant(node)]
    if node.op_type == "Shape" and node.input[0] in sizes:
        return _run(node, model.opset, {node.input[0]: np.broadcast_to(np.float32(0), sizes[node.input[0]])})
    names = [name for name in node.input if name]
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM or _has_body(node):
        return None
    if node.op_type == "Identity" and names[0] in model.constants:
        return [model.constants[names[0]]]
    if any(n not in model.constants or model.constants[n].size > _FOLD_LIMIT for n in names):
        return None
    return _run(node, model.opset, {n: model.constants[n] for n in names}) if names else None


def _run(node: onnx.NodeProto, opset: int, feeds: Mapping[str, Array]) -> list[Array] | None:
    """Evaluate one node by onnx's reference implementation; None when it cannot."""
    values = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
              for n, a in feeds.items()]  # fmt: skip
    wanted = [onnx.ValueInfoProto(name=o) for o in node.output if o]
    graph = helper.make_graph([node], "fold", values, wanted)
    try:
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        found = ReferenceEvaluator(proto).run(None, dict(feeds))
    except Exception:
        # the reference implementation covers new operator sets only; an unfolded node is still imported
        return None
    arrays = [np.asarray(a) for a in found]
    return arrays if all(a.size <= _FOLD_LIMIT and a.dtype != object for a in arrays) else None


def _constant(node: onnx.NodeProto) -> Array:
    if not node.attribute:
        raise ModelError(f"node {node.name!r}: a Constant without a value; export the model again")
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        found: Array = numpy_helper.to_array(value)
        return found
    if attribute.name == "sparse_value":
        raise ModelError(f"node {node.name!r}: sparse constants are not read; store the value dense")
    dtype = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    return np.array(value, dtype.get(attribute.name))


def _has_body(node: onnx.NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


def known_sizes(model: OnnxModel) -> dict[str, Sizes]:
    """What onnx's shape inference knows of every tensor's sizes."""
    inferred = infer(model)
    found: dict[str, Sizes] = {n: a.shape for n, a in model.constants.items()}
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return found | {v.name: sizes_of(v) for v in values if v.type.tensor_type.HasField("shape")}


def _all_known(sizes: Sizes) -> tuple[int, ...] | None:
    known = tuple(s for s in sizes if isinstance(s, int))
    return known if len(known) == len(sizes) else None


def infer(model: OnnxModel) -> onnx.ModelProto:
    """The model with inferred types, constants given as inputs where they are large."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in model.graph.output)
    _declare(copy.graph, model.constants, {n for n, a in model.constants.items() if a.size > _FOLD_LIMIT})
    try:
        return shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:
        # a model that breaks shape inference may still import; nothing is folded then
        return model.proto


# -- lifting


def lift(model: OnnxModel) -> dict[str, Array]:
    """Turn weights into graph inputs and the remaining constants into initializers."""
    read = {name for node in model.graph.node for name in node.input}
    model.constants = {n: a for n, a in model.constants.items() if n in read}
    needed = _read_at_import(model.graph)
    lifted = {
        n for n, a in model.constants.items() if n not in needed and a.dtype == np.float32 and a.size > 1
    }
    _declare(model.graph, model.constants, lifted)
    return {n: model.constants[n] for n in model.constants if n in lifted}


def _read_at_import(graph: onnx.GraphProto) -> set[str]:
    found: set[str] = set()
    for node in graph.node:
        for index in _READ_AT_IMPORT.get(node.op_type, ()):
            found.update(node.input[index : index + 1])
    return found


def _declare(graph: onnx.GraphProto, constants: Mapping[str, Array], as_inputs: set[str]) -> None:
    for name, array in constants.items():
        if name in as_inputs:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
        else:
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))

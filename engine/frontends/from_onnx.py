"""ONNX -> our graph, through TVM's Relax importer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sparsec.errors import Unsupported
from sparsec.frontends.from_relax import Imported, from_relax
from sparsec.frontends.onnx_importer import Importer, ImportStopped, inferred_types, missing_operators
from sparsec.frontends.onnx_load import OnnxModel, Source, load_onnx
from sparsec.frontends.onnx_prepare import Shapes, expand, infer, name_nodes, prepare, set_shapes
from sparsec.frontends.relax_passes import simplify_relax
from sparsec.frontends.relax_refusals import Free, unsupported
from sparsec.ir.dims import symbol
from sparsec.ir.graph import Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]


def from_onnx(source: Source, shapes: Shapes | None = None) -> Graph:
    """Import an ONNX model.

    Args:
        source: a path, the file's bytes, or a ModelProto.
        shapes: sizes per input name; an int fixes an axis, a string names it, None keeps it.

    Returns:
        A verified graph; its inputs, outputs and weights have the model's names.

    Raises:
        ModelError: the model cannot be read, or ``shapes`` does not fit it.
        Unsupported: operators that cannot be compiled, all of them in one error.
    """
    model = load_onnx(source)
    name_nodes(model.graph)
    expand(model, [operator for operator, _, _ in missing_operators(model.graph)])
    missing = missing_operators(model.graph)
    if missing:
        raise unsupported(missing)
    weights = prepare(model, shapes)
    return from_relax(_import(model, weights))


def input_shapes(source: Source, unknown: int = 1) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's inputs, every size that is not fixed taken as ``unknown``.

    Raises:
        ModelError: the model cannot be read.
    """
    model = load_onnx(source)
    set_shapes(model.graph, {})
    return {
        i.name: tuple(
            d.dim_value if d.HasField("dim_value") else unknown for d in i.type.tensor_type.shape.dim
        )
        for i in model.graph.input
    }


def _import(model: OnnxModel, weights: Mapping[str, Any]) -> Imported:
    importer = Importer(inferred_types(infer(OnnxModel(model.proto, {}))))
    try:
        module = importer.run(model.graph, model.opset)
    except ImportStopped as stopped:
        raise unsupported([*importer.failures, stopped.failure], _free(model)) from stopped
    except Exception as failure:
        if importer.failures:
            raise unsupported(importer.failures, _free(model)) from failure
        raise Unsupported(f"TVM's importer refuses the model: {failure}") from failure
    if importer.failures:
        raise unsupported(importer.failures, _free(model))
    outputs = [o.name for o in model.graph.output]
    return Imported(simplify_relax(module), weights, outputs, importer.origins)


def _free(model: OnnxModel) -> Free | None:
    """The first input with a size that is not fixed."""
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if not all(d.HasField("dim_value") for d in dims):
            return str(value.name), tuple(
                d.dim_value if d.HasField("dim_value") else symbol(d.dim_param) for d in dims
            )
    return None

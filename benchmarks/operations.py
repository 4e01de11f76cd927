"""How much work a model holds: operations that its zeros leave over."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

Shapes = Mapping[str, tuple[int, ...]] | None


def useful_operations(path: Path, shapes: Shapes) -> int | None:
    """Two operations for each nonzero weight of a layer and each place it is used at.

    None where sizes stay open, or where no layer multiplies by a constant weight.
    """
    model = onnx.load(path)
    for port in model.graph.input:
        for dim, size in zip(
            port.type.tensor_type.shape.dim, (shapes or {}).get(port.name, ()), strict=False
        ):
            dim.dim_value = size
    nonzeros = {
        i.name: int(np.count_nonzero(numpy_helper.to_array(i))) for i in model.graph.initializer if i.dims
    }
    sizes = _sizes(shape_inference.infer_shapes(model).graph)
    counted = [_of(node, nonzeros, sizes) for node in model.graph.node if _is_layer(node, nonzeros)]
    known = [count for count in counted if count is not None]
    return sum(known) if known and len(known) == len(counted) else None


def _is_layer(node: onnx.NodeProto, nonzeros: Mapping[str, int]) -> bool:
    return node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in nonzeros


def _of(
    node: onnx.NodeProto, nonzeros: Mapping[str, int], sizes: Mapping[str, tuple[int, ...]]
) -> int | None:
    y = sizes.get(node.output[0])
    if not y or 0 in y:
        return None
    # a convolution's channels are its second axis, a linear layer's outputs the last
    places = y[0] * prod(y[2:]) if node.op_type == "Conv" else prod(y[:-1])
    return 2 * nonzeros[node.input[1]] * places


def _sizes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes by value; 0 where open."""
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}

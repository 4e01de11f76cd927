"""How much work a model holds: with its zeros, and without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

Shapes = Mapping[str, tuple[int, ...]] | None
Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Work:
    """Two operations for each weight and each place it is used at, and for products of activations.

    ``useful`` leaves zeros out, ``dense`` does not; ``weights`` are as many as there are, zeros
    included.
    """

    useful: int
    dense: int
    weights: int

    @property
    def bound_by_weights(self) -> bool:
        """Whether every weight is used once, so that reading it costs more than using it."""
        return self.dense == 2 * self.weights


def work_of(path: Path, shapes: Shapes) -> Work | None:
    """The work of a model's layers and of products between activations.

    None where sizes stay open, or where no layer multiplies by a constant weight.
    """
    model = onnx.load(path)
    for port in model.graph.input:
        for dim, size in zip(
            port.type.tensor_type.shape.dim, (shapes or {}).get(port.name, ()), strict=False
        ):
            dim.dim_value = size
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer if i.dims}
    sizes = _sizes(shape_inference.infer_shapes(model, data_prop=True).graph)
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    counted = [_of(node, weights, sizes) for node in layers]
    known = [work for work in counted if work is not None]
    if len(known) < len(counted) or not any(work.weights for work in known):
        return None
    return Work(*(sum(getattr(w, key) for w in known) for key in ("useful", "dense", "weights")))


def useful_operations(path: Path, shapes: Shapes) -> int | None:
    """Operations that zeros leave over; None as for :func:`work_of`."""
    work = work_of(path, shapes)
    return work.useful if work else None


def _of(node: onnx.NodeProto, weights: Mapping[str, np.ndarray], sizes: Sizes) -> Work | None:
    y = sizes.get(node.output[0])
    if not y or 0 in y:
        return None
    if node.input[1] in weights:
        weight = weights[node.input[1]]
        # a convolution's channels are its second axis, a linear layer's outputs the last
        places = y[0] * prod(y[2:]) if node.op_type == "Conv" else prod(y[:-1])
        useful = 2 * int(np.count_nonzero(weight)) * places
        return Work(useful, 2 * weight.size * places, weight.size)
    inner = sizes.get(node.input[0], (0,))[-1]
    return Work(*[2 * prod(y) * inner] * 2, 0) if inner else None


def _sizes(graph: onnx.GraphProto) -> Sizes:
    """Shapes by value; 0 where open."""
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}

"""ONNX models of operators that the graph has no word for: each is carried as TIR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: a size of inputs that models leave open
OPEN = "n"


@dataclass(frozen=True)
class Carried:
    """One node, its inputs' shapes, and which of them are whole numbers below a bound.

    ``z`` is never zero.
    """

    name: str
    shapes: Mapping[str, Sequence[int | str]]
    below: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    arguments: tuple[str, ...] | None = None

    @property
    def proto(self) -> onnx.ModelProto:
        """The model; the types of its outputs are left to the reader."""
        arguments = self.arguments or (*self.shapes, *self.weights)
        node = helper.make_node(self.name, list(arguments), list(self.outputs), **self.attributes)
        inputs = [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in self.below else TensorProto.FLOAT, list(shape)
            )
            for name, shape in self.shapes.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        weights = [numpy_helper.from_array(np.asarray(w), name) for name, w in self.weights.items()]
        graph = helper.make_graph([node], "carried", inputs, outputs, weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(made)

    def inputs(self, seed: int, size: int) -> dict[str, Any]:
        """Fresh inputs; what is open is ``size``."""
        rng = np.random.default_rng(seed)
        found: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            sizes = [size if s == OPEN else int(s) for s in shape]
            if name in self.below:
                found[name] = rng.integers(1 if name == "z" else 0, self.below[name], sizes)
            else:
                found[name] = rng.standard_normal(sizes).astype(np.float32)
        return found


CARRIED = (
    Carried("ArgMax", {"x": (OPEN, 7, 5)}, attributes={"axis": 1, "keepdims": 0}),
    Carried("ScatterElements", {"x": (9, 7), "i": (3, 7), "u": (3, 7)}, {"i": 3}, attributes={"axis": 0}),
    Carried("ScatterND", {"x": (6, 7), "i": (3, 1), "u": (3, 7)}, {"i": 6}),
    Carried("GatherElements", {"x": (3, 7), "i": (3, 2)}, {"i": 7}, attributes={"axis": 1}),
    Carried("GatherND", {"x": (6, 7), "i": (5, 2)}, {"i": 6}),
    Carried("Gather", {"x": (30, 7), "i": (OPEN, 2)}, {"i": 30}),
    Carried("Trilu", {"x": (2, 5, 5)}, attributes={"upper": 0}),
    Carried("ReduceProd", {"x": (OPEN, 5, 5)}, attributes={"axes": [1]}),
    Carried("ReduceSum", {"x": (OPEN, 5)}, {"x": 100}, {"a": np.int64([1])}),
    Carried("Mod", {"x": (OPEN, 5), "z": (1, 5)}, {"x": 100, "z": 100}),
    Carried("Einsum", {"x": (2, 5, 4), "z": (2, 4, 3)}, attributes={"equation": "bij,bjk->bik"}),
    Carried("Tile", {"x": (OPEN, 5)}, weights={"r": np.int64([2, 3])}),
    Carried("MaxPool", {"x": (1, 2, 5, 4, 4)}, attributes={"kernel_shape": [2, 2, 2]}),
    Carried("Conv", {"x": (1, 2, 5, 4, 4)}, weights={"w": np.ones((3, 2, 2, 2, 2), np.float32)}),
    Carried(
        "Resize", {"x": (1, 2, 4, 5)}, weights={"s": np.float32([1, 1, 2, 2])},
        attributes={"mode": "cubic"}, arguments=("x", "", "s"),
    ),
    Carried("GridSample", {"x": (1, 2, 5, 4), "g": (1, 3, 3, 2)}),
    Carried("Hardmax", {"x": (OPEN, 5)}),
    Carried("Sinh", {"x": (OPEN, 5)}),
    Carried("Atan", {"x": (OPEN, 300)}),
    Carried("IsNaN", {"x": (OPEN, 5)}),
    Carried("DynamicQuantizeLinear", {"x": (OPEN, 50)}, outputs=("y", "scale", "zero")),
)  # fmt: skip

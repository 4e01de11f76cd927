"""Shape arithmetic of models with open sizes, as exporters write it, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from sparsec.frontends.from_onnx import from_onnx  # noqa: E402
from sparsec.reference.evaluate import evaluate  # noqa: E402
from sparsec.targets.opaque import run  # noqa: E402


def node(operator: str, *inputs: str, to: str, **attrs: Any) -> Any:
    return helper.make_node(operator, list(inputs), [to], **attrs)


#: numbers that models compute with
NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "first": [0], "second": [1], "minus": [-1], "width": [6], "last": [2],
    "three": [3], "both": [0, 1], "ones": [1, 1, 1, 1], "halves": [0.0], "minuses": [-1, -1, -1, -1],
}  # fmt: skip


def check(nodes: list[Any], *, kind: int = TensorProto.FLOAT, opset: int = 17) -> None:
    """A model of x (batch, length, 6) agrees with onnxruntime at several sizes."""
    weights = [
        numpy_helper.from_array(np.asarray(v, np.float32 if name == "halves" else np.int64), name)
        for name, v in NUMBERS.items()
    ]
    ports = [helper.make_tensor_value_info(n, k, s) for n, k, s in (
        ("x", TensorProto.FLOAT, ["batch", "length", 6]), ("y", kind, None))]  # fmt: skip
    graph = helper.make_graph(nodes, "sizes", ports[:1], ports[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    imported = from_onnx(proto)
    for batch, length in ((1, 1), (2, 5), (3, 4)):
        x = np.random.default_rng(batch).standard_normal((batch, length, 6)).astype(np.float32)
        want, got = session.run(None, {"x": x})[0], evaluate(imported, {"x": x}, run)["y"]
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


SIZES = [
    node("Shape", "x", to="shape"),
    node("Gather", "shape", "zero", to="batch"),
    node("Gather", "shape", "one", to="length"),
    node("Unsqueeze", "batch", "first", to="batch_"),
    node("Unsqueeze", "length", "first", to="length_"),
]


def test_a_view_of_merged_axes_and_back() -> None:
    """``x.view(-1, 6)``, then ``y.view(*x.shape[:-1], 3, 2)``: GPT-2's projections."""
    check([
        *SIZES,
        node("Concat", "minus", "width", to="flat", axis=0), node("Reshape", "x", "flat", to="rows"),
        node("Slice", "shape", "first", "minus", to="leading"),
        node("Concat", "leading", "three", "minus", to="heads", axis=0),
        node("Reshape", "rows", "heads", to="y"),
    ])  # fmt: skip


def test_positions_of_an_open_length() -> None:
    check([
        *SIZES, node("Range", "zero", "length", "one", to="places"),
        helper.make_node("Cast", ["places"], ["numbers"], to=TensorProto.FLOAT),
        node("Unsqueeze", "numbers", "second", to="column"), node("Add", "x", "column", to="y"),
    ])  # fmt: skip


def test_a_mask_made_of_an_open_length() -> None:
    check([
        *SIZES, node("Concat", "length_", "length_", to="square", axis=0),
        node("ConstantOfShape", "square", to="full",
             value=numpy_helper.from_array(np.array([-3.0], np.float32))),
        node("Trilu", "full", "one", to="mask"), node("MatMul", "mask", "x", to="y"),
    ])  # fmt: skip


def test_heads_shared_by_expand() -> None:
    """``x[:, :, None].expand(b, l, 2, 6).reshape(b, l * 2, 6)``, with exporters' -1 for "as it is"."""
    check([
        *SIZES, node("Unsqueeze", "x", "last", to="apart"),
        node("Concat", "batch_", "length_", "last", "width", to="wanted", axis=0),
        node("Equal", "wanted", "minuses", to="kept"), node("Where", "kept", "ones", "wanted", to="target"),
        node("Expand", "apart", "target", to="spread"), node("Mul", "length", "two", to="longer"),
        node("Unsqueeze", "longer", "first", to="longer_"),
        node("Concat", "batch_", "longer_", "minus", to="merged", axis=0),
        node("Reshape", "spread", "merged", to="y"),
    ])  # fmt: skip


def test_an_axis_given_as_a_plain_number() -> None:
    check([node("Unsqueeze", "x", "one", to="y")])


def test_division_of_a_size_by_its_factor() -> None:
    check([
        *SIZES, node("Mul", "length", "two", to="double"), node("Div", "double", "two", to="same"),
        node("Unsqueeze", "same", "first", to="same_"), node("Sub", "batch", "zero", to="images"),
        node("Unsqueeze", "images", "first", to="images_"),
        node("Concat", "same_", "images_", "width", to="target", axis=0),
        node("Reshape", "x", "target", to="y"),
    ])  # fmt: skip

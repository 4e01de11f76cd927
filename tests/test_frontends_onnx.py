"""The ONNX frontend against onnxruntime, and what it says about models it refuses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from sparsec.errors import ModelError, Unsupported  # noqa: E402
from sparsec.frontends.from_onnx import from_onnx, input_shapes  # noqa: E402
from sparsec.ir.dims import symbol  # noqa: E402
from sparsec.ir.graph import Graph, Op  # noqa: E402
from sparsec.reference.evaluate import evaluate  # noqa: E402
from sparsec.targets.opaque import run  # noqa: E402

RNG = np.random.default_rng(20)


def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[Any], x: Any, weights: dict[str, Any] | None = None, opset: int = 17, **extra: Any
) -> Any:
    """A model with input ``x`` of a shape and output ``y`` of the same rank or unknown."""
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    inputs = [value("x", x), *extra.get("inputs", [])]
    outputs = extra.get("outputs", [value("y", None)])
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def agree(proto: Any, feeds: dict[str, Any], shapes: Any = None, tolerance: float = 1e-5) -> Graph:
    """Import, evaluate, and compare every output with onnxruntime's."""
    graph = from_onnx(proto, shapes)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got = evaluate(graph, feeds, run)
    for output, want in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert got[output.name].shape == want.shape
        scale = max(float(np.abs(want).max()), 1e-6)
        np.testing.assert_allclose(got[output.name], want, atol=tolerance * scale, rtol=0)
    return graph


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def kinds(graph: Graph) -> Counter[str]:
    return Counter(str(n.op) for n in graph.nodes)


def test_linear_layers_keep_their_names_and_become_matmuls() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["h"], name="fc1", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "fc2.weight"], ["y"], name="fc2"),
    ]
    weights = {"fc1.weight": floats(24, 16), "fc1.bias": floats(24), "fc2.weight": floats(24, 5)}
    graph = agree(model(nodes, ["batch", 16], weights), {"x": floats(7, 16)})
    assert set(graph.consts) == set(weights)
    assert graph.inputs[0].type.shape == (symbol("batch"), 16)
    assert kinds(graph) == {"input": 1, "const": 3, "transpose": 1, "matmul": 2, "elementwise": 2}
    assert {n.origin for n in graph.nodes if n.op is Op.MATMUL} == {"fc1", "fc2"}
    assert graph.output_names == ("y",)


UNARY = (
    "Abs Ceil Cos Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Mish Neg Relu Round Selu Sigmoid Sign "
    "Sin Softplus Softsign Tan Tanh"
)


@pytest.mark.parametrize("operator", UNARY.split())
def test_unary_operators_are_elementwise(operator: str) -> None:
    proto = model([helper.make_node(operator, ["x"], ["y"])], ["n", 9], opset=18)
    graph = agree(proto, {"x": 3 * floats(4, 9)})
    assert set(kinds(graph)) == {"input", "elementwise"}


@pytest.mark.parametrize("operator", ["Sqrt", "Log", "Reciprocal"])
def test_operators_on_positive_numbers(operator: str) -> None:
    agree(model([helper.make_node(operator, ["x"], ["y"])], [5, 3]), {"x": np.abs(floats(5, 3)) + 0.1})


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"])
def test_binary_operators_broadcast(operator: str) -> None:
    proto = model(
        [helper.make_node(operator, ["x", "w"], ["y"])], ["n", 6, 5], {"w": np.abs(floats(6, 1)) + 0.5}
    )
    graph = agree(proto, {"x": floats(3, 6, 5)})
    assert "tir" not in kinds(graph)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -0.5, 1.7])
def test_powers(exponent: float) -> None:
    proto = model([helper.make_node("Pow", ["x", "e"], ["y"])], [4, 4], {"e": np.float32(exponent)})
    assert "tir" not in kinds(agree(proto, {"x": np.abs(floats(4, 4)) + 0.1}))


def test_clip_of_either_form_is_elementwise() -> None:
    bounds = {"low": np.float32(-0.5), "high": np.float32(0.75)}
    new = model([helper.make_node("Clip", ["x", "low", "high"], ["y"])], [8, 3], bounds)
    assert set(kinds(agree(new, {"x": floats(8, 3)}))) == {"input", "elementwise"}
    old = model([helper.make_node("Clip", ["x"], ["y"], min=0.0, max=6.0)], [8, 3], opset=7)
    assert set(kinds(agree(old, {"x": 9 * floats(8, 3)}))) == {"input", "elementwise"}


def test_where_of_a_comparison_is_one_expression() -> None:
    nodes = [
        helper.make_node("Less", ["x", "w"], ["c"]),
        helper.make_node("Where", ["c", "x", "w"], ["a"]),
        helper.make_node("Cast", ["c"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    graph = agree(model(nodes, [6, 4], {"w": floats(4)}), {"x": floats(6, 4)})
    assert set(kinds(graph)) == {"input", "const", "elementwise"}


@pytest.mark.parametrize(("operator", "opset"), [("Softmax", 11), ("Softmax", 13), ("LogSoftmax", 11)])
@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_of_old_and_new_meaning(operator: str, opset: int, axis: int) -> None:
    proto = model([helper.make_node(operator, ["x"], ["y"], axis=axis)], ["n", 4, 5], opset=opset)
    assert "softmax" in kinds(agree(proto, {"x": floats(3, 4, 5)}))


def test_layer_norm_and_reductions() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["h"], axis=-1, epsilon=1e-6),
        helper.make_node("ReduceMean", ["h"], ["m"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["h"], ["y"], axes=[-1], keepdims=0),
    ]
    outputs = [value("y", None), value("m", None)]
    graph = agree(
        model(nodes, ["n", 5, 12], {"g": floats(12), "b": floats(12)}, outputs=outputs),
        {"x": floats(2, 5, 12)},
    )
    assert kinds(graph) == {"input": 1, "const": 2, "layer_norm": 1, "reduce": 2}
    assert graph.output_names == ("y", "m")


def test_tir_nodes_have_a_name_from_their_content() -> None:
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["h"], name="p1", mode="reflect"),
        helper.make_node("Slice", ["h", "starts", "ends", "axes"], ["s"], name="s"),
        helper.make_node("Pad", ["s", "pads"], ["y"], name="p2", mode="reflect"),
    ]
    weights = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "starts": np.array([1, 1]),
        "ends": np.array([7, 7]),
        "axes": np.array([2, 3]),
    }
    graph = agree(model(nodes, ["n", 4, 6, 6], weights), {"x": floats(2, 4, 6, 6)})
    tir = [n for n in graph.nodes if n.op is Op.TIR]
    assert [n.origin for n in tir] == ["p1", "p2"]
    attrs: list[Any] = [n.attrs for n in tir]
    assert attrs[0].source == "relax.mirror_pad"
    assert attrs[0].name == attrs[1].name and attrs[0].module == attrs[1].module


def test_compound_sizes_reach_tir_functions_and_come_back() -> None:
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["two"], axis=0),
        helper.make_node("Concat", ["two", "x"], ["three"], axis=0),
        helper.make_node("MaxPool", ["three"], ["y"], kernel_shape=[2]),
    ]
    graph = agree(model(nodes, ["n", 3, 8]), {"x": floats(2, 3, 8)})
    assert str(graph.nodes[-1].type) == "f32[3*n, 3, 7]"


def test_several_outputs_are_items() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Split", ["whole", "parts"], ["y", "z"], axis=1),
    ]
    outputs = [value("y", None, TensorProto.INT64), value("z", None, TensorProto.INT64)]
    graph = agree(model(nodes, [3, 7], {"parts": np.array([2, 5])}, outputs=outputs), {"x": floats(3, 7)})
    assert kinds(graph)["item"] == 2


def test_shape_arithmetic_is_folded_or_kept_symbolic() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "zeros"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.array(0), "zeros": np.array([0]), "rest": np.array([2, 6])}
    symbolic = agree(model(nodes, ["n", 12], constants), {"x": floats(5, 12)})
    assert symbolic.nodes[-1].type.shape == (symbol("n"), 2, 6)
    fixed = agree(model(nodes, ["n", 12], constants), {"x": floats(5, 12)}, {"x": (5, None)})
    assert kinds(fixed) == {"input": 1, "reshape": 1} and fixed.nodes[-1].type.shape == (5, 2, 6)


def test_constants_of_every_attribute_form() -> None:
    nodes = [
        helper.make_node("Constant", [], ["f"], value_float=2.5),
        helper.make_node("Constant", [], ["i"], value_ints=[3, 4]),
        helper.make_node("Mul", ["x", "f"], ["h"]),
        helper.make_node("Reshape", ["h", "i"], ["y"]),
    ]
    agree(model(nodes, [12]), {"x": floats(12)})


def test_initializers_listed_as_inputs_are_constants() -> None:
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", 4], {"w": floats(4, 3)})
    proto.graph.input.append(value("w", [4, 3]))
    graph = from_onnx(proto)
    assert [n.name for n in graph.inputs] == ["x"] and set(graph.consts) == {"w"}


def test_unnamed_sizes_get_names() -> None:
    graph = from_onnx(model([helper.make_node("Relu", ["x"], ["y"])], [None, "unk__7", -1, 3]))
    assert [str(s) for s in graph.inputs[0].type.shape] == ["x_0", "unk__7", "x_2", "3"]


def test_operators_onnx_defines_by_simpler_ones_are_expanded() -> None:
    graph = agree(model([helper.make_node("Celu", ["x"], ["y"], alpha=0.7)], [4, 5]), {"x": floats(4, 5)})
    assert "tir" not in kinds(graph)


def test_gather_never_reads_outside_the_table() -> None:
    proto = model([helper.make_node("Gather", ["w", "x"], ["y"])], ["n"], {"w": floats(10, 4)})
    proto.graph.input[0].CopyFrom(value("x", ["n"], TensorProto.INT64))
    graph = agree(proto, {"x": np.array([0, 9, 3, -1])})
    assert np.isfinite(evaluate(graph, {"x": np.array([10**9])}, run)["y"]).all()


def test_external_data_is_mapped(tmp_path: Path) -> None:
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", 64], {"w": floats(64, 32)})
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    graph = from_onnx(path)
    weight = (
        numpy_helper.to_array(proto.graph.initializer[0]) if proto.graph.initializer[0].raw_data else None
    )
    assert isinstance(graph.consts["w"], np.ndarray) and graph.consts["w"].shape == (64, 32)
    if weight is not None:
        np.testing.assert_array_equal(graph.consts["w"], weight)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"m\.data.*not beside the model"):
        from_onnx(path)


def test_every_unsupported_operator_is_in_one_error() -> None:
    nodes = [
        helper.make_node("CumProd", ["x", "w"], ["h"], name="first"),
        helper.make_node("Det", ["h"], ["d"], name="det"),
        helper.make_node("CumProd", ["x", "w"], ["y"], name="second"),
    ]
    proto = model(nodes, [3, 1, 5], {"w": np.int64(0)})
    with pytest.raises(Unsupported) as refused:
        from_onnx(proto)
    assert refused.value.operators == (("CumProd", "first"), ("Det", "det"), ("CumProd", "second"))
    assert "2 operators" in str(refused.value) and "Replace them in the model" in str(refused.value)


def test_operators_that_fail_later_are_listed_together() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="where_from"),
        helper.make_node("Unique", ["x"], ["b"], name="unique", sorted=1),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    outputs = [value("y", None), value("a", None, TensorProto.INT64), value("b", None)]
    with pytest.raises(Unsupported) as refused:
        from_onnx(model(nodes, [4], outputs=outputs))
    assert {node for _, node in refused.value.operators} >= {"where_from", "unique"}


def test_known_wrong_conversions_are_refused_or_expanded() -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "g"], ["y", "mean"], name="ln")]
    outputs = [value("y", None), value("mean", None)]
    agree(model(nodes, [2, 8], {"g": floats(8)}, outputs=outputs), {"x": floats(2, 8)})
    rounded = [helper.make_node("Resize", ["x", "", "s"], ["y"], name="resize", mode="linear")]
    scales = {"s": np.array([1, 1, 0.6, 0.6], np.float32)}
    agree(model(rounded, [1, 1, 4, 4], scales), {"x": floats(1, 1, 4, 4)})
    with pytest.raises(Unsupported, match="rounded to a whole size"):
        from_onnx(model(rounded, [1, 1, "h", 4], scales))


def test_a_view_of_an_open_batch_keeps_it() -> None:
    """As exporters spell ``x.view(n, 2, -1, h, w)``: shape arithmetic on open sizes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        *(helper.make_node("Gather", ["s", f"i{i}"], [f"d{i}"], axis=0) for i in (0, 2, 3)),
        *(helper.make_node("Unsqueeze", [f"d{i}", "zeros"], [f"u{i}"]) for i in (0, 2, 3)),
        helper.make_node("Concat", ["u0", "two", "minus", "u2", "u3"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"], name="view"),
    ]
    constants = {f"i{i}": np.array(i) for i in (0, 2, 3)}
    constants |= {"zeros": np.array([0]), "two": np.array([2]), "minus": np.array([-1])}
    graph = agree(model(nodes, ["n", 6, 4, 5], constants), {"x": floats(3, 6, 4, 5)})
    assert graph.nodes[-1].type.shape == (symbol("n"), 2, 3, 4, 5)
    assert kinds(graph) == {"input": 1, "reshape": 1}


@pytest.mark.parametrize("padding", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [5, 8, 9, 10])
def test_output_shape_of_a_transposed_convolution_is_its_padding(size: int, padding: str) -> None:
    """4 * 2 + 1 rows without padding; what is asked beyond is left at the bias."""
    given = {"output_shape": [size, size], "strides": [2, 2], "auto_pad": padding}
    nodes = [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="up", **given)]
    weights = {"w": floats(2, 3, 3, 3), "b": floats(3)}
    agree(model(nodes, ["n", 2, 4, 4], weights), {"x": floats(2, 2, 4, 4)})
    with pytest.raises(Unsupported, match="output_shape of inputs of open size"):
        from_onnx(model(nodes, [1, 2, "h", 4], weights))


def test_operators_of_the_first_converters() -> None:
    """As in models of 2018, which onnxruntime still runs."""
    nodes = [
        helper.make_node("ImageScaler", ["x"], ["a"], scale=0.5, bias=[1.0, -2.0, 3.0]),
        helper.make_node("Crop", ["a"], ["b"], border=[1, 2, 3, 0]),
        helper.make_node("Crop", ["b"], ["c"], border=[1, 0, 0, 0], scale=[5, 2]),
        helper.make_node("Affine", ["c"], ["y"], alpha=2.0, beta=0.25),
    ]
    graph = agree(model(nodes, ["n", 3, 8, 9], opset=7), {"x": floats(2, 3, 8, 9)})
    assert str(graph.nodes[-1].type) == "f32[n, 3, 5, 2]"


def test_shapes_counted_in_32_bits_stay_shapes() -> None:
    """TensorFlow's exporter computes sizes as int32, and slices to 10**9 or 2**31 - 1."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["narrow"], to=TensorProto.INT32),
        helper.make_node("Slice", ["narrow", "zero", "one", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["joined"], axis=0),
        helper.make_node("Cast", ["joined"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "wide"], ["r"]),
        helper.make_node("Slice", ["r", "begin", "end"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([2, 4], np.int32),
               "begin": np.array([0, 1, 1]), "end": np.array([10**9, 10**9, 2**31 - 1])}  # fmt: skip
    graph = agree(model(nodes, ["n", 8], weights), {"x": floats(3, 8)})
    assert str(graph.nodes[-1].type) == "f32[n, 1, 3]"


@pytest.mark.parametrize(("index", "shape"), [(-1, "f32[3]"), ([-2], "f32[1, 3]"), ([0], "f32[1, 3]")])
def test_one_row_counted_from_the_end_of_an_open_axis(index: Any, shape: str) -> None:
    proto = model([helper.make_node("Gather", ["x", "i"], ["y"])], ["n", 3], {"i": np.array(index)})
    graph = agree(proto, {"x": floats(5, 3)})
    assert str(graph.nodes[-1].type) == shape


def test_sizes_that_cannot_stay_symbolic_say_how_to_fix_them() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f"], ["y"], keepdims=0),
    ]
    proto = model(nodes, ["n", 3])
    with pytest.raises(Unsupported, match=r'shapes=\{"x": .*--shape x='):
        from_onnx(proto)
    agree(proto, {"x": floats(4, 3)}, {"x": (4, 3)})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("absent.onnx", "no such file"),
        (b"this is no model at all", "not an ONNX model|no nodes"),
        (b"", "no nodes"),
        (lambda: model([helper.make_node("Relu", ["z"], ["y"])], [3]), "reads 'z', which nothing"),
    ],
)
def test_bad_models_are_refused_in_words(source: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        from_onnx(source() if callable(source) else source)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    data = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [2, 40], {"w": floats(40, 40)}
    ).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        from_onnx(path)


@pytest.mark.parametrize(
    ("shapes", "text"), [({"z": (1,)}, "names 'z'.*inputs are x"), ({"x": (1,)}, "2 axes")]
)
def test_shapes_must_fit(shapes: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        from_onnx(model([helper.make_node("Relu", ["x"], ["y"])], ["n", 3]), shapes)


def test_input_shapes() -> None:
    assert input_shapes(model([helper.make_node("Relu", ["x"], ["y"])], ["n", 3, None])) == {"x": (1, 3, 1)}

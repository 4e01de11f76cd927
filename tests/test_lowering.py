"""What has no kernel of its own, and the corners of what has: other dtypes, empty and odd shapes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

import onnx
from corpus import TARGET
from graph_build import BATCH, LENGTH, Build, random_inputs
from onnx import TensorProto, helper, numpy_helper
from onnx_models import Array, assert_close, onnxruntime_run, pruned

import sparsec
from sparsec.compiler import artifact
from sparsec.ir.attributes import ElementwiseAttrs
from sparsec.ir.dims import Size, symbol, value
from sparsec.ir.expr import FUNCTIONS, Arg, call
from sparsec.ir.graph import Graph, Op
from sparsec.reference.evaluate import evaluate
from sparsec.runtime import Program

RNG = np.random.default_rng(29)
KEYS = symbol("keys")

#: functions that integers and booleans do not have
REAL = {"exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "erf", "sin", "cos"}


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "lowering-kernels"))
        yield


def compiled(graph: Graph) -> Program:
    return Program.from_bytes(artifact(graph, TARGET))


def functions_of(dtype: str) -> tuple[str, ...]:
    if dtype == "bool":
        return ("mul", "max", "where")
    return tuple(f for f in FUNCTIONS if dtype.startswith("float") or f not in REAL)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float16", "float64", "bool"])
def test_every_function_in_every_other_dtype(dtype: str) -> None:
    """One program with an output for each function, its arguments broadcast three ways."""
    b = Build()
    args = [b.input(BATCH, 7, dtype=dtype), b.input(7, dtype=dtype), b.input(BATCH, 1, dtype=dtype)]
    names = functions_of(dtype)
    outputs = []
    for name in names:
        count = FUNCTIONS[name]
        attrs = ElementwiseAttrs(call(name, *map(Arg, range(count))))
        outputs.append(b.add(Op.ELEMENTWISE, args[:count], (BATCH, 7), attrs, dtype))
    graph = b.graph(*outputs)
    inputs = {n: argument(dtype, shape) for n, shape in zip(args, [(5, 7), (7,), (5, 1)], strict=True)}
    want = evaluate(graph, inputs)
    for name, key, got in zip(names, graph.output_names, compiled(graph).run(None, inputs), strict=True):
        tolerance = 4e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(
            got.astype(float), want[key].astype(float), rtol=tolerance, atol=tolerance, err_msg=name
        )


def argument(dtype: str, shape: tuple[int, ...]) -> Array:
    """Positive reals, small integers, or booleans."""
    if dtype.startswith("float"):
        return (np.abs(RNG.standard_normal(shape)) + 0.1).astype(dtype)
    return RNG.integers(0, 2 if dtype == "bool" else 5, shape).astype(dtype)


def test_integers_divide_towards_zero_and_by_zero_give_zero() -> None:
    b = Build()
    x, y = b.input(6, dtype="int64"), b.input(6, dtype="int64")
    graph = b.graph(b.apply("div", x, y, dtype="int64"))
    inputs = {x: np.array([7, -7, 7, -7, 3, 0]), y: np.array([2, 2, -2, -2, 0, 5])}
    np.testing.assert_array_equal(compiled(graph).run(None, inputs)[0], [3, -3, -3, 3, 0, 0])


def test_a_value_held_across_many_functions() -> None:
    """Each function rests in registers of its own, however many stand between it and its use."""
    b = Build()
    y = first = b.apply("tanh", b.input(BATCH, 24))
    for _ in range(40):
        y = b.apply("sigmoid", y)
    graph = b.graph(b.apply("add", first, y))
    inputs = random_inputs(graph)
    assert_close(compiled(graph).run(None, inputs)[0], evaluate(graph, inputs)["out0"])


@pytest.mark.parametrize("function", ["max", "min", "where", "less", "less_equal", "equal", "sign"])
def test_a_select_times_a_number(function: str) -> None:
    """TVM's interval analysis fails on exactly this, unless the select is hidden from it."""
    b = Build()
    x, y, z = b.input(BATCH, 11), b.input(BATCH, 11), b.input(BATCH, 11)
    chosen = b.apply(function, *(x, y, z)[: FUNCTIONS[function]])
    graph = b.graph(b.apply("mul", chosen, y))
    inputs = random_inputs(graph)
    assert_close(compiled(graph).run(None, inputs)[0], evaluate(graph, inputs)["out0"])


#: [batch, queries, keys, heads, depth]
ATTENTION: tuple[tuple[Size, Size, Size, int, int], ...] = (
    (2, 5, 7, 2, 4), (1, 33, 33, 1, 3), (3, 1, 9, 2, 8), (BATCH, LENGTH, KEYS, 3, 5), (1, 40, 70, 2, 16),
)  # fmt: skip


def attention(sizes: tuple[Size, Size, Size, int, int], mask: str, layers: bool) -> Graph:
    """Cross-attention with an additive mask, behind layers (in token panels) or bare."""
    b = Build()
    batch, queries, keys, heads, depth = sizes
    width = heads * depth
    x, other = b.input(batch, queries, width), b.input(batch, keys, width)

    def heads_of(source: str, length: Size, *axes: int) -> str:
        projected = b.linear(source, width) if layers else source
        return b.transpose(b.reshape(projected, batch, length, heads, depth), *axes)

    q, k, v = (
        heads_of(x, queries, 0, 2, 1, 3),
        heads_of(other, keys, 0, 2, 3, 1),
        heads_of(other, keys, 0, 2, 1, 3),
    )
    scores = b.apply("mul", b.matmul(q, k), b.const(depth**-0.5))
    if mask:
        shapes = {"keys": (batch, 1, 1, keys), "square": (queries, keys), "full": (batch, 1, queries, keys)}
        scores = b.apply("add", scores, b.input(*shapes[mask]))
    mixed = b.transpose(b.matmul(b.softmax(scores), v), 0, 2, 1, 3)
    return b.graph(b.apply("add", b.reshape(mixed, batch, queries, width), x))


@pytest.mark.parametrize("mask", ["", "keys", "square", "full"])
@pytest.mark.parametrize("sizes", ATTENTION, ids=lambda s: "x".join(map(str, s)))
def test_attention(sizes: tuple[Size, Size, Size, int, int], mask: str) -> None:
    for layers, bound in product((False, True), ((2, 3, 4), (3, 34, 1), (1, 1, 65))):
        graph = attention(sizes, mask, layers)
        named = dict(zip(("batch", "length", "keys"), bound, strict=True))
        shapes = {n.name: tuple(value(s, named) for s in n.type.shape) for n in graph.inputs}
        inputs = {k: RNG.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
        if mask:
            masked = inputs[graph.inputs[-1].name]
            masked[..., 1:][masked[..., 1:] < -0.3] = -np.inf
        want = evaluate(graph, inputs, dtype=np.float64)["out0"].astype(np.float32)
        assert_close(compiled(graph).run(None, inputs)[0], want)
        if isinstance(sizes[0], int):
            break


Ports = dict[str, tuple[Any, list[Any]]]
FLOAT, DOUBLE, HALF, INT = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64


def proto(nodes: list[Any], inputs: Ports, outputs: Ports, weights: dict[str, Array]) -> onnx.ModelProto:
    ports = [
        [helper.make_tensor_value_info(k, kind, shape) for k, (kind, shape) in some.items()]
        for some in (inputs, outputs)
    ]
    stored = [numpy_helper.from_array(np.asarray(a), k) for k, a in weights.items()]
    graph = helper.make_graph(nodes, "test", *ports, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def agree(model: onnx.ModelProto, *runs: dict[str, Array], tolerance: float = 1e-5) -> None:
    program = sparsec.compile(model)
    for feeds in runs:
        for got, want in zip(program.run(None, feeds), onnxruntime_run(model, feeds), strict=True):
            assert_close(got, want, tolerance)


def normal(*shape: int, dtype: Any = np.float32) -> Array:
    return np.asarray(RNG.standard_normal(shape)).astype(dtype)


def test_products_of_vectors() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["layer"]),
        helper.make_node("MatMul", ["x", "z"], ["inner"]),
        helper.make_node("MatMul", ["m", "x"], ["column"]),
    ]
    inputs: Ports = {"x": (FLOAT, [8]), "z": (FLOAT, [8]), "m": (FLOAT, ["n", 8])}
    outputs: Ports = {"layer": (FLOAT, [5]), "inner": (FLOAT, []), "column": (FLOAT, ["n"])}
    agree(
        proto(nodes, inputs, outputs, {"w": normal(8, 5)}),
        {"x": normal(8), "z": normal(8), "m": normal(3, 8)},
    )


def test_products_whose_batches_broadcast() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "z"], ["y"]),
        helper.make_node("MatMul", ["x", "w"], ["u"]),
        helper.make_node("MatMul", ["v", "z"], ["s"]),
    ]
    inputs: Ports = {"x": (FLOAT, ["b", 1, "n", 8]), "z": (FLOAT, [3, 8, "m"])}
    outputs: Ports = {
        "y": (FLOAT, ["b", 3, "n", "m"]), "u": (FLOAT, ["b", 3, "n", 4]), "s": (FLOAT, [3, 5, "m"]),
    }  # fmt: skip
    agree(
        proto(nodes, inputs, outputs, {"w": normal(3, 8, 4), "v": normal(5, 8)}),
        {"x": normal(2, 1, 5, 8), "z": normal(3, 8, 6)},
        {"x": normal(1, 1, 1, 8), "z": normal(3, 8, 33)},
    )


@pytest.mark.parametrize(("kind", "dtype"), [(DOUBLE, np.float64), (HALF, np.float16)])
def test_layers_in_other_precisions(kind: Any, dtype: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    weights = {"w": normal(8, 5, dtype=dtype)}
    model = proto(nodes, {"x": (kind, ["n", 8])}, {"y": (kind, ["n", 5])}, weights)
    agree(model, {"x": normal(4, 8, dtype=dtype)}, tolerance=5e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize(("rows", "inner"), [(1, 40), (7, 1), (1, 1), (40, 3)])
@pytest.mark.parametrize("tokens", [1, 3, 33])
def test_thin_layers(rows: int, inner: int, tokens: int) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])]
    weights = {"w": pruned(RNG, inner, rows, 0.5), "b": normal(rows)}
    ports: tuple[Ports, Ports] = {"x": (FLOAT, [tokens, inner])}, {"y": (FLOAT, [tokens, rows])}
    agree(proto(nodes, *ports, weights), {"x": normal(tokens, inner)})


def test_one_weight_for_many_tokens_and_for_one() -> None:
    """The same constant packed twice, and once more transposed."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["many"]),
        helper.make_node("MatMul", ["z", "w"], ["one"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["many", "t"], ["back"]),
    ]
    inputs: Ports = {"x": (FLOAT, ["n", 16]), "z": (FLOAT, [1, 16])}
    outputs: Ports = {"many": (FLOAT, ["n", 24]), "one": (FLOAT, [1, 24]), "back": (FLOAT, ["n", 16])}
    model = proto(nodes, inputs, outputs, {"w": pruned(RNG, 16, 24, 0.5)})
    agree(model, {"x": normal(9, 16), "z": normal(1, 16)})


def test_a_convolution_with_an_open_batch() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"]),
    ]
    weights = {"w": normal(4, 3, 3, 3), "b": normal(4), "g": pruned(RNG, 64, 5, 0.5)}
    model = proto(nodes, {"x": (FLOAT, ["n", 3, 8, 8])}, {"y": (FLOAT, ["n", 5])}, weights)
    agree(model, *({"x": normal(n, 3, 8, 8)} for n in (0, 1, 3, 40)))


def test_integers_and_booleans() -> None:
    nodes = [
        helper.make_node("Gather", ["t", "i"], ["e"]),
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
        helper.make_node("Add", ["i", "one"], ["j"]),
        helper.make_node("Equal", ["j", "one"], ["q"]),
        helper.make_node("Where", ["q", "f", "g"], ["y"]),
    ]
    inputs: Ports = {"i": (INT, ["n", 2]), "g": (FLOAT, ["n", 2])}
    outputs: Ports = {"e": (FLOAT, ["n", 2, 6]), "y": (FLOAT, ["n", 2]), "j": (INT, ["n", 2])}
    model = proto(nodes, inputs, outputs, {"t": normal(9, 6), "one": np.array(1)})
    agree(model, {"i": np.array([[0, 8], [-1, -9]]), "g": normal(2, 2)})


def test_a_number_outside_a_table_cannot_crash() -> None:
    """onnxruntime refuses it; here the nearest row is read, never memory outside the table."""
    model = proto(
        [helper.make_node("Gather", ["t", "i"], ["y"])], {"i": (INT, ["n"])}, {"y": (FLOAT, ["n", 6])},
        {"t": np.arange(54, dtype=np.float32).reshape(9, 6)},
    )  # fmt: skip
    got = sparsec.compile(model)(np.array([9, 10**12, -10, -(10**12)]))
    np.testing.assert_array_equal(got[:, 0], [48, 48, 0, 0])


def test_inputs_nobody_reads_and_models_without_inputs() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    unread = proto([node], {"x": (FLOAT, ["n", 3]), "z": (FLOAT, ["m"])}, {"y": (FLOAT, ["n", 3])}, {})
    agree(unread, {"x": normal(2, 3), "z": normal(4)})
    agree(proto([node], {}, {"y": (FLOAT, [3])}, {"x": normal(3)}), {})


def test_a_product_over_nothing_is_zero() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.zeros((0, 4), np.float32)}
    agree(proto(nodes, {"x": (FLOAT, [3, 0])}, {"y": (FLOAT, [3, 4])}, weights), {"x": normal(3, 0)})

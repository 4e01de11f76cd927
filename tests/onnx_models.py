"""Small pruned ONNX models written by hand, for tests of the whole compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = NDArray[Any]
Size: TypeAlias = int | str


def pruned(rng: np.random.Generator, rows: int, columns: int, zeros: float = 0.9) -> Array:
    """Standard normals over the root of the rows, ``zeros`` of them zero."""
    drawn = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) >= zeros)
    return (drawn / np.sqrt(rows * (1 - zeros) + 1)).astype(np.float32)


def model(
    nodes: Sequence[Any], inputs: Mapping[str, Sequence[Size]], outputs: Mapping[str, Sequence[Size]],
    weights: Mapping[str, Array],
) -> onnx.ModelProto:  # fmt: skip
    """A checked model of float32 values."""
    ports = [
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, list(s)) for k, s in some.items()]
        for some in (inputs, outputs)
    ]
    stored = [numpy_helper.from_array(np.asarray(a), k) for k, a in weights.items()]
    graph = helper.make_graph(list(nodes), "test", *ports, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def mlp(
    batch: Size, widths: Sequence[int] = (64, 96, 48), zeros: float = 0.9, seed: int = 0
) -> onnx.ModelProto:
    """Linear layers with biases and ReLU between: ``x`` [batch, widths[0]] to ``y``."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], {}, "x"
    for i, (inner, outer) in enumerate(pairwise(widths)):
        weights[f"w{i}"] = pruned(rng, inner, outer, zeros)
        weights[f"b{i}"] = rng.standard_normal(outer).astype(np.float32)
        last = i == len(widths) - 2
        name = "y" if last else f"h{i}"
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [name], name=f"layer{i}"))
        if not last:
            nodes.append(helper.make_node("Relu", [name], [f"a{i}"], name=f"relu{i}"))
        value = f"a{i}"
    return model(nodes, {"x": (batch, widths[0])}, {"y": (batch, widths[-1])}, weights)


def encoder(
    batch: Size, length: Size, width: int = 32, heads: int = 4, seed: int = 0, zeros: float = 0.8
) -> onnx.ModelProto:
    """One transformer layer: attention, residuals, layer normalisation, a feed-forward part."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    nodes: list[Any] = []

    def const(array: Any, dtype: Any = np.float32) -> str:
        weights[f"c{len(weights)}"] = np.asarray(array, dtype)
        return f"c{len(weights) - 1}"

    def add(op: str, *args: str, output: str = "", **attributes: Any) -> str:
        name = output or f"v{len(nodes)}"
        nodes.append(helper.make_node(op, list(args), [name], name=f"{op}_{name}", **attributes))
        return name

    def linear(x: str, inner: int, outer: int) -> str:
        return add("Add", add("MatMul", x, const(pruned(rng, inner, outer, zeros))), const(rng.random(outer)))

    def heads_of(x: str, perm: Sequence[int]) -> str:
        split = add("Reshape", x, const([0, 0, heads, width // heads], np.int64))
        return add("Transpose", split, perm=perm)

    q, k, v = (heads_of(linear("x", width, width), p) for p in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)))
    scores = add("Div", add("MatMul", q, k), const(np.sqrt(width / heads)))
    mixed = add("Transpose", add("MatMul", add("Softmax", scores, axis=-1), v), perm=(0, 2, 1, 3))
    merged = linear(add("Reshape", mixed, const([0, 0, width], np.int64)), width, width)
    ones = np.ones(width)
    h = add("LayerNormalization", add("Add", merged, "x"), const(ones), const(0 * ones))
    inner = linear(h, width, 3 * width)
    erf = add("Add", add("Erf", add("Mul", inner, const(2**-0.5))), const(1.0))
    gelu = add("Mul", add("Mul", inner, const(0.5)), erf)
    out = add("Add", linear(gelu, 3 * width, width), h)
    add("LayerNormalization", out, const(ones), const(0 * ones), output="y")
    return model(nodes, {"x": (batch, length, width)}, {"y": (batch, length, width)}, weights)


def onnxruntime_run(proto: onnx.ModelProto | Path, feeds: Mapping[str, Array]) -> list[Array]:
    """onnxruntime's answer."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    source = str(proto) if isinstance(proto, Path) else proto.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, dict(feeds))
    return found


def assert_close(got: Array, want: Array, tolerance: float = 1e-5) -> None:
    """Same shape and dtype, and values to ``tolerance`` of the largest."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    scale = max(float(np.abs(want).max(initial=0)), 1e-6)
    np.testing.assert_allclose(got, want, atol=tolerance * scale, rtol=0)

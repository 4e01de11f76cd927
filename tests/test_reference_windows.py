"""Meanings of convolution, pooling, resizing, joining and cutting, against torch and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_build import BATCH, Build, random_inputs
from numpy.typing import NDArray

from sparsec.errors import IRError
from sparsec.ir.attributes import Attrs, ConcatAttrs, ConvAttrs, PadAttrs, PoolAttrs, ResizeAttrs, SliceAttrs
from sparsec.ir.expr import Arg, call, relu
from sparsec.ir.graph import Op
from sparsec.ir.resampling import taps
from sparsec.reference.evaluate import evaluate

Array = NDArray[Any]

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
functional = torch.nn.functional


def run(b: Build, output: str) -> tuple[Any, Array]:
    """The only input as a double tensor, and the value."""
    graph = b.graph(output)
    inputs = random_inputs(graph)
    (found,) = evaluate(graph, inputs, dtype=np.float64).values()
    return torch.from_numpy(next(iter(inputs.values()))).double(), found


def close(found: Array, wanted: Any) -> None:
    np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-12, atol=1e-12)


# (channels, height, width, outputs, kernel, strides, padding, dilation, groups)
CONVOLUTIONS = [
    (3, 7, 9, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (4, 9, 8, 6, (3, 2), (2, 3), (0, 1, 2, 0), (1, 1), 2),
    (5, 11, 1, 5, (5, 1), (1, 1), (2, 0, 2, 0), (1, 1), 5),
    (2, 9, 10, 3, (2, 2), (5, 4), (0, 0, 0, 0), (1, 1), 1),
    (6, 12, 11, 9, (3, 3), (1, 2), (2, 3, 2, 3), (2, 3), 3),
    (4, 1, 1, 7, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]


@pytest.mark.parametrize("sizes", CONVOLUTIONS, ids=str)
def test_conv2d(sizes: Any) -> None:
    channels, height, width, outputs, kernel, strides, padding, dilation, groups = sizes
    b = Build()
    x, w = b.input(BATCH, channels, height, width), b.random(outputs, channels // groups, *kernel)
    bias = b.random(outputs, 1, 1)
    y = b.conv(x, w, strides, padding, dilation, groups)
    fused = ConvAttrs(strides, padding, dilation, groups, relu(call("add", Arg(0), Arg(1))))
    z = b.add(Op.CONV2D, (x, w, bias), b.shape(y), fused)
    tx, found = run(b, z)
    top, left, bottom, right = padding
    padded = functional.pad(tx, (left, right, top, bottom))
    tw, tb = (torch.from_numpy(b.consts[n]).double() for n in (w, bias))
    close(found, torch.relu(functional.conv2d(padded, tw, tb.ravel(), strides, 0, dilation, groups)))


# (height, width, kernel, strides, padding, dilation, ceil_mode)
POOLS: list[Any] = [
    (8, 9, (2, 2), (2, 2), (0, 0), (1, 1), False),
    (8, 9, (3, 3), (2, 2), (1, 1), (1, 1), True),
    (7, 10, (2, 3), (3, 4), (0, 1), (1, 1), True),
    (13, 1, (4, 1), (3, 1), (2, 0), (1, 1), True),
    (11, 12, (3, 3), (2, 1), (1, 0), (2, 3), False),
    (1, 1, (1, 1), (1, 1), (0, 0), (1, 1), False),
]


@pytest.mark.parametrize("sizes", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["max", "mean", "counting"])
def test_pool(sizes: Any, kind: str) -> None:
    height, width, kernel, strides, padding, dilation, ceil_mode = sizes
    b = Build()
    x = b.input(BATCH, 3, height, width)
    probe = torch.zeros(1, 3, height, width)
    if kind == "max":
        wanted = torch.nn.MaxPool2d(kernel, strides, padding, dilation, ceil_mode=ceil_mode)
    elif dilation != (1, 1):
        pytest.skip("torch knows no dilated mean")
    else:
        wanted = torch.nn.AvgPool2d(kernel, strides, padding, ceil_mode, kind == "counting")
    attrs = PoolAttrs(
        kind.replace("counting", "mean"), kernel, strides, padding * 2, dilation, kind == "counting"
    )
    y = b.add(Op.POOL, (x,), (BATCH, *wanted(probe).shape[1:]), attrs)
    tx, found = run(b, y)
    close(found, wanted(tx))


def onnx_value(node: Any, x: Array, **constants: Array) -> Array:
    """What onnxruntime computes for one node of x."""
    runtime = pytest.importorskip("onnxruntime")
    given = [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "one", [value("x", 1, x.shape)], [value("y", 1, None)], given)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": x})[0]
    return found


METHODS = [
    ("linear", "half_pixel", "floor"),
    ("linear", "pytorch_half_pixel", "floor"),
    ("linear", "align_corners", "floor"),
    ("linear", "asymmetric", "floor"),
    ("nearest", "half_pixel", "round_prefer_floor"),
    ("nearest", "pytorch_half_pixel", "ceil"),
    ("nearest", "align_corners", "round_prefer_ceil"),
    ("nearest", "asymmetric", "floor"),
]


@pytest.mark.parametrize("method", METHODS, ids=" ".join)
@pytest.mark.parametrize("sizes", [(5, 7, 10, 14), (6, 1, 9, 3), (8, 9, 3, 1), (1, 4, 5, 4), (7, 5, 9, 13)])
def test_resize(method: tuple[str, str, str], sizes: tuple[int, ...]) -> None:
    b = Build()
    x = b.input(2, 3, *sizes[:2])
    y = b.add(Op.RESIZE, (x,), (2, 3, *sizes[2:]), ResizeAttrs(*method))
    tx, found = run(b, y)
    node = onnx.helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode=method[0], coordinate_transformation_mode=method[1],
        nearest_mode=method[2],
    )  # fmt: skip
    wanted = onnx_value(node, tx.float().numpy(), sizes=np.array((2, 3, *sizes[2:]), np.int64))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_taps_of_a_doubled_axis() -> None:
    low, high, weight = taps(ResizeAttrs("linear", "half_pixel"), 3, 6)
    assert low.tolist() == [0, 0, 0, 1, 1, 2]
    assert high.tolist() == [1, 1, 1, 2, 2, 2]
    assert weight.tolist() == [0, 0.25, 0.75, 0.25, 0.75, 0]


def test_joins_and_cuts() -> None:
    b = Build()
    x = b.input(BATCH, 5, 7)
    cut = b.cut(x, (0, 1, 2), (1, 2, 3), (BATCH, 2, 2))
    padded = b.add(Op.PAD, (cut,), (BATCH, 4, 5), PadAttrs((0, 2, 1), 0.5))
    joined = b.concat(1, padded, padded)
    tx, found = run(b, joined)
    part = functional.pad(tx[:, 1::2, 2::3], (1, 2, 2, 0), value=0.5)
    close(found, torch.cat([part, part], 1))


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "message"),
    [
        (Op.CONV2D, (2, 4, 5, 5), ConvAttrs(), r"the result must be \[2, 4, 3, 3\], not f32\[2, 4, 5, 5\]"),
        (Op.CONV2D, (2, 4, 3, 3), ConvAttrs(groups=3), r"3 channels in 3 groups do not fit a weight"),
        (Op.POOL, (2, 3, 4, 4), PoolAttrs("max", (2, 2), (2, 2)), r"4 windows of stride 2 do not fit 5"),
        (Op.POOL, (2, 4, 2, 2), PoolAttrs("max", (2, 2), (2, 2)), r"the same number and channels"),
        (Op.RESIZE, (2, 9, 9), ResizeAttrs("linear"), r"the same number and channels"),
        (Op.CONCAT, (2, 7, 5, 5), ConcatAttrs(1), r"parts \[\[2, 3, 5, 5\]\] do not fit"),
        (Op.SLICE, (2, 2, 2, 2), SliceAttrs((0,) * 4, (1, 1, 1, 5)), r"2 elements from 0 by 5 do not fit 5"),
        (Op.PAD, (2, 3, 5, 6), PadAttrs((0, 0, 0, 2)), r"5 elements after 2 do not fit 6"),
    ],
)  # fmt: skip
def test_types_that_do_not_fit_are_named(op: Op, shape: Any, attrs: Attrs, message: str) -> None:
    b = Build()
    x, w = b.input(2, 3, 5, 5), b.random(4, 3, 3, 3)
    b.add(op, (x, w) if op is Op.CONV2D else (x,), shape, attrs)
    with pytest.raises(IRError, match=message):
        b.graph(list(b.nodes)[-1])

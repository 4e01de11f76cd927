"""Convolutions, pools, resizes, joins and cuts: imported and compared with onnxruntime and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from sparsec.frontends.from_onnx import from_onnx  # noqa: E402
from sparsec.ir.attributes import TirAttrs  # noqa: E402
from sparsec.ir.graph import Graph, Op  # noqa: E402
from sparsec.reference.evaluate import evaluate  # noqa: E402
from sparsec.targets.opaque import run  # noqa: E402

RNG = np.random.default_rng(31)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def agree(nodes: list[Any], x: Any, weights: dict[str, Any] | None = None, batch: int = 2) -> Graph:
    """The graph of a model from x to y; its value is onnxruntime's. A named size becomes ``batch``."""
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    value = helper.make_tensor_value_info
    outputs = [value(o, TensorProto.FLOAT, None) for o in nodes[-1].output]
    proto = helper.make_model(
        helper.make_graph(nodes, "one", [value("x", TensorProto.FLOAT, x)], outputs, constants),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    feeds = {"x": floats(*(batch if isinstance(s, str) else s for s in x))}
    graph = from_onnx(proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got = evaluate(graph, feeds, run)
    for output, want in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert got[output.name].shape == want.shape
        np.testing.assert_allclose(got[output.name], want, rtol=1e-5, atol=1e-5)
    return graph


def left(graph: Graph) -> list[str]:
    """The kinds of node that compute something; a tir node by its source."""
    return [
        n.attrs.source if isinstance(n.attrs, TirAttrs) else str(n.op)
        for n in graph.nodes
        if n.op not in (Op.INPUT, Op.CONST, Op.RESHAPE, Op.TRANSPOSE)
    ]


def one(kind: str, *inputs: str, **attributes: Any) -> list[Any]:
    return [helper.make_node(kind, ["x", *inputs], ["y"], name="it", **attributes)]


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        (("N", 3, 9, 8), (4, 3, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        (("N", 4, 9, 9), (6, 2, 3, 3), {"group": 2, "dilations": [2, 1]}),
        (("N", 3, 9, 8), (4, 3, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        (("N", 5, 17), (4, 5, 3), {"pads": [2, 1], "strides": [2]}),
        (("N", 3, 1, 9, 8), (4, 3, 1, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
        (("N", 3, 4, 5, 6), (4, 3, 1, 3, 3), {}),
    ],
    ids=str,
)  # fmt: skip
def test_convolutions(x: Any, w: Any, attributes: Any) -> None:
    graph = agree(one("Conv", "w", "b", **attributes), x, {"w": floats(*w), "b": floats(w[0])})
    assert [k for k in left(graph) if k != "pad"] == ["conv2d", "elementwise"]


def test_convolutions_we_have_no_word_for_stay_with_relax() -> None:
    deep = agree(one("Conv", "w"), ("N", 2, 4, 5, 5), {"w": floats(3, 2, 2, 3, 3)})
    assert "relax.nn.conv3d" in left(deep)
    weight = [helper.make_node("Split", ["x"], ["a", "w"], axis=0, num_outputs=2)]
    graph = agree([*weight, helper.make_node("Conv", ["a", "w"], ["y"], name="it")], (2, 3, 5, 5))
    assert left(graph)[-1] == "relax.nn.conv2d"


@pytest.mark.parametrize(
    ("w", "attributes", "convolutions"),
    [
        ((3, 4, 2, 2), {"strides": [2, 2]}, 1),
        ((3, 4, 6, 2), {"strides": [3, 2]}, 1),
        ((3, 4, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, 4),
        ((3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, 4),
        ((3, 4, 3, 5), {"strides": [2, 1], "pads": [0, 2, 1, 1]}, 2),
        ((3, 4, 3, 3), {"strides": [1, 1]}, 1),
        ((3, 4, 2, 2), {"strides": [3, 3]}, 0),
        ((3, 4, 3, 3), {"strides": [2, 2], "dilations": [2, 2]}, 0),
        ((3, 4, 2, 2), {"strides": [2, 2], "group": 3}, 0),
    ],
    ids=str,
)  # fmt: skip
def test_transposed_convolutions(w: Any, attributes: Any, convolutions: int) -> None:
    bias = floats(w[1] * attributes.get("group", 1))
    graph = agree(one("ConvTranspose", "w", "b", **attributes), ("N", 3, 5, 6), {"w": floats(*w), "b": bias})
    assert left(graph).count("conv2d") == convolutions
    assert ("relax.nn.conv2d_transpose" in left(graph)) == (convolutions == 0)


@pytest.mark.parametrize(
    ("kind", "x", "attributes"),
    [
        ("MaxPool", ("N", 3, 9, 8), {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1]}),
        ("MaxPool", ("N", 3, 10, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", ("N", 3, 6, 6), {"kernel_shape": [1, 1], "strides": [3, 3], "ceil_mode": 1}),
        ("MaxPool", ("N", 3, 9, 9), {"kernel_shape": [2, 2], "dilations": [2, 3]}),
        ("MaxPool", ("N", 3, 13), {"kernel_shape": [3], "strides": [2]}),
        ("MaxPool", ("N", 3, 2, 8, 8), {"kernel_shape": [1, 2, 2], "strides": [1, 2, 2]}),
        ("AveragePool", ("N", 3, 9, 8), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("AveragePool", ("N", 3, 9, 8), {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
        ("AveragePool", ("N", 3, 8), {"kernel_shape": [3], "strides": [3], "ceil_mode": 1}),
    ],
    ids=str,
)  # fmt: skip
def test_pools(kind: str, x: Any, attributes: Any) -> None:
    assert left(agree(one(kind, **attributes), x)) == ["pool"]


@pytest.mark.parametrize("kind", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(kind: str) -> None:
    assert left(agree(one(kind), ("N", 3, 5, 4))) == ["reduce"]


@pytest.mark.parametrize(
    ("sizes", "attributes"),
    [
        ((2, 3, 10, 15), {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
        ((2, 3, 9, 2), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
        ((2, 3, 10, 10), {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
        ((2, 3, 3, 12), {}),
    ],
    ids=str,
)  # fmt: skip
def test_resizes(sizes: Any, attributes: Any) -> None:
    nodes = [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="it", **attributes)]
    assert left(agree(nodes, (2, 3, 5, 5), {"sizes": np.array(sizes)})) == ["resize"]


def test_cubic_resizes_stay_with_relax() -> None:
    nodes = [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="it", mode="cubic")]
    assert left(agree(nodes, (1, 2, 5, 5), {"sizes": np.array((1, 2, 7, 9))})) == ["relax.image.resize2d"]


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps", "kind"),
    [
        ([1, 0], [3, 100], [1, 3], [1, 2], ["slice"]),
        ([-2], [2**63 - 1], [2], [1], ["slice"]),
        ([0], [-1], [1], [1], ["slice"]),
        ([0], [100], [3], [1], []),
        ([-1], [-100], [2], [-1], ["relax.strided_slice"]),
    ],
    ids=str,
)  # fmt: skip
def test_slices(starts: Any, ends: Any, axes: Any, steps: Any, kind: list[str]) -> None:
    given = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    weights = {n: np.array(a, np.int64) for n, a in given.items()}
    assert left(agree(one("Slice", *given), ("N", 4, 5, 6), weights)) == kind


def test_joins_and_parts() -> None:
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        helper.make_node("Concat", ["b", "a", "b"], ["c"], axis=-1),
        helper.make_node("Gather", ["c", "row"], ["d"], axis=2),
        helper.make_node("Gather", ["d", "several"], ["e"], axis=1),
        helper.make_node("Unsqueeze", ["e", "axes"], ["f"]),
        helper.make_node("Pad", ["f", "pads", "value"], ["y"]),
    ]
    weights = {
        "sizes": np.array([2, 2]), "row": np.array(-2), "several": np.array([0, 1]), "axes": np.array([1]),
        "pads": np.array([0, 1, 0, 2, 0, 0, 0, 3]), "value": np.float32(0.25),
    }  # fmt: skip
    graph = agree(nodes, ("N", 4, 5, 6), weights)
    assert left(graph) == ["slice", "slice", "concat", "slice", "pad"]


def test_gathers_of_uneven_indices_stay_with_relax() -> None:
    graph = agree(one("Gather", "rows", axis=1), ("N", 5, 3), {"rows": np.array([0, 3, 1])})
    assert left(graph) == ["relax.take"]


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_other_pads_stay_with_relax(mode: str) -> None:
    graph = agree(one("Pad", "pads", mode=mode), ("N", 2, 5), {"pads": np.array([0, 0, 2, 0, 0, 1])})
    assert left(graph)[0].startswith("relax.")


def test_pads_by_nothing_are_no_nodes() -> None:
    assert left(agree(one("Pad", "pads"), ("N", 2, 5), {"pads": np.zeros(6, np.int64)})) == []


def test_normalisations_and_activations() -> None:
    parts = [floats(4), floats(4), floats(4), abs(floats(4)) + 0.5]
    names = ("scale", "shift", "mean", "var")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", *names], ["n"]),
        helper.make_node("HardSwish", ["n"], ["h"]),
        helper.make_node("PRelu", ["h", "slope"], ["p"]),
        helper.make_node("InstanceNormalization", ["p", "scale", "shift"], ["y"]),
    ]
    weights = {"w": floats(4, 3, 3, 3), "slope": floats(4, 1, 1), **dict(zip(names, parts, strict=True))}
    graph = agree(nodes, ("N", 3, 6, 5), weights)
    assert set(left(graph)) == {"conv2d", "elementwise", "reduce"}


def test_depth_to_space_and_back() -> None:
    nodes = [
        helper.make_node("DepthToSpace", ["x"], ["d"], blocksize=2, mode="CRD"),
        helper.make_node("SpaceToDepth", ["d"], ["y"], blocksize=2),
    ]
    assert left(agree(nodes, (2, 8, 3, 4))) == []


def test_transposed_convolutions_of_sequences() -> None:
    nodes = one("ConvTranspose", "w", "b", strides=[2], pads=[1, 1])
    graph = agree(nodes, ("N", 3, 7), {"w": floats(3, 4, 4), "b": floats(4)})
    assert left(graph).count("conv2d") == 2 and "relax.nn.conv1d_transpose" not in left(graph)


def torch_agree(module: Any, *shape: int) -> list[str]:
    """What is left of a torch module of one input, whose value is the module's."""
    torch = pytest.importorskip("torch")
    from sparsec.frontends.from_torch import from_torch

    x = torch.from_numpy(floats(*shape))
    graph = from_torch(module, (x,))
    with torch.no_grad():
        wanted = module.eval()(x).numpy()
    (found,) = evaluate(graph, {graph.inputs[0].name: x.numpy()}, run).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)
    return left(graph)


def test_torch_modules() -> None:
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional

    class Small(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
            self.norm, self.groups = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
            self.norm.running_mean.normal_()

        def forward(self, x: Any) -> Any:
            y = functional.hardtanh(self.norm(self.conv(x)))
            left, right = self.groups(functional.pad(y, (1, 0, 2, 1))).chunk(2, 1)
            pooled = functional.avg_pool2d(torch.cat([left, right * 2], 1), 2, ceil_mode=True)
            return functional.adaptive_avg_pool2d(pooled, 1).flatten(1)

    kinds = torch_agree(Small(), 2, 3, 11, 10)
    assert not [k for k in kinds if k.startswith("relax.")]
    assert {"conv2d", "pad", "layer_norm", "slice", "concat", "pool", "reduce"} <= set(kinds)


def test_torch_sequences_and_upsampling() -> None:
    nn = pytest.importorskip("torch.nn")
    sequence = nn.Sequential(
        nn.Conv1d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(5)
    )
    assert torch_agree(sequence, 2, 3, 20) == ["conv2d", "elementwise", "elementwise", "pool", "pool"]
    up = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 2, 2), nn.UpsamplingBilinear2d(scale_factor=2), nn.Upsample(scale_factor=3)
    )  # fmt: skip
    assert torch_agree(up, 1, 3, 4, 5) == ["conv2d", "elementwise", "resize", "resize"]


def test_torch_instance_norm() -> None:
    nn = pytest.importorskip("torch.nn")
    assert set(torch_agree(nn.InstanceNorm2d(3, affine=True), 2, 3, 4, 5)) == {
        "concat",
        "layer_norm",
        "elementwise",
    }


def test_torch_repeats() -> None:
    nn = pytest.importorskip("torch.nn")

    class Repeated(nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return x.repeat(2, 1, 3)

    assert torch_agree(Repeated(), 2, 3) == ["concat", "concat"]

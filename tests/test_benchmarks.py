"""What the benchmarks' tables rest on: how networks are pruned, and how their work is counted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import convolutional  # noqa: E402
from convolutional import Pruning  # noqa: E402
from operations import useful_operations  # noqa: E402
from train_digits import folded, network  # noqa: E402


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of two axes or more, by the name of the operator that reads them."""
    graph = onnx.load(path).graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    layers = [n for n in graph.node if n.op_type in ("Conv", "Gemm")]
    return {f"{n.op_type}{i}": arrays[n.input[1]] for i, n in enumerate(layers)}


@pytest.mark.slow
def test_mobilenet_is_pruned_in_its_1x1_convolutions_only(tmp_path: Path) -> None:
    path = convolutional.exported(
        convolutional.mobilenet_v1, (1, 3, 64, 64), Pruning(0.9, only_1x1=True), tmp_path / "m.onnx"
    )
    found = weights(path)
    assert len(found) == 28 and not any(n.op_type == "BatchNormalization" for n in onnx.load(path).graph.node)
    for name, w in found.items():
        pruned = name.startswith("Conv") and w.shape[2:] == (1, 1)
        assert abs(np.mean(w == 0) - (0.9 if pruned else 0)) < 1e-3, name
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    y = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert 0.05 < y.std() < 20


@pytest.mark.slow
def test_resnet18_keeps_its_first_layer_and_prunes_the_others_alike(tmp_path: Path) -> None:
    path = convolutional.exported(convolutional.resnet18, (1, 3, 64, 64), Pruning(0.8), tmp_path / "r.onnx")
    first, *others = weights(path).values()
    assert first.shape == (64, 3, 7, 7) and np.count_nonzero(first) == first.size
    assert len(others) == 20 and all(abs(np.mean(w == 0) - 0.8) < 1e-3 for w in others)


def test_blocks_of_outputs_are_pruned_whole(tmp_path: Path) -> None:
    make = lambda: convolutional.layer_3x3(16)  # noqa: E731
    path = convolutional.exported(make, (1, 16, 5, 5), Pruning(0.75, outputs=4), tmp_path / "b.onnx")
    kept = weights(path)["Conv0"].reshape(4, 4, -1) != 0
    assert (kept == kept[:, :1]).all() and kept.mean() == 0.25
    assert useful_operations(path, None) == 2 * (16 * 16 * 9 // 4) * 25


def test_work_is_counted_for_every_place_a_weight_is_used_at(tmp_path: Path) -> None:
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    w = np.zeros((6, 3, 3, 3), np.float32)
    w.flat[:10] = 1
    v = np.eye(6, 7, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["y"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "v"], ["z"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 9, 7])],
        [helper.make_tensor_value_info("z", 1, None)],
        [tensor(w, "w"), tensor(v, "v")],
    )
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert useful_operations(path, {"x": (2, 3, 9, 7)}) == 2 * 10 * (2 * 4 * 3) + 2 * 6 * 2
    assert useful_operations(path, None) is None


def test_folding_the_digits_network_changes_nothing() -> None:
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        model.train()(torch.rand(50, 64))
        x = torch.rand(7, 64)
        assert torch.allclose(folded(model.eval())(x), model(x), atol=1e-5)

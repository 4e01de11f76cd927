"""Every real model beside the repository: imported and compared with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tvm")

from sparsec.errors import Unsupported  # noqa: E402
from sparsec.frontends.from_onnx import from_onnx  # noqa: E402
from sparsec.ir.graph import Graph, Op  # noqa: E402
from sparsec.ir.types import is_dynamic  # noqa: E402
from sparsec.reference.evaluate import evaluate  # noqa: E402
from sparsec.targets.opaque import run  # noqa: E402

#: imported with the sizes the model leaves open
SYMBOLIC = (
    "minilm/enc_sgpt_u50.onnx", "minilm/enc_sgpt_u80.onnx", "models/basic_pitch/model.onnx",
    "models/dtln_1/model.onnx", "models/dtln_2/model.onnx", "models/fastestdet/model.onnx",
    "models/gonnx_ndm/model.onnx", "models/magika_standard_v3_3/model.onnx",
    "models/micro_kws_m_fp32/model.onnx", "models/micro_kws_m_qdq/model.onnx",
    "models/mjx_g1/model.onnx", "models/mjx_go1/model.onnx", "models/mjx_leap/model.onnx",
    "models/mnist_burn/model.onnx", "models/mnist_cntk/model.onnx", "models/mnist_onnx2c_pytorch/model.onnx",
    "models/nanodet_m_320/model.onnx", "models/resnet_cifar_resnet20/model.onnx",
    "models/resnet_cifar_resnet32/model.onnx", "models/ultraface_rfb320_simplified/model.onnx",
    "models/ultraface_slim320/model.onnx",
    "pruned/distiller_ssl_channel_regularized_resnet20_finetuned/model.onnx",
    "pruned/distiller_ssl_dense/model.onnx", "pruned/dns_lenet5_original/model.onnx",
    "pruned/dns_lenet5_sparse/model.onnx",
)  # fmt: skip

#: imported once their sizes are fixed
FIXED = {"models/ppocr_v2_cls/model.onnx": {"x": (1, 3, 48, 192)}}


def feeds(graph: Graph, size: int = 2) -> dict[str, Any]:
    """Random inputs; masks are ones, unknown sizes are ``size``."""
    rng = np.random.default_rng(11)
    made: dict[str, Any] = {}
    for node in graph.inputs:
        shape = [s if isinstance(s, int) else size for s in node.type.shape]
        if node.type.dtype != "float32":
            made[node.name] = rng.integers(0, 100, shape).astype(node.type.dtype)
        else:
            made[node.name] = rng.standard_normal(shape).astype(np.float32)
        if "mask" in node.name:
            made[node.name] = np.ones(shape, np.float32)
    return made


def compare(path: Path, graph: Graph) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # onnxruntime's optimiser moves quantisation steps, which flips roundings
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = feeds(graph)
    got = evaluate(graph, inputs, run)
    for output, want in zip(session.get_outputs(), session.run(None, inputs), strict=True):
        scale = max(float(np.abs(want).max()), 1e-6)
        np.testing.assert_allclose(got[output.name], want, atol=1e-4 * scale, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYMBOLIC)
def test_imports_as_it_is(shared_data: Path, name: str) -> None:
    graph = from_onnx(shared_data / name)
    compare(shared_data / name, graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_imports_with_fixed_sizes(shared_data: Path, name: str) -> None:
    path = shared_data / name
    with pytest.raises(Unsupported, match="fix the input sizes"):
        from_onnx(path)
    compare(path, from_onnx(path, FIXED[name]))


@pytest.mark.parametrize("shapes", [None, {"embeddings": (1, 7, 384), "attention_mask": (1, 7)}])
def test_the_encoder_needs_no_tir(shared_data: Path, shapes: Any) -> None:
    graph = from_onnx(shared_data / "minilm/enc_sgpt_u80.onnx", shapes)
    count = {op: sum(n.op is op for n in graph.nodes) for op in Op}
    assert count[Op.TIR] == 0
    assert (count[Op.MATMUL], count[Op.LAYER_NORM], count[Op.SOFTMAX]) == (48, 12, 6)
    assert is_dynamic(graph.inputs[0].type.shape) == (shapes is None)
    weights = [c for c in graph.consts.values() if c.ndim == 2]
    assert sum(float((w == 0).mean()) > 0.75 for w in weights) == 36


def test_importing_twice_gives_the_same_graph(shared_data: Path) -> None:
    path = shared_data / "pruned/dns_lenet5_sparse/model.onnx"
    assert from_onnx(path).same_as(from_onnx(path))

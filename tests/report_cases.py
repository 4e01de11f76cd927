"""Reports that tests of explain share: one of a real model, measured and pruned, and layers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

import sparsec
from sparsec.explain.measured import measured
from sparsec.explain.what_if import analysed, as_if_pruned, compared
from sparsec.feeds import random
from sparsec.frontends import import_model
from sparsec.sparsity.prune import Pruning
from sparsec.targets.x86 import AVX2

RANDOM = np.random.default_rng(11)


def pruned(shape: tuple[int, ...], density: float) -> np.ndarray:
    weight = RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return np.where(RANDOM.random(shape) < density, weight, 0).astype(np.float32)


def residual() -> Any:
    """Two convolutions with a residual, pooled, and a classifier; batch is left open."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    consts = {"a": pruned((32, 16, 3, 3), 0.1), "b": pruned((32, 32, 3, 3), 1.0), "c": pruned((32, 10), 0.3)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b"], ["r"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("Add", ["q", "r"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["t"]),
        helper.make_node("Flatten", ["t"], ["u"]),
        helper.make_node("MatMul", ["u", "c"], ["y"], name="<last & least>"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["batch", 16, 8, 8])],
        [helper.make_tensor_value_info("y", 1, ["batch", 10])], [tensor(w, n) for n, w in consts.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measured_report() -> dict[str, Any]:
    """Measured beside dense kernels, and with what another pruning is predicted to change."""
    program, dense = (sparsec.compile(residual(), target=AVX2, dense=d) for d in (False, True))
    feeds = random(program.inputs, {"batch": 2})
    found = measured(program, feeds, dense, rounds=2)
    graph = import_model(residual())
    pruning = Pruning(0.9, (16, 1))
    then = analysed(as_if_pruned(graph, AVX2, pruning), AVX2)
    return found | {"what_if": compared(found, then, pruning)}


def layer(node: str, kernel: str, times: dict[str, float], **more: Any) -> dict[str, Any]:
    formats = {"csr_spmm": "csr", "bsr_spmm": "bsr"}
    candidates = [
        {"kernel": k, "format": formats.get(k, "dense"), "microseconds": t, "nbytes": 10}
        for k, t in times.items()
    ]
    return {
        "node": node, "kernel": kernel, "format": formats.get(kernel, "dense"), "candidates": candidates,
        "shape": [8, 8], "tokens": 32, "sparsity": 0.62, "found": "62.0 % zero, unstructured", "bytes": 40,
        "dense_bytes": 100, "reason": f"{kernel}: fastest", "origin": "", **more,
    }  # fmt: skip

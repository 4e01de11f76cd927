"""Matrices as models, and the dispatcher."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from sparsec.errors import ModelError
from sparsec.frontends import import_model
from sparsec.frontends.from_scipy import from_scipy
from sparsec.ir.dims import symbol
from sparsec.ir.graph import Op
from sparsec.reference.evaluate import evaluate

RNG = np.random.default_rng(3)


def pruned(rows: int, columns: int) -> Any:
    return sparse.random(rows, columns, 0.2, "csr", np.float32, random_state=RNG)


def test_one_matrix_is_one_linear_layer() -> None:
    weight, x = pruned(30, 20), RNG.standard_normal((7, 20)).astype(np.float32)
    graph = from_scipy(weight)
    assert graph.inputs[0].type.shape == (symbol("tokens"), 20)
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], (weight @ x.T).T, rtol=1e-5, atol=1e-5)


def test_a_stack_of_layers() -> None:
    first, second, bias = pruned(24, 10), pruned(6, 24).toarray(), RNG.standard_normal(24)
    graph = from_scipy([(first, bias, "relu"), (second, None, "tanh")])
    x = RNG.standard_normal((5, 10)).astype(np.float32)
    hidden = np.maximum(x @ first.toarray().T + bias, 0)
    np.testing.assert_allclose(
        evaluate(graph, {"x": x})["y"], np.tanh(hidden @ second.T), rtol=1e-4, atol=1e-5
    )
    assert [n.op for n in graph.nodes if n.op is Op.MATMUL] == [Op.MATMUL] * 2


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "sigmoid"])
def test_activations(activation: str) -> None:
    assert from_scipy([(pruned(4, 3), None, activation)]).nodes[-1].op is Op.ELEMENTWISE


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([], "empty"),
        (np.zeros(3), "must be a matrix"),
        (np.zeros((2, 2), complex), "real numbers"),
        ([np.zeros((2, 2))], r"\(weight, bias or None"),
        ([(pruned(4, 3), None, None), (pruned(2, 5), None, None)], "takes 5 features, but layer 0 makes 4"),
        ([(pruned(4, 3), np.zeros(3), None)], "the bias has 3 numbers, not 4"),
        ([(pruned(4, 3), None, "softplus")], "'softplus' is none of relu"),
    ],
)
def test_bad_layers_are_refused(layers: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        from_scipy(layers)


def test_the_dispatcher_knows_matrices() -> None:
    weight = pruned(8, 8)
    assert import_model(weight).same_as(from_scipy(weight))
    assert import_model([(weight, None, "relu")]).output_names == ("y",)


@pytest.mark.parametrize("model", [3, object(), {"a": 1}, "model.pt", "model.h5"])
def test_the_dispatcher_says_what_it_accepts(model: Any) -> None:
    with pytest.raises(ModelError, match="scipy sparse matrix"):
        import_model(model)


def test_shapes_belong_to_onnx() -> None:
    with pytest.raises(ModelError, match="shapes is for ONNX"):
        import_model(pruned(2, 2), shapes={"x": (1, 2)})


def test_the_dispatcher_imports_no_framework_by_itself() -> None:
    code = (
        "import sys, numpy; from sparsec.frontends import import_model; import_model(numpy.ones((2, 2)));"
        "print([m for m in ('torch', 'onnx', 'tvm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

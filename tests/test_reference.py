"""The oracle itself, held against torch and scipy on random inputs."""

from __future__ import annotations

from typing import Any

import corpus_attention
import numpy as np
import pytest
import scipy.special
from graph_build import BATCH, LENGTH, Build, random_inputs
from numpy.typing import NDArray

from sparsec.errors import InputError, IRError
from sparsec.ir import expr
from sparsec.ir.attributes import AttentionAttrs, ItemAttrs, MatmulAttrs, SoftmaxAttrs, TirAttrs
from sparsec.ir.expr import Arg, Scalar, call
from sparsec.ir.graph import Graph, Op
from sparsec.ir.types import Type
from sparsec.reference.evaluate import evaluate, evaluate_node
from sparsec.reference.expr import evaluate_expr

Array = NDArray[Any]

torch = pytest.importorskip("torch")


def run(b: Build, *outputs: str) -> tuple[list[Any], list[Array]]:
    """Inputs as double tensors, and the outputs in double precision."""
    graph = b.graph(*outputs)
    inputs = random_inputs(graph)
    found = evaluate(graph, inputs, dtype=np.float64)
    return [torch.from_numpy(a).double() for a in inputs.values()], list(found.values())


def close(found: Array, wanted: Any) -> None:
    np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-12, atol=1e-12)


def test_matmul_with_epilogue() -> None:
    b = Build()
    x, w, bias = b.input(BATCH, LENGTH, 6), b.random(6, 4), b.random(4)
    relu = MatmulAttrs(expr.relu(call("add", Arg(0), Arg(1))))
    y = b.add(Op.MATMUL, (x, w, bias), (BATCH, LENGTH, 4), relu)
    (tx,), (found,) = run(b, y)
    tw, tbias = (torch.from_numpy(b.consts[name]).double() for name in (w, bias))
    close(found, torch.relu(torch.nn.functional.linear(tx, tw.T, tbias)))


@pytest.mark.parametrize("mask_shape", [None, (BATCH, 1, 1, LENGTH), (7, LENGTH), (LENGTH,)])
def test_attention(mask_shape: tuple[Any, ...] | None) -> None:
    b = Build()
    q, k, v = b.input(BATCH, 7, 12), b.input(BATCH, LENGTH, 12), b.input(BATCH, LENGTH, 12)
    mask = () if mask_shape is None else (b.input(*mask_shape),)
    y = b.add(Op.ATTENTION, (q, k, v, *mask), (BATCH, 7, 12), AttentionAttrs(3, 0.3))
    (tq, tk, tv, *tmask), (found,) = run(b, y)
    heads = [t.reshape(t.shape[0], t.shape[1], 3, 4).transpose(1, 2) for t in (tq, tk, tv)]
    attend = torch.nn.functional.scaled_dot_product_attention
    wanted = attend(*heads, attn_mask=torch.atleast_2d(*tmask) if tmask else None, scale=0.3)
    close(found, wanted.transpose(1, 2).reshape(found.shape))


def test_normalisations() -> None:
    b = Build()
    x = b.input(BATCH, 5, 6)
    norm = b.layer_norm(x)
    along = b.add(Op.SOFTMAX, (x,), (BATCH, 5, 6), SoftmaxAttrs(1))
    log = b.add(Op.SOFTMAX, (x,), (BATCH, 5, 6), SoftmaxAttrs(2, log=True))
    (tx,), found = run(b, norm, along, log)
    gamma, beta = (torch.from_numpy(b.consts[a]).double() for a in b.nodes[norm].args[1:])
    close(found[0], torch.nn.functional.layer_norm(tx, (6,), gamma, beta, 1e-5))
    close(found[1], torch.softmax(tx, 1))
    close(found[2], torch.log_softmax(tx, 2))


def test_moves_and_reductions() -> None:
    b = Build()
    x = b.input(BATCH, 3, 4)
    moved = b.reshape(b.transpose(x, 2, 0, 1), 4 * BATCH, 3)
    kinds = [b.reduce(k, x, 0, 2, keepdims=True) for k in ("sum", "mean", "max", "min")]
    same = b.add(Op.RELAYOUT, (x,), (BATCH, 3, 4))
    (tx,), found = run(b, moved, same, *kinds)
    close(found[0], tx.permute(2, 0, 1).reshape(-1, 3))
    close(found[1], tx)
    for array, kind in zip(found[2:], (torch.sum, torch.mean, torch.amax, torch.amin), strict=True):
        close(array, kind(tx, dim=(0, 2), keepdim=True))


TORCH_NAMES = {"max": "maximum", "min": "minimum", "less": "lt", "less_equal": "le", "equal": "eq"}


@pytest.mark.parametrize("function", sorted(expr.FUNCTIONS))
def test_functions(function: str) -> None:
    rng = np.random.default_rng(7)
    count = expr.FUNCTIONS[function]
    operands = [np.abs(rng.standard_normal(50)) + 0.1 for _ in range(count)]
    operands[-1][:10] = operands[0][:10]
    if function == "where":
        operands[0][::2] = 0
    found = evaluate_expr(call(function, *map(Arg, range(count))), operands, np.float64)
    tensors = [torch.from_numpy(o) for o in operands]
    if function == "where":
        tensors[0] = tensors[0] != 0
    close(found, getattr(torch, TORCH_NAMES.get(function, function))(*tensors).double())


def test_named_activations() -> None:
    x = np.linspace(-6, 6, 101)
    tensor, act = torch.from_numpy(x), torch.nn.functional
    close(evaluate_expr(expr.gelu(Arg(0)), [x], x.dtype), act.gelu(tensor))
    close(evaluate_expr(expr.silu(Arg(0)), [x], x.dtype), act.silu(tensor))
    close(evaluate_expr(expr.clip(Arg(0), -1, 6), [x], x.dtype), act.hardtanh(tensor, -1, 6))
    close(evaluate_expr(call("erf", Arg(0)), [x], x.dtype), scipy.special.erf(x))


def test_float32_stays_float32_and_is_near_the_oracle() -> None:
    graph = corpus_attention.attention_exported()
    inputs = random_inputs(graph)
    single, double = evaluate(graph, inputs)["out0"], evaluate(graph, inputs, dtype=np.float64)["out0"]
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5)


def test_integers_divide_towards_zero() -> None:
    x = np.array([-7, 7, -6, 1])
    assert evaluate_expr(call("div", Arg(0), Scalar(2.0)), [x], np.int64).tolist() == [-3, 3, -3, 0]


def test_casts_go_through_the_wider_type() -> None:
    b = Build()
    x = b.input(4)
    whole = b.elementwise(call("mul", Arg(0), Scalar(10.0)), x, dtype="int64")
    found = evaluate(b.graph(whole), {x: np.float32([-0.26, 0.26, 0.99, 3])})["out0"]
    assert found.tolist() == [-2, 2, 9, 30]


def test_tir_and_items() -> None:
    b = Build()
    outputs = (Type((BATCH,)), Type((2 * BATCH, 1), "int64"))
    both = b.add(Op.TIR, (b.input(BATCH),), (BATCH,), TirAttrs("relax.split", "split", "", outputs))
    second = b.add(Op.ITEM, (both,), (2 * BATCH, 1), ItemAttrs(1), "int64")
    graph = b.graph(both, second)
    seen: list[tuple[Type, ...]] = []

    def runner(attrs: TirAttrs, arrays: list[Array], types: tuple[Type, ...]) -> list[Array]:
        assert arrays[0].dtype == np.float32  # the declared type, whatever the oracle computes in
        seen.append(types)
        return [arrays[0] + 1, np.arange(2 * len(arrays[0]))[:, None]]

    inputs = random_inputs(graph)
    found = evaluate(graph, inputs, tir=runner, dtype=np.float64)
    np.testing.assert_array_equal(found["out0"], inputs[graph.inputs[0].name] + 1)
    assert found["out1"].ravel().tolist() == list(range(6))
    assert seen == [(Type((3,)), Type((6, 1), "int64"))]
    with pytest.raises(IRError, match=r"relax.split\): a tir node needs a runner; pass tir="):
        evaluate(graph, inputs)


def refuses(graph: Graph, inputs: dict[str, Array], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(graph, inputs)


def test_wrong_inputs_are_named() -> None:
    b = Build()
    x, y = b.input(BATCH, 4), b.input(BATCH, LENGTH)
    graph = b.graph(b.reduce("sum", x, 1), y)
    good = random_inputs(graph)
    refuses(graph, {x: good[x]}, "inputs must be named input_0, input_1; got input_0")
    refuses(graph, {**good, "z": good[x]}, "inputs must be named")
    refuses(graph, {**good, x: good[x][0]}, r"input input_0: expected f32\[batch, 4\], got shape \(4,\)")
    refuses(graph, {**good, x: good[x][:, :3]}, r"expected f32\[batch, 4\], got shape \(3, 3\)")
    refuses(graph, {**good, y: good[y][:2]}, "input input_1: batch is 2 here but 3 before")
    refuses(graph, {**good, x: good[x].astype(np.float64)}, "expected float32, got float64")


def test_a_size_no_input_has_is_refused() -> None:
    b = Build()
    x = b.input(2 * BATCH)
    refuses(b.graph(x), random_inputs(b.graph(x)), "no input has an axis of size batch")


def test_wrong_declared_shapes_are_found() -> None:
    b = Build()
    wrong = b.add(Op.SOFTMAX, (b.input(3, 4),), (4, 3), SoftmaxAttrs(1))
    graph = b.graph(wrong)
    with pytest.raises(
        IRError, match=r"softmax_1 \(softmax\): its value has shape \(3, 4\), its type f32\[4, 3\]"
    ):
        evaluate(graph, random_inputs(graph))


def test_evaluate_node_refuses_what_has_no_value_of_its_own() -> None:
    b = Build()
    x = b.input(3)
    with pytest.raises(IRError, match=r"input_0 \(input\): has no value of its own"):
        evaluate_node(b.nodes[x], [], {})

"""What has no CUDA kernel of its own: cut into loop nests and run as plain kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

import tvm
from carried_models import CARRIED, OPEN, Carried
from corpus import comparisons
from cuda_models import driver, loaded
from cuda_programs import check, names_of, program_on, ran, target_of
from fake_cuda.driver import FakeDriver
from graph_build import BATCH, Build, random_inputs
from onnx_models import onnxruntime_run
from sass import TARGETS, needs_sass, sass
from tvm.script import tirx as T

from sparsec.errors import Unsupported
from sparsec.frontends import import_model
from sparsec.ir.attributes import TirAttrs
from sparsec.ir.expr import FUNCTIONS
from sparsec.ir.graph import Graph, Node, Op
from sparsec.ir.types import Type
from sparsec.ir.verify import verify
from sparsec.targets.calls import Context
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.leftover.nests import operator
from sparsec.targets.cuda.lowering import lower
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Target

__all__ = ["driver", "loaded"]

#: functions that integers and booleans do not have
REAL = {"exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "erf", "sin", "cos"}


@pytest.mark.parametrize("case", CARRIED, ids=lambda case: case.name)
def test_operators_agree_with_onnxruntime(driver: FakeDriver, case: Carried) -> None:
    graph = import_model(case.proto)
    assert any(n.op is Op.TIR for n in graph.nodes), "the operator has become part of the graph"
    program, _ = program_on(driver, graph, gpus.SM80)
    sizes = (3, 1, 70) if any(OPEN in shape for shape in case.shapes.values()) else (1,)
    for seed, size in enumerate(sizes):
        feeds = case.inputs(seed, size)
        if case.name == "ScatterND":
            feeds["i"] = np.random.default_rng(seed).permutation(6)[:3, None]
        if case.name == "ScatterElements":
            feeds["i"] = np.random.default_rng(seed).permuted(np.tile(np.arange(9), (7, 1)), axis=1).T[:3]
        for y, want in zip(ran(driver, program, feeds), onnxruntime_run(case.proto, feeds), strict=True):
            assert (y.dtype, y.shape) == (want.dtype, want.shape)
            np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float64", "bool"])
def test_every_function_in_other_dtypes(driver: FakeDriver, dtype: str) -> None:
    b = Build()
    args = [b.input(BATCH, 7, dtype=dtype), b.input(7, dtype=dtype), b.input(BATCH, 1, dtype=dtype)]
    names = [f for f in FUNCTIONS if dtype.startswith("float") or f not in REAL]
    chosen = ["mul", "max", "where"] if dtype == "bool" else names
    outputs = [b.apply(f, *args[: FUNCTIONS[f]], dtype=dtype) for f in chosen]
    graph = b.graph(*outputs)
    rng = np.random.default_rng(5)
    for batch in (3, 90):
        feeds = {
            n.name: _drawn(rng, tuple(batch if s == BATCH else int(s) for s in n.type.shape), dtype)
            for n in graph.inputs
        }
        check(driver, graph, [feeds], allowed=1e-5)


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    if dtype == "bool":
        return rng.random(shape) < 0.5
    drawn = rng.random(shape) * 3 + 0.5
    return drawn.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_mixed_dtypes(driver: FakeDriver, dtype: str) -> None:
    graph = comparisons()
    # thresholds in half precision pick other branches for values beside them: keep clear of them
    feeds = random_inputs(graph)
    (name,) = feeds
    feeds[name] = (np.round(feeds[name] * 10) / 10 + np.float32(0.03)).astype(np.float32)
    check(driver, graph, [feeds], dtype)


@pytest.mark.parametrize("kind", ["sum", "max", "min", "mean"])
def test_reductions_of_other_dtypes(driver: FakeDriver, kind: str) -> None:
    b = Build()
    x = b.input(BATCH, 33, 5, dtype="float64")
    outputs = [
        b.add(Op.REDUCE, (x,), shape, _reduction(kind, axes), "float64")
        for axes, shape in (((1,), (BATCH, 5)), ((2,), (BATCH, 33)), ((0, 1, 2), ()))
    ]
    graph = b.graph(*outputs)
    rng = np.random.default_rng(6)
    for batch in (1, 9):
        check(driver, graph, [{graph.inputs[0].name: rng.standard_normal((batch, 33, 5))}], allowed=1e-12)


def _reduction(kind: str, axes: tuple[int, ...]) -> Any:
    from sparsec.ir.attributes import ReduceAttrs

    return ReduceAttrs(kind, axes, False)


def carried_graph(function: Any, types: list[Type], output: Type) -> Graph:
    """A graph of one node that holds a TIR function."""
    name = str(function.attrs["global_symbol"])
    attrs = TirAttrs(f"test.{name}", name, str(tvm.ir.save_json(tvm.IRModule({name: function}))), (output,))
    inputs = [Node(f"x{i}", Op.INPUT, (), t) for i, t in enumerate(types)]
    node = Node("y", Op.TIR, tuple(n.name for n in inputs), output, attrs)
    return verify(Graph((*inputs, node), ("y",), ("y",)))


@T.prim_func(s_tir=True)
def running_sum(x: T.Buffer((6, 40), "float32"), y: T.Buffer((6, 40), "float32")) -> None:
    T.func_attr({"tirx.noalias": True})
    with T.sblock("root"):
        T.reads()
        T.writes()
        for i in T.serial(40):
            for j in T.parallel(6):
                y[j, i] = x[j, i] + T.if_then_else(i > 0, y[j, i - 1], T.float32(0))


@T.prim_func(s_tir=True)
def first_above(x: T.Buffer((50,), "float32"), y: T.Buffer((2,), "int64")) -> None:
    """Two thresholds, one after the other in one thread: a while loop and names."""
    T.func_attr({"tirx.noalias": True})
    with T.sblock("root"):
        T.reads()
        T.writes()
        for t in T.serial(2):
            y[t] = T.int64(0)
            while y[t] < T.int64(50) and x[T.min(y[t], T.int64(49))] < T.Cast("float32", t):
                y[t] = y[t] + T.int64(1)


def test_what_follows_an_order_keeps_it(driver: FakeDriver) -> None:
    """A loop in order around one in parallel: the threads of one block go through it together."""
    graph = carried_graph(running_sum, [Type((6, 40))], Type((6, 40)))
    (nest,) = operator(graph.nodes[-1].attrs.module).nests
    assert not nest.loops and nest.together is not None and len(nest.serial) == 1
    program, calls = program_on(driver, graph, gpus.SM80)
    assert [call.threads for call in calls] == [256]
    x = np.random.default_rng(7).standard_normal((6, 40)).astype(np.float32)
    np.testing.assert_allclose(ran(driver, program, {"x0": x})[0], x.cumsum(1), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_shared_runs_in_one_thread(driver: FakeDriver) -> None:
    graph = carried_graph(first_above, [Type((50,))], Type((2,), "int64"))
    program, calls = program_on(driver, graph, gpus.SM80)
    assert [call.threads for call in calls] == [1]
    x = np.random.default_rng(8).standard_normal(50).astype(np.float32) - 1
    found = ran(driver, program, {"x0": x})[0]
    want = [next((i for i, v in enumerate(x) if v >= t), 50) for t in (0, 1)]
    assert found.tolist() == want


@T.prim_func(s_tir=True)
def every_other(x_: T.handle, y_: T.handle) -> None:
    n = T.int64()
    x = T.match_buffer(x_, (n,), "float32")
    y = T.match_buffer(y_, (n,), "float32")
    T.func_attr({"tirx.noalias": True})
    for i in range(n):
        with T.sblock("all"):
            v = T.axis.spatial(n, i)
            T.reads(x[v])
            T.writes(y[v])
            y[v] = x[v]
    for i in range((n + T.int64(1)) // T.int64(2)):
        with T.sblock("half"):
            v = T.axis.spatial((n + T.int64(1)) // T.int64(2), i)
            T.reads(x[v * T.int64(2)])
            T.writes(y[v * T.int64(2)])
            y[v * T.int64(2)] = x[v * T.int64(2)] * T.float32(2)


def test_iterations_that_nobody_counts_beforehand(driver: FakeDriver) -> None:
    """A number of iterations that is no polynomial: a fixed grid goes over them."""
    graph = carried_graph(every_other, [Type((BATCH,))], Type((BATCH,)))
    program, calls = program_on(driver, graph, gpus.SM80)
    assert len(calls) == 2
    for size in (1, 2, 7, 200_000):
        x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
        want = np.where(np.arange(size) % 2, x, 2 * x)
        np.testing.assert_array_equal(ran(driver, program, {"x0": x})[0], want)


@T.prim_func(s_tir=True)
def calls_the_host(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")) -> None:
    T.func_attr({"tirx.noalias": True})
    with T.sblock("root"):
        T.reads()
        T.writes()
        T.evaluate(T.call_packed("tvm.contrib.sort.argsort", x.data, y.data))


def test_calls_of_the_host_are_refused_by_name() -> None:
    graph = carried_graph(calls_the_host, [Type((4,))], Type((4,)))
    with pytest.raises(
        Unsupported,
        match=r"y \(tir\): test.calls_the_host needs a call of .*argsort.* by tirx.tvm_call_packed",
    ):
        lower(graph.nodes[-1], Context(graph.node_map(), Sizes(), gpus.SM80))


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_reductions_stay_in_registers(target: Target) -> None:
    """What a loop adds up is written once, after it."""
    case = next(case for case in CARRIED if case.name == "Conv")
    graph = import_model(case.proto)
    node = next(n for n in graph.nodes if n.op is Op.TIR)
    (call,) = lower(node, Context(graph.node_map(), Sizes(), target))
    code = sass(call.function, target)
    assert code.local_accesses == 0
    assert code.count(r"STG") == 1


def test_names_tell_what_is_carried(driver: FakeDriver) -> None:
    case = next(case for case in CARRIED if case.name == "ArgMax")
    _, calls = program_on(driver, import_model(case.proto), target_of())
    assert names_of(calls) == ["argmax", "argmax"]
    (made, _), (value, _) = calls[0].makes
    assert calls[1].reads[0] == made and value in calls[0].reads

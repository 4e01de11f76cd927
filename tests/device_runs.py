"""Runs a graph's nodes on the interpreter of CUDA kernels, as lowering calls them, outputs poisoned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16)
import numpy as np

from sparsec.ir import dims
from sparsec.ir.graph import Graph, Node, Op, const_node
from sparsec.ir.types import Type
from sparsec.reference.evaluate import evaluate
from sparsec.runtime.plan import Operator
from sparsec.targets.calls import Call, Context, written
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.interpreter.run import compiled
from sparsec.targets.cuda.lowering import lower
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Target

DTYPES = ("float32", "float16", "bfloat16")
#: how far results may be off, beside the largest: float32 sums, and the rounding of a result of two bytes
TOLERANCE = {"float32": 2e-6, "float16": 1.2e-3, "bfloat16": 9e-3}

compile_once = cache(compiled)


def graph_of(
    op: Op, arguments: Mapping[str, Type | Any], result: Type, attrs: Any = None,
    outputs: tuple[Node, ...] = (),
) -> Graph:  # fmt: skip
    """A graph of one node called y: a ``Type`` is an input, an array a constant, by name and in order.

    ``outputs`` are its items, where it has several.
    """
    nodes, consts = [], {}
    for name, given in arguments.items():
        if isinstance(given, Type):
            nodes.append(Node(name, Op.INPUT, (), given))
        else:
            consts[name] = given
            nodes.append(const_node(name, given))
    nodes.append(Node("y", op, tuple(arguments), result, attrs))
    names = tuple(n.name for n in outputs) or ("y",)
    return Graph((*nodes, *outputs), names, names, consts)


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    """Numbers of the normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.dtype(dtype))


def random_inputs(graph: Graph, bindings: Mapping[str, int] | None = None) -> dict[str, Any]:
    """An array for every input, symbols bound."""
    bound = bindings or {}
    return {
        n.name: random(tuple(dims.value(s, bound) for s in n.type.shape), n.type.dtype, seed)
        for seed, n in enumerate(graph.inputs)
    }


def calls_of(graph: Graph, target: Target = gpus.SM80) -> tuple[list[tuple[Node, Call]], Sizes]:
    """Every node lowered, in order."""
    context = Context(graph.node_map(), Sizes(), target)
    skipped = (Op.INPUT, Op.CONST, Op.ITEM, Op.RESHAPE)
    calls = [(n, call) for n in graph.nodes if n.op not in skipped for call in lower(n, context)]
    return calls, context.sizes


def functions(graph: Graph, target: Target) -> list[Any]:
    """The TIR of every call."""
    return [call.function for _, call in calls_of(graph, target)[0]]


def interpreted(
    graph: Graph, inputs: Mapping[str, Any], bindings: Mapping[str, int] | None = None,
    target: Target = gpus.SM80,
) -> dict[str, Any]:  # fmt: skip
    """The graph's outputs as the kernels make them."""
    bound = bindings or {}
    calls, sizes = calls_of(graph, target)
    memory = {k: np.ascontiguousarray(v).reshape(-1) for k, v in (*inputs.items(), *graph.consts.items())}
    shapes: dict[str, tuple[int, ...]] = {}
    values = numbers(sizes, bound)
    for n, call in calls:
        for name, made in (*written(graph.nodes, n), *call.makes):
            shapes[name] = tuple(dims.value(s, bound) for s in made.shape)
            memory.setdefault(name, poison(int(np.prod(shapes[name])), made.dtype))
        arguments = [memory[r] for r in call.reads] + [values[i] for i in call.numbers]
        compile_once(call.function).run(values[call.tiles], arguments)
    return {o: memory[o].reshape(shapes[o]) for o in graph.outputs}


def poison(count: int, dtype: str) -> Any:
    """Memory that nobody has written: no numbers, or large ones."""
    kind = np.dtype(dtype)
    return np.full(count, np.iinfo(kind).max if kind.kind in "iu" else np.nan, kind)


def numbers(sizes: Sizes, bindings: Mapping[str, int]) -> list[int]:
    """The values of all size expressions."""
    found: list[int] = []
    for e in sizes.expressions:
        if e.operator is Operator.CONSTANT:
            found.append(e.a)
        elif e.operator is Operator.SYMBOL:
            found.append(bindings[sizes.symbols[e.a]])
        else:
            a, b = found[e.a], found[e.b]
            found.append({
                Operator.ADD: a + b, Operator.MULTIPLY: a * b, Operator.MAXIMUM: max(a, b),
                Operator.CEIL_DIVIDE: -(-a // max(b, 1)),
            }[e.operator])  # fmt: skip
    return found


def assert_right(
    graph: Graph, inputs: Mapping[str, Any] | None = None, bindings: Mapping[str, int] | None = None,
    tolerance: float | None = None, target: Target = gpus.SM80, oracle: Graph | None = None,
) -> None:  # fmt: skip
    """The kernels' outputs are the reference's in double precision, NaN and infinities where it has them.

    ``oracle`` is the graph to ask the reference about, where it is not ``graph`` itself.
    """
    feeds = random_inputs(graph, bindings) if inputs is None else inputs
    got = interpreted(graph, feeds, bindings, target)
    with np.errstate(all="ignore"):
        want = evaluate(oracle or graph, feeds, dtype=np.float64)
    for name, node in zip(graph.outputs, (graph.node_map()[o] for o in graph.outputs), strict=True):
        expected, found = want[name], got[name].astype(np.float64)
        assert found.shape == expected.shape
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(found[~finite], expected[~finite])
        most = np.abs(expected[finite]).max(initial=0.0)
        limit = (TOLERANCE[node.type.dtype] if tolerance is None else tolerance) * max(most, 1e-6)
        assert np.abs(found[finite] - expected[finite]).max(initial=0.0) <= limit, name

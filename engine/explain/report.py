"""report: what was found in every weight, what was chosen, and why, as plain data."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sparsec.explain.next_speedup import suggestions, tokens_of
from sparsec.ir.attributes import ConstAttrs, ConvAttrs, MatmulAttrs, Removed, TirAttrs
from sparsec.ir.graph import Choice, Graph, Node, Op, replace
from sparsec.passes.choose_format import candidates
from sparsec.planning.work import operations_of, step_node, traffic_of, work_of
from sparsec.sparsity.bound import bound_bytes
from sparsec.sparsity.pattern import Pattern, percent
from sparsec.sparsity.picture import raster
from sparsec.targets.layers import is_layer
from sparsec.targets.problem import predicted_columns, problem_of

if TYPE_CHECKING:
    from sparsec.ir.dims import Size
    from sparsec.planning.planner import Planned
    from sparsec.targets.target import Gpu, Target


def report_of(graph: Graph, planned: Planned | None, target: Target) -> dict[str, Any]:
    """Layers, steps and graph of a finished model, ready for JSON.

    ``layers`` have weights, ``steps`` run; ``suggestions`` see next_speedup; ``target`` holds what
    a roofline needs.  Sizes that inputs leave open make texts of numbers, as ``64*batch``.
    """
    nodes = graph.node_map()
    layers = [_layer(graph, nodes, n, target) for n in graph.nodes if n.choice]
    layers += [entry for n in graph.nodes if n.op is Op.TIR for entry in _carried(nodes, n)]
    layers += [_depthwise(nodes, n) for n in graph.nodes if n.op is Op.CONV2D and not n.choice]
    order = {n.name: i for i, n in enumerate(graph.nodes)}
    layers.sort(key=lambda entry: order[entry["node"]])
    for entry in layers:
        entry["raster"] = _raster(graph, nodes, entry)
    numbers = {entry["node"]: i for i, entry in reversed(list(enumerate(layers)))}
    return {
        "layers": layers, "steps": _steps(graph, planned, numbers) if planned else [],
        "graph": _graph(nodes, graph, numbers), "suggestions": suggestions(graph, target),
        "target": _facts(target),
    }  # fmt: skip


def _layer(graph: Graph, nodes: dict[str, Node], n: Node, target: Target) -> dict[str, Any]:
    choice = n.choice[0]
    w = nodes[n.args[1]]
    pattern = cast(ConstAttrs, w.attrs).pattern
    return {
        "node": n.name, "origin": n.origin, "weight": w.name,
        "kind": "convolution" if n.op is Op.CONV2D else "linear",
        "tokens": _size(tokens_of(n)), **_predicted_for(nodes, n, target), **_work(graph, nodes, n, choice),
        **_in_the_model(n, w, pattern), **_whole(nodes, n, target), **_activation_zeros(n),
        "format": choice.format, "kernel": choice.kernel, "config": dict(choice.config),
        "reason": choice.reason, "bytes": _packed_bytes(graph, choice), **_bound(pattern, w),
        "candidates": [
            {
                "kernel": c.kernel, "format": c.format, "microseconds": c.microseconds, "nbytes": c.nbytes,
                **({} if c.measured is None else {"measured_microseconds": c.measured}),
            }
            for c in choice.candidates
        ],
    }  # fmt: skip


def _in_the_model(n: Node, w: Node, pattern: Pattern | None) -> dict[str, Any]:
    """The weight as the model has it: what remove_channels left out counts as zero."""
    shape = cast("tuple[int, ...]", w.type.shape if n.op is Op.CONV2D else w.type.shape[::-1])
    removed = _removed(n)
    outputs, inputs, *taps = shape
    whole = [outputs + len(removed.outputs), inputs + len(removed.inputs), *taps]
    item, left = np.dtype(w.type.dtype).itemsize, pattern.describe() if pattern else ""
    about: dict[str, Any] = {"shape": whole, "dense_bytes": item * prod(whole)}
    if removed == Removed():
        return about | {"found": left, "sparsity": _rounded(pattern)}
    zeros = 1 - (pattern.density if pattern else 1.0) * prod(shape) / prod(whole)
    gone = {"outputs": len(removed.outputs), "inputs": len(removed.inputs)}
    parts = [f"{gone[what]} of {of} {what}" for what, of in zip(gone, whole, strict=False) if gone[what]]
    found = f"{percent(zeros)} zero or never read, {' and '.join(parts)} are left out, the rest is {left}"
    return about | {"found": found, "sparsity": round(zeros, 6), "removed": gone}


def _whole(nodes: dict[str, Node], n: Node, target: Target) -> dict[str, Any]:
    """What dense kernels are predicted to take for all a model's weight, where some was left out."""
    removed = _removed(n)
    if removed == Removed() or not is_layer(nodes, n, target.dtypes):
        return {}
    problem = problem_of(nodes, n)
    conv, taps = problem.conv, problem.conv.taps if problem.conv else 1
    rows, inner = problem.rows + len(removed.outputs), problem.inner + len(removed.inputs) * taps
    if conv is not None:
        conv = replace(conv, channels=conv.channels + len(removed.inputs))
    full = Pattern((rows, inner), (rows, inner), problem.dtype, rows * inner, kind="dense")
    found = candidates(replace(problem, rows=rows, inner=inner, conv=conv), full, target)
    times = [candidate.microseconds for candidate, _, _ in found if candidate.format == "dense"]
    return {"whole_dense": {"microseconds": min(times)}} if times else {}


def _removed(n: Node) -> Removed:
    return n.attrs.removed if isinstance(n.attrs, MatmulAttrs | ConvAttrs) else Removed()


def _bound(pattern: Pattern | None, w: Node) -> dict[str, int]:
    """The fewest bytes for such a weight, see :mod:`sparsec.sparsity.bound`."""
    if pattern is None:
        return {}
    item = np.dtype(w.type.dtype).itemsize
    return {"bound_bytes": bound_bytes(pattern.shape[0] * pattern.shape[1], pattern.nonzeros, item)}


def _size(size: Size) -> int | str:
    return size if isinstance(size, int) else str(size)


def _predicted_for(nodes: dict[str, Node], n: Node, target: Target) -> dict[str, int]:
    """How many tokens or positions the candidates' times are for, where inputs leave it open."""
    if not is_layer(nodes, n, target.dtypes):
        return {}
    problem = problem_of(nodes, n)
    return {} if problem.columns is not None else {"predicted_for": predicted_columns(problem, target)}


def _work(graph: Graph, nodes: dict[str, Node], n: Node, choice: Choice) -> dict[str, int | str]:
    """Useful operations, and the bytes of all that is read and written."""
    moved = traffic_of([nodes[a].type for a in (n.args[0], *n.args[2:])] + [n.type])
    return {
        "operations": _size(operations_of(nodes, n)),
        "traffic": _size(moved + _packed_bytes(graph, choice)),
    }


def _activation_zeros(n: Node) -> dict[str, float]:
    """The share of inputs that were zero in calibration samples, where there were any."""
    active = n.attrs.active if isinstance(n.attrs, MatmulAttrs) else None
    return {} if active is None else {"activation_zeros": round(1 - active, 4)}


def _packed_bytes(graph: Graph, choice: Choice) -> int:
    if choice.packed:
        return sum(int(graph.consts[name].nbytes) for name in choice.packed)
    return choice.candidates[0].nbytes


def _carried(nodes: dict[str, Node], n: Node) -> list[dict[str, Any]]:
    """Weights of operators that run as plain loops: found, but not yet exploited."""
    source = cast(TirAttrs, n.attrs).source
    found = []
    for arg in n.args:
        attrs = nodes[arg].attrs
        if isinstance(attrs, ConstAttrs) and attrs.pattern is not None:
            array = nodes[arg].type
            item = np.dtype(array.dtype).itemsize
            nbytes = item * attrs.pattern.shape[0] * attrs.pattern.shape[1]
            kind = "convolution" if "conv" in source else source.removeprefix("relax.")
            found.append({
                "node": n.name, "origin": n.origin, "kind": kind, "weight": arg, "shape": list(array.shape),
                "found": attrs.pattern.describe(), "sparsity": _rounded(attrs.pattern), "format": "dense",
                "kernel": source, "config": {},
                "reason": _unexploited(source, array.dtype),
                "bytes": nbytes, "dense_bytes": nbytes, **_bound(attrs.pattern, nodes[arg]), "candidates": [],
            })  # fmt: skip
    return found


def _unexploited(source: str, dtype: str) -> str:
    """Why an operator's weight is not skipped."""
    if dtype in ("float16", "bfloat16"):
        return (
            f"dense: the model itself computes in {dtype}; export it in float32, and for a GPU compile it "
            f"with --dtype {dtype}"
        )
    return f"dense: {source.removeprefix('relax.')} has no sparse kernel yet"


def _depthwise(nodes: dict[str, Node], n: Node) -> dict[str, Any]:
    """A convolution that needs no choice."""
    w = nodes[n.args[1]]
    attrs = w.attrs
    pattern = attrs.pattern if isinstance(attrs, ConstAttrs) else None
    return {
        "node": n.name, "origin": n.origin, "kind": "convolution", "weight": w.name,
        **_in_the_model(n, w, pattern), "format": "dense", "kernel": "depthwise", "config": {},
        "reason": "dense: each channel has a filter of its own, too small for skipping to pay",
        "bytes": 4 * prod(cast("tuple[int, ...]", w.type.shape)), **_bound(pattern, w), "candidates": [],
    }  # fmt: skip


def _raster(graph: Graph, nodes: dict[str, Node], entry: dict[str, Any]) -> list[str]:
    """Where the zeros of a layer's weight are; a linear layer's is stored inputs x outputs."""
    weight = graph.consts[entry["weight"]]
    matrix = weight.T if entry["kind"] == "linear" else weight
    removed = _removed(nodes[entry["node"]])
    for axis, places in enumerate((removed.outputs, removed.inputs)):
        # np.insert counts in what is left
        matrix = np.insert(matrix, np.array(places, int) - np.arange(len(places)), 0, axis)
    return raster(matrix.reshape(len(matrix), -1))


def _rounded(pattern: Pattern | None) -> float:
    return round(pattern.sparsity, 6) if pattern else 0.0


def _steps(graph: Graph, planned: Planned, numbers: dict[str, int]) -> list[dict[str, Any]]:
    nodes = graph.node_map()
    return [
        {
            "node": s.node, "kernel": s.kernel, "predicted_microseconds": round(s.nanoseconds / 1e3, 2),
            **_numbered(step_node(nodes, call), numbers), **work,
        }
        for s, call, work in zip(
            planned.plan.steps, planned.calls, work_of(graph, planned.calls), strict=True
        )
    ]  # fmt: skip


def _numbered(n: Node, numbers: dict[str, int]) -> dict[str, int]:
    """The index of the layer a node is, if it is one."""
    return {"layer": numbers[n.name]} if n.name in numbers else {}


def _graph(nodes: dict[str, Node], graph: Graph, numbers: dict[str, int]) -> list[dict[str, Any]]:
    """Every node but constants, and whose values it reads."""
    return [
        {
            "node": n.name, "op": str(n.op), "shape": [_size(s) for s in n.type.shape],
            "args": [a for a in dict.fromkeys(n.args) if nodes[a].op is not Op.CONST],
            **_numbered(n, numbers),
        }
        for n in graph.nodes
        if n.op is not Op.CONST
    ]  # fmt: skip


def _facts(target: Target) -> dict[str, Any]:
    """Peak GFLOP/s of one core or of a whole GPU, and bytes and GB/s of what it reads from."""
    if target.gpu:
        return _facts_of_gpu(target, target.gpu)
    caches = (
        ("L1", target.l1, target.l1_bytes),
        ("L2", target.l2, target.l2_bytes),
        ("L3", target.l3, target.l3_bytes),
    )
    levels = (*caches, ("memory", 0, target.dram_bytes))
    return {
        "name": target.name,
        "gflops": round(2 * target.fmas * target.lanes * target.gigahertz, 1),
        "reads": [
            {"from": name, "bytes": size, "gbs": round(rate * target.gigahertz, 1)}
            for name, size, rate in levels
        ],
    }


def _facts_of_gpu(target: Target, gpu: Gpu) -> dict[str, Any]:
    flops = gpu.flops if target.dtype == "float32" else gpu.tensor_flops
    reads = (("L2", target.l2, gpu.l2_bytes), ("memory", 0, gpu.dram_bytes))
    return {
        "name": target.name,
        "gflops": round(flops * gpu.multiprocessors * target.gigahertz, 1),
        "reads": [
            {"from": name, "bytes": size, "gbs": round(rate * target.gigahertz, 1)}
            for name, size, rate in reads
        ],
    }

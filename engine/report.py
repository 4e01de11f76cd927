"""report: what was found in every weight, what was chosen, and why, as plain data."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, cast

from sparsec.dims import product
from sparsec.ir import Choice, ConstAttrs, Graph, Node, Op, TirAttrs
from sparsec.pattern import Pattern
from sparsec.picture import raster
from sparsec.work import work_of

if TYPE_CHECKING:
    from sparsec.planner import Planned


def report_of(graph: Graph, planned: Planned | None) -> dict[str, Any]:
    """Layers and steps of a finished graph, ready for JSON."""
    nodes = graph.node_map()
    layers = [_layer(graph, nodes, n) for n in graph.nodes if n.choice]
    layers += [entry for n in graph.nodes if n.op is Op.TIR for entry in _carried(nodes, n)]
    layers += [_depthwise(nodes, n) for n in graph.nodes if n.op is Op.CONV2D and not n.choice]
    order = {n.name: i for i, n in enumerate(graph.nodes)}
    layers.sort(key=lambda entry: order[entry["node"]])
    for entry in layers:
        entry["raster"] = _raster(graph, entry)
    return {"layers": layers, "steps": _steps(graph, planned) if planned else []}


def _layer(graph: Graph, nodes: dict[str, Node], n: Node) -> dict[str, Any]:
    choice = n.choice[0]
    w = nodes[n.args[1]]
    pattern = cast(ConstAttrs, w.attrs).pattern
    convolution = n.op is Op.CONV2D
    tokens = product((n.type.shape[0], *n.type.shape[2:])) if convolution else n.type.tokens
    return {
        "node": n.name, "origin": n.origin, "weight": w.name,
        "kind": "convolution" if convolution else "linear",
        "shape": list(w.type.shape) if convolution else list(w.type.shape[::-1]),
        "tokens": tokens if isinstance(tokens, int) else str(tokens),
        "found": pattern.describe() if pattern else "", "sparsity": _rounded(pattern),
        "format": choice.format, "kernel": choice.kernel, "config": dict(choice.config),
        "reason": choice.reason, "bytes": _packed_bytes(graph, choice),
        "dense_bytes": int(graph.consts[w.name].nbytes),
        "candidates": [
            {"kernel": c.kernel, "format": c.format, "microseconds": c.microseconds, "nbytes": c.nbytes}
            for c in choice.candidates
        ],
    }  # fmt: skip


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
            nbytes = 4 * attrs.pattern.shape[0] * attrs.pattern.shape[1]
            kind = "convolution" if "conv" in source else source.removeprefix("relax.")
            found.append({
                "node": n.name, "origin": n.origin, "kind": kind, "weight": arg, "shape": list(array.shape),
                "found": attrs.pattern.describe(), "sparsity": _rounded(attrs.pattern), "format": "dense",
                "kernel": source, "config": {},
                "reason": f"dense: {source.removeprefix('relax.')} has no sparse kernel yet",
                "bytes": nbytes, "dense_bytes": nbytes, "candidates": [],
            })  # fmt: skip
    return found


def _depthwise(nodes: dict[str, Node], n: Node) -> dict[str, Any]:
    """A convolution that needs no choice."""
    w = nodes[n.args[1]]
    attrs = w.attrs
    pattern = attrs.pattern if isinstance(attrs, ConstAttrs) else None
    nbytes = 4 * prod(cast("tuple[int, ...]", w.type.shape))
    return {
        "node": n.name, "origin": n.origin, "kind": "convolution", "weight": w.name,
        "shape": list(w.type.shape), "found": pattern.describe() if pattern else "",
        "sparsity": _rounded(pattern), "format": "dense", "kernel": "depthwise", "config": {},
        "reason": "dense: each channel has a filter of its own, too small for skipping to pay",
        "bytes": nbytes, "dense_bytes": nbytes, "candidates": [],
    }  # fmt: skip


def _raster(graph: Graph, entry: dict[str, Any]) -> list[str]:
    """Where the zeros of a layer's weight are; a linear layer's is stored inputs x outputs."""
    weight = graph.consts[entry["weight"]]
    return raster(weight.T if entry["kind"] == "linear" else weight.reshape(len(weight), -1))


def _rounded(pattern: Pattern | None) -> float:
    return round(pattern.sparsity, 6) if pattern else 0.0


def _steps(graph: Graph, planned: Planned) -> list[dict[str, Any]]:
    return [
        {"node": s.node, "kernel": s.kernel, "predicted_microseconds": round(s.nanoseconds / 1e3, 2), **work}
        for s, work in zip(planned.plan.steps, work_of(graph, planned.calls), strict=True)
    ]

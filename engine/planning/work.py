"""work: what every step has to do, in bytes and in operations, as sizes that inputs may leave open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsec.ir.attributes import ConstAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Graph, Node, Op
from sparsec.ir.types import Type
from sparsec.targets.calls import Call, written

#: what changes where values lie and nothing else
MOVES = (Op.RELAYOUT, Op.TRANSPOSE)


def work_of(graph: Graph, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """For every call its ``op``, ``bytes``, ``operations``, and ``layout_bytes`` of what only moves values.

    ``bytes`` counts every array a call reads or writes once and whole, ``operations`` two for
    each nonzero weight (or product of activations) and each place it is used at.  A number, or
    text like ``1024*batch + 64``.
    """
    nodes = graph.node_map()
    types = {name: t for n in graph.nodes for name, t in written(graph.nodes, n)}
    types |= {n.name: n.type for n in graph.nodes}
    types |= {name: t for call in calls for name, t in call.makes}
    described, seen = [], set()
    for call in calls:
        node = step_node(nodes, call)
        moved = _total(_bytes(graph, types, name) for name in dict.fromkeys(call.reads))
        # the products of a node of several calls count once
        facts = {"bytes": moved, "operations": 0 if node.name in seen else operations_of(nodes, node)}
        seen.add(node.name)
        if node.op in MOVES:
            facts["layout_bytes"] = moved
        counted = {key: n if isinstance(n, int) else str(n) for key, n in facts.items() if n != 0}
        described.append({"op": str(node.op), **counted})
    return described


def operations_of(nodes: Mapping[str, Node], n: Node) -> Size:
    """Multiplications and additions of products, zeros left out; 0 for what has no products."""
    if n.choice or n.op is Op.CONV2D:
        weight = nodes[n.args[1]]
        pattern = weight.attrs.pattern if isinstance(weight.attrs, ConstAttrs) else None
        places = product((n.type.shape[0], *n.type.shape[2:])) if n.op is Op.CONV2D else n.type.tokens
        return places * (pattern.nonzeros if pattern else weight.type.elements) * 2
    if n.op is Op.MATMUL:
        return n.type.elements * nodes[n.args[0]].type.shape[-1] * 2
    if n.op is Op.ATTENTION:
        q, k, v = (nodes[a].type.shape for a in n.args[:3])
        return product((*q[:-1], k[-2])) * (k[-1] + v[-1]) * 2
    return 0


def step_node(nodes: Mapping[str, Node], call: Call) -> Node:
    """The node a call computes: a value of it is what the call writes last."""
    found = nodes[call.reads[-1].partition("#")[0]]
    return nodes[found.args[0]] if found.op is Op.ITEM else found


def traffic_of(types: Iterable[Type]) -> Size:
    """Bytes of values that are each read or written once and whole."""
    return _total(t.elements * np.dtype(t.dtype).itemsize for t in types)


def _bytes(graph: Graph, types: Mapping[str, Type], name: str) -> Size:
    if name in graph.consts:
        return int(graph.consts[name].nbytes)
    return types[name].elements * np.dtype(types[name].dtype).itemsize


def _total(sizes: Iterable[Size]) -> Size:
    total: Size = 0
    for size in sizes:
        total = total + size
    return total

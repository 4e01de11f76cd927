"""fusable: which layers an epilogue may join, what it may read beside them, and how nodes are replaced."""

from __future__ import annotations

from collections.abc import Iterable

from sparsec.ir.graph import Graph, Node, Op, with_nodes
from sparsec.ir.types import PLAIN, Type


def is_fusable(graph: Graph, nodes: dict[str, Node], n: Node) -> bool:
    """Whether a node multiplies float32 values by a constant weight and no kernel is chosen yet."""
    if n.op not in (Op.MATMUL, Op.CONV2D) or n.type.dtype != "float32" or n.type.layout != PLAIN or n.choice:
        return False
    w = nodes[n.args[1]]
    return w.op is Op.CONST and (n.op is Op.CONV2D or len(w.type.shape) == 2)


def is_extra(value: Type, layer: Node) -> bool:
    """Whether an epilogue can read it: one number, one per output feature, or one per result."""
    result = layer.type
    if value.dtype != "float32" or value.layout != result.layout:
        return False
    if value.shape == result.shape:
        return True
    return is_row(value, result) if layer.op is Op.MATMUL else is_column(value, result)


def is_row(value: Type, result: Type) -> bool:
    """One number, or one per output feature."""
    if len(value.shape) > len(result.shape):
        return False
    single = value.elements == 1
    return single or (value.shape[-1] == result.shape[-1] and all(s == 1 for s in value.shape[:-1]))


def is_column(value: Type, result: Type) -> bool:
    """One number, or one per output channel, the second axis of the result."""
    missing = len(result.shape) - len(value.shape)
    if missing < 0:
        return False
    shape = (*(1,) * missing, *value.shape)
    others = (*shape[:1], *shape[2:])
    return value.elements == 1 or (shape[1] == result.shape[1] and all(s == 1 for s in others))


def replaced(graph: Graph, place: Node, made: Iterable[Node]) -> Graph:
    """The graph with ``place`` replaced by other nodes."""
    listed = list(made)
    return with_nodes(graph, [new for n in graph.nodes for new in (listed if n is place else [n])])

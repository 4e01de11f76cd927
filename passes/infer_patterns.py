"""Measure what the zeros of every weight look like."""

from __future__ import annotations

from math import prod
from typing import Any, TypeAlias, cast

from numpy.typing import NDArray

from sparsec.ir.attributes import ConstAttrs, TirAttrs
from sparsec.ir.graph import Graph, Node, Op, replace, with_nodes
from sparsec.sparsity.pattern import infer
from sparsec.targets.layers import is_convolution, weight_matrix
from sparsec.targets.target import Target

Array: TypeAlias = NDArray[Any]

#: A tir node whose Relax name contains one of these multiplies by a weight.
_WEIGHTED = ("conv", "matmul", "linear", "dense")


def infer_patterns(graph: Graph, target: Target) -> Graph:
    """Set ``ConstAttrs.pattern`` of the weights of layers, from ``pattern.infer``.

    A weight is the constant a matmul, conv2d or recurrent node multiplies by, or the largest
    constant of two axes or more that a ``tir`` node made from a convolution or product reads.  The
    pattern is of the matrix [outputs, inputs], see ``layers.weight_matrix``.
    Constants that have a pattern keep it.
    """
    nodes = graph.node_map()
    found: dict[str, Node] = {}
    for n in graph.nodes:
        name = _weight(nodes, n)
        if name is not None and name not in found and nodes[name].attrs == ConstAttrs():
            pattern = infer(_as_matrix(n, graph.consts[name]))
            found[name] = replace(nodes[name], attrs=ConstAttrs(pattern))
    if not found:
        return graph
    return with_nodes(graph, [found.get(n.name, n) for n in graph.nodes])


def _weight(nodes: dict[str, Node], n: Node) -> str | None:
    """The name of the constant that is a layer's weight."""
    if n.op in (Op.MATMUL, Op.RECURRENT):
        w = nodes[n.args[1]]
        return w.name if w.op is Op.CONST and len(w.type.shape) == 2 and w.type.elements else None
    if n.op is Op.CONV2D:
        return n.args[1] if is_convolution(nodes, n) else None
    if n.op is Op.TIR and any(word in cast(TirAttrs, n.attrs).source for word in _WEIGHTED):
        return _largest(nodes, n)
    return None


def _largest(nodes: dict[str, Node], n: Node) -> str | None:
    consts = [nodes[a] for a in n.args if nodes[a].op is Op.CONST and len(nodes[a].type.shape) >= 2]
    sizes = {c.name: prod(cast(tuple[int, ...], c.type.shape)) for c in consts}
    best = max(sizes, key=sizes.__getitem__, default=None)
    return best if best is not None and sizes[best] else None


def _as_matrix(n: Node, weight: Array) -> Array:
    """The weight as [outputs, inputs]."""
    if n.op is Op.RECURRENT:
        return weight.T
    return weight.reshape(weight.shape[0], -1) if n.op is Op.TIR else weight_matrix(n, weight)

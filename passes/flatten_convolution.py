"""flatten_convolution: a convolution that reads its whole image at once is a linear layer."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, cast

from sparsec.ir.attributes import ConvAttrs, MatmulAttrs
from sparsec.ir.dims import product
from sparsec.ir.graph import Graph, Node, Op, const_node, fresh_name, replace, with_nodes
from sparsec.ir.types import Type
from sparsec.targets.layers import is_convolution
from sparsec.targets.target import Target

if TYPE_CHECKING:
    from sparsec.ir.types import Array


def flatten_convolution(graph: Graph, target: Target) -> Graph:
    """Turn ungrouped convolutions with one output position into matmuls, epilogue and all."""
    nodes = graph.node_map()
    todo = {n.name for n in graph.nodes if _is_linear(nodes, n)}
    if not todo:
        return graph
    rewriter = _Rewriter(graph, nodes)
    for n in graph.nodes:
        if n.name in todo:
            rewriter.rewrite(n)
        else:
            rewriter.built.append(n)
    return with_nodes(graph, rewriter.built, rewriter.consts)


def _is_linear(nodes: dict[str, Node], n: Node) -> bool:
    if not is_convolution(nodes, n) or n.choice:
        return False
    attrs = cast(ConvAttrs, n.attrs)
    x, w = nodes[n.args[0]].type, nodes[n.args[1]].type
    whole = x.shape[1:] == w.shape[1:] and n.type.shape[2:] == (1, 1)
    return whole and attrs.groups == 1 and not any(attrs.padding)


class _Rewriter:
    def __init__(self, graph: Graph, nodes: dict[str, Node]) -> None:
        self.nodes = nodes
        self.consts: dict[str, Array] = dict(graph.consts)
        self.taken = set(nodes)
        self.built: list[Node] = []

    def rewrite(self, n: Node) -> None:
        """Emit flattened operands, the matmul, and the way back to four axes under n's name."""
        images, rows = n.type.shape[:2]
        x = self.nodes[n.args[0]].type
        flat = self._reshaped(n.args[0], Type((images, product(x.shape[1:]))), n.origin)
        weight = self._weight(n)
        extras = [self._extra(a, n) for a in n.args[2:]]
        name = self._name(f"{n.name}_flat")
        old = cast(ConvAttrs, n.attrs)
        places = prod(cast("tuple[int, ...]", self.nodes[n.args[1]].type.shape[2:]))
        inputs = tuple(c * places + i for c in old.removed.inputs for i in range(places))
        attrs = MatmulAttrs(old.epilogue, removed=replace(old.removed, inputs=inputs))
        kind = Type((images, rows))
        self.built.append(Node(name, Op.MATMUL, (flat, weight, *extras), kind, attrs, origin=n.origin))
        self.built.append(replace(n, op=Op.RESHAPE, args=(name,), attrs=None))

    def _weight(self, n: Node) -> str:
        name = self._name(f"{n.args[1]}_matrix")
        array = self.consts[n.args[1]]
        # a view: the constant's bytes stay where they are
        self.consts[name] = array.reshape(len(array), -1).T
        self.built.append(const_node(name, self.consts[name]))
        return name

    def _extra(self, arg: str, n: Node) -> str:
        t = self.nodes[arg].type
        if t.shape == n.type.shape:
            return self._reshaped(arg, Type(n.type.shape[:2]), n.origin)
        if t.elements == 1:
            return self._reshaped(arg, Type(()), n.origin)
        return self._reshaped(arg, Type((n.type.shape[1],)), n.origin)

    def _reshaped(self, arg: str, kind: Type, origin: str) -> str:
        name = self._name(f"{arg}_flat")
        if arg in self.consts:
            self.consts[name] = self.consts[arg].reshape(cast("tuple[int, ...]", kind.shape))
            self.built.append(const_node(name, self.consts[name]))
        else:
            self.built.append(Node(name, Op.RESHAPE, (arg,), kind, origin=origin))
        return name

    def _name(self, stem: str) -> str:
        name = fresh_name(stem, self.taken)
        self.taken.add(name)
        return name

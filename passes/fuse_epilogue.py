"""Fuse what follows a layer into it: a step of fuse_elementwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from sparsec.ir.attributes import ConvAttrs, ElementwiseAttrs, MatmulAttrs
from sparsec.ir.expr import Arg, Expr, substitute
from sparsec.ir.graph import Graph, Node, Op, replace
from sparsec.passes.algebra import renumber, stays_small
from sparsec.passes.fusable import is_extra, is_fusable, replaced


def fuse_epilogue(graph: Graph) -> Graph | None:
    """The elementwise nodes after one layer, up to the first value of use elsewhere, or None."""
    nodes, users = graph.node_map(), graph.users()
    for position, n in enumerate(graph.nodes):
        if is_fusable(graph, nodes, n) and n.name not in graph.outputs and _starts_region(n, users):
            region = _Region(graph, nodes, users, n)
            region.grow(graph.nodes[position + 1 :])
            if region.exit is not None:
                return replaced(graph, region.exit, [region.fused()])
    return None


def _starts_region(layer: Node, users: dict[str, list[Node]]) -> bool:
    found = users[layer.name]
    return bool(found) and all(u.op is Op.ELEMENTWISE for u in found)


@dataclass
class _Region:
    """Elementwise nodes fed by one layer, grown until every path out leads through one exit.

    ``values`` gives what each member computes over the product, Arg(0), and ``extras``;
    ``depends`` are all values computed from the product, members or not: none of them may be
    an extra, or the fused node would wait for itself.
    """

    graph: Graph
    nodes: dict[str, Node]
    users: dict[str, list[Node]]
    layer: Node
    values: dict[str, Expr] = field(default_factory=dict)
    extras: list[str] = field(default_factory=list)
    depends: set[str] = field(default_factory=set)
    exit: Node | None = None

    def grow(self, later: Iterable[Node]) -> None:
        """Walk the nodes after the layer, in order."""
        epilogue = cast(MatmulAttrs | ConvAttrs, self.layer.attrs).epilogue
        self.values[self.layer.name] = Arg(0) if epilogue is None else epilogue
        self.extras = list(self.layer.args[2:])
        self.depends = {self.layer.name}
        for n in later:
            if self.depends.isdisjoint(n.args):
                continue
            self.depends.add(n.name)
            if self._accepts(n):
                self._take(n)
            elif not self.values.keys().isdisjoint(n.args):
                return  # a member is read outside: no later exit can be the only one

    def fused(self) -> Node:
        """The layer with the region up to the exit as its epilogue, under the exit's name."""
        assert self.exit is not None
        names = (self.layer.name, *self.extras)
        epilogue, kept = renumber(self.values[self.exit.name], names, 1)
        args = (*self.layer.args[:2], *kept[1:])
        attrs = replace(cast(MatmulAttrs | ConvAttrs, self.layer.attrs), epilogue=epilogue)
        return replace(self.layer, name=self.exit.name, args=args, attrs=attrs)

    def _accepts(self, n: Node) -> bool:
        if n.op is not Op.ELEMENTWISE or n.type != self.layer.type:
            return False
        outside = [a for a in n.args if a not in self.values]
        known = all(a not in self.depends and is_extra(self.nodes[a].type, self.layer) for a in outside)
        return known and stays_small(self._expression(n))

    def _expression(self, n: Node) -> Expr:
        """What a node computes, with arguments from outside numbered as they would be."""
        extras = [*self.extras, *(a for a in n.args if a not in self.values and a not in self.extras)]
        operands = [self.values.get(a) or Arg(1 + extras.index(a)) for a in n.args]
        return substitute(cast(ElementwiseAttrs, n.attrs).expr, operands)

    def _take(self, n: Node) -> None:
        found = self._expression(n)
        self.extras += dict.fromkeys(a for a in n.args if a not in self.values and a not in self.extras)
        self.values[n.name] = found
        if all(self._is_inside(member) for member in self.values if member != n.name):
            self.exit = n

    def _is_inside(self, member: str) -> bool:
        return member not in self.graph.outputs and all(u.name in self.values for u in self.users[member])

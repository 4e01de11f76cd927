"""Recognise softmax attention written in primitive operators (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsec.ir.attributes import AttentionAttrs, Attrs, ElementwiseAttrs, TransposeAttrs
from sparsec.ir.expr import Arg
from sparsec.ir.graph import Graph, Node, Op, fresh_name, replace, with_nodes
from sparsec.ir.types import Type
from sparsec.passes.algebra import broadcast
from sparsec.passes.attention_match import PROJECTIONS, Heads, Mask, Match, Matcher, Shape
from sparsec.targets.target import Target


def fuse_attention(graph: Graph, target: Target) -> Graph:
    """Replace ``softmax(q k^T * scale + mask) v`` over heads by one attention node.

    The heads may be split by any chain of reshapes and transposes, with a batch axis or without,
    and merged with it or not, or stand apart already (rotary embeddings, shared heads); q, k and
    the scores may be scaled by numbers; masks are added to the scores or replace them by numbers
    that no softmax lets through.  Anything else is left alone.
    """
    while True:
        matcher = Matcher(graph, graph.node_map(), graph.users())
        found = (matcher.match(n) for n in graph.nodes if n.op is Op.SOFTMAX)
        match = next((m for m in found if m is not None), None)
        if match is None:
            return graph
        graph = _rewrite(graph, match)


def _rewrite(graph: Graph, match: Match) -> Graph:
    moves = _Moves({n.name: n.type for n in graph.nodes})
    args: list[str] = []
    for source, heads, order in match.operands:
        args.append(moves.together(source, heads, order))
    args += [moves.mask(match.mask)] if match.mask.expr is not None else []
    attrs = AttentionAttrs(match.heads.heads, match.scale)
    value = moves.add(Op.ATTENTION, args, match.heads.projection(), attrs, f"{match.last.name}_attention")
    value = moves.reshaped(moves.swapped(value, match.order), match.last.type.shape)
    made = [replace(n, origin=match.last.origin) for n in moves.made]
    made[-1] = replace(made[-1], name=match.last.name)
    return with_nodes(graph, [new for n in graph.nodes for new in (made if n is match.last else [n])])


@dataclass(frozen=True, slots=True)
class _Moves:
    """Makes the nodes around an attention, leaving out those that move nothing."""

    types: dict[str, Type]
    made: list[Node] = field(default_factory=list)

    def add(self, op: Op, args: Sequence[str], shape: Shape, attrs: Attrs, stem: str) -> str:
        name = fresh_name(stem, self.types)
        self.made.append(Node(name, op, tuple(args), Type(shape), attrs))
        self.types[name] = self.made[-1].type
        return name

    def reshaped(self, name: str, shape: Shape) -> str:
        if self.types[name].shape == shape:
            return name
        return self.add(Op.RESHAPE, [name], shape, None, f"{name}_heads")

    def together(self, name: str, heads: Heads, order: str) -> str:
        """All heads side by side, whatever order their parts lie in."""
        if order in PROJECTIONS:
            return self.swapped(self.reshaped(name, heads.projection(order)), order)
        sizes = heads.sizes()
        apart = self.reshaped(name, tuple(sizes[c] for c in order))
        axes = TransposeAttrs(tuple(order.index(c) for c in "blhd"))
        moved = self.add(Op.TRANSPOSE, [apart], tuple(sizes[c] for c in "blhd"), axes, f"{name}_together")
        return self.reshaped(moved, heads.projection())

    def mask(self, mask: Mask) -> str:
        """The node of a mask."""
        if mask.expr == Arg(0) and len(mask.args) == 1:
            return mask.args[0]
        shape = broadcast(self.types[a].shape for a in mask.args)
        assert shape is not None and mask.expr is not None
        return self.add(Op.ELEMENTWISE, mask.args, shape, ElementwiseAttrs(mask.expr), "attention_mask")

    def swapped(self, name: str, order: str) -> str:
        """Length and batch exchanged, when ``order`` has the length first."""
        if order[0] == "b":
            return name
        length, batch, features = self.types[name].shape
        axes = TransposeAttrs((1, 0, 2))
        return self.add(Op.TRANSPOSE, [name], (batch, length, features), axes, f"{name}_swapped")

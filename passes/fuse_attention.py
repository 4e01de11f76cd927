"""Recognise softmax attention written in primitive operators (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias, cast

from sparsec.dims import Size, product
from sparsec.expr import Arg, Call, Expr, Scalar
from sparsec.ir import (
    AttentionAttrs,
    ElementwiseAttrs,
    Graph,
    MatmulAttrs,
    Node,
    Op,
    SoftmaxAttrs,
    TransposeAttrs,
    Type,
    fresh_name,
    replace,
    with_nodes,
)
from sparsec.targets.target import Target

#: One letter per axis of the heads: batch, head, position, feature.
_QUERY, _KEY = "bhld", "bhdl"

Shape: TypeAlias = tuple[Size, ...]
#: Axis by axis of a value, the (letter, size) of the parts it is made of, sizes of 1 left out.
Parts: TypeAlias = list[list[tuple[str, Size]]]


def fuse_attention(graph: Graph, target: Target) -> Graph:
    """Replace ``softmax(q k^T * scale + mask) v`` over heads by one attention node.

    The heads may be split by any chain of reshapes and transposes, with a batch axis or without,
    and merged with it or not; q, k and the scores may be scaled by numbers; a mask is added to
    the scores and is the same for all heads.  Anything else is left alone.
    """
    while True:
        matcher = _Matcher(graph, graph.node_map(), graph.users())
        found = (matcher.match(n) for n in graph.nodes if n.op is Op.SOFTMAX)
        match = next((m for m in found if m is not None), None)
        if match is None:
            return graph
        graph = _rewrite(graph, match)


@dataclass(frozen=True, slots=True)
class _Heads:
    """Sizes of one operand: (batch, heads, length, features of a head)."""

    batch: Size
    heads: int
    length: Size
    width: int

    def sizes(self) -> dict[str, Size]:
        return {"b": self.batch, "h": self.heads, "l": self.length, "d": self.width}

    @property
    def projection(self) -> Shape:
        return (self.batch, self.length, self.heads * self.width)


@dataclass(frozen=True, slots=True)
class _Match:
    """``last`` is the node whose value the attention makes, up to a reshape."""

    last: Node
    operands: tuple[tuple[str, Shape], ...]
    mask: str | None
    heads: int
    scale: float


@dataclass(frozen=True, slots=True)
class _Matcher:
    graph: Graph
    nodes: dict[str, Node]
    users: dict[str, list[Node]]

    def match(self, softmax: Node) -> _Match | None:
        attrs = cast(SoftmaxAttrs, softmax.attrs)
        if attrs.log or attrs.axis != len(softmax.type.shape) - 1 or softmax.type.dtype != "float32":
            return None
        weights = self._skip_reshapes_down(softmax)
        weighted = self._only_user(weights)
        if weighted is None or not _is_plain_matmul(weighted) or len(softmax.type.shape) not in (3, 4):
            return None
        if weighted.args[0] != weights.name:
            return None
        for scores, mask, scale in self._score_chains(softmax.args[0]):
            found = self._operands(scores, weighted, mask, scale)
            if found is not None:
                return found
        return None

    def _score_chains(self, value: str) -> Iterator[tuple[Node, str | None, float]]:
        """Ways to read a value as ``product * scale + mask``."""
        n = self.nodes[value]
        if n.op is Op.MATMUL and _is_plain_matmul(n):
            yield n, None, 1.0
        elif n.op is Op.RESHAPE and _last(n) == _last(self.nodes[n.args[0]]):
            yield from self._score_chains(n.args[0])
        elif n.op is Op.ELEMENTWISE:
            for index, factor, added in _affine(cast(ElementwiseAttrs, n.attrs).expr):
                inner = n.args[index]
                if self.nodes[inner].type == n.type:
                    yield from self._scaled(n, inner, factor, added)

    def _scaled(
        self, n: Node, inner: str, factor: float, added: int | None
    ) -> Iterator[tuple[Node, str | None, float]]:
        for product_node, mask, scale in self._score_chains(inner):
            if added is None and mask is None:
                yield product_node, None, scale * factor
            elif added is None and factor == 1.0:
                yield product_node, mask, scale
            elif added is not None and mask is None and self._fits_all_heads(n.args[added], n):
                yield product_node, n.args[added], scale * factor

    def _fits_all_heads(self, mask: str, scores: Node) -> bool:
        shape, rank = self.nodes[mask].type.shape, len(scores.type.shape)
        heads_axis = len(shape) - 3
        return self.nodes[mask].type.dtype == "float32" and (
            heads_axis < 0 or (rank == 4 and shape[heads_axis] == 1) or shape[:-2] == (1,) * (len(shape) - 2)
        )

    def _operands(self, scores: Node, weighted: Node, mask: str | None, scale: float) -> _Match | None:
        values = (scores.args[0], scores.args[1], weighted.args[1])
        chains = [self._chain(v) for v in values]
        length = _last(self.nodes[values[1]])
        for heads in _candidates(self.nodes[values[0]].type.shape, chains[0]):
            all_heads = (heads, replace(heads, length=length), replace(heads, length=length))
            orders = (_QUERY, _KEY, _QUERY)
            found = [self._source(*one) for one in zip(values, chains, all_heads, orders, strict=True)]
            last = self._merges_heads(weighted, heads)
            if last is None or None in found:
                continue
            sources = [one for one in found if one is not None]
            if sources[2][1] != 1.0:
                continue
            operands = tuple((s[0], h.projection) for s, h in zip(sources, all_heads, strict=True))
            return _Match(last, operands, mask, heads.heads, scale * sources[0][1] * sources[1][1])
        return None

    def _chain(self, value: str) -> list[Node]:
        """The reshapes, transposes and scalings above a value, nearest first."""
        chain: list[Node] = []
        n = self.nodes[value]
        while n.op in (Op.RESHAPE, Op.TRANSPOSE) or self._scale(n) is not None:
            chain.append(n)
            n = self.nodes[n.args[0]]
        return chain

    def _scale(self, n: Node) -> float | None:
        """The number an elementwise node multiplies its only argument by."""
        if n.op is not Op.ELEMENTWISE or len(n.args) != 1 or self.nodes[n.args[0]].type != n.type:
            return None
        found = _linear(cast(ElementwiseAttrs, n.attrs).expr)
        return None if found is None else found[1]

    def _source(self, value: str, chain: list[Node], heads: _Heads, order: str) -> tuple[str, float] | None:
        """The projection whose heads ``value`` holds in ``order``, and the factor in between."""
        sizes = heads.sizes()
        shape = self.nodes[value].type.shape
        if shape[-2:] != tuple(sizes[c] for c in order[-2:]):
            return None
        for end in range(len(chain), -1, -1):
            source = chain[end - 1].args[0] if end else value
            if end and chain[end - 1].op is Op.ELEMENTWISE:
                continue  # a scaling of the whole projection belongs to the layer that makes it
            parts = _group([(c, sizes[c]) for c in "blhd"], self.nodes[source].type.shape)
            for n in reversed(chain[:end]):
                parts = None if parts is None else _move(parts, n)
            if parts is not None and _letters(parts) == _nontrivial(order, sizes):
                factors = [self._scale(n) for n in chain[:end]]
                return source, prod(f for f in factors if f is not None)
        return None

    def _merges_heads(self, weighted: Node, heads: _Heads) -> Node | None:
        """The node after which the heads lie side by side again."""
        sizes = heads.sizes()
        parts = _group([(c, sizes[c]) for c in _QUERY], weighted.type.shape)
        n: Node | None = weighted
        while n is not None and parts is not None:
            if _letters(parts) == _nontrivial("blhd", sizes):
                return n
            n = self._only_user(n)
            parts = None if n is None or n.op not in (Op.RESHAPE, Op.TRANSPOSE) else _move(parts, n)
        return None

    def _only_user(self, n: Node) -> Node | None:
        users = self.users[n.name]
        return users[0] if len(users) == 1 and n.name not in self.graph.outputs else None

    def _skip_reshapes_down(self, n: Node) -> Node:
        user = self._only_user(n)
        while user is not None and user.op is Op.RESHAPE and _last(user) == _last(n):
            n, user = user, self._only_user(user)
        return n


def _is_plain_matmul(n: Node) -> bool:
    return n.op is Op.MATMUL and n.attrs == MatmulAttrs() and n.type.dtype == "float32" and len(n.args) == 2


def _last(n: Node) -> Size:
    return n.type.shape[-1] if n.type.shape else 1


def _affine(e: Expr) -> Iterator[tuple[int, float, int | None]]:
    """Readings of an expression as ``Arg(i) * factor [+ Arg(j)]``: (i, factor, j)."""
    alone = _linear(e)
    if alone is not None:
        yield (*alone, None)
    if isinstance(e, Call) and e.function == "add":
        for scores, mask in (e.operands, e.operands[::-1]):
            scaled = _linear(scores)
            if scaled is not None and isinstance(mask, Arg) and mask.index != scaled[0]:
                yield (*scaled, mask.index)


def _linear(e: Expr) -> tuple[int, float] | None:
    """(i, factor) when the expression is ``Arg(i) * factor``."""
    if isinstance(e, Arg):
        return e.index, 1.0
    if not isinstance(e, Call) or e.function not in ("mul", "div"):
        return None
    x, y = e.operands
    if e.function == "mul" and isinstance(x, Scalar):
        x, y = y, x
    inner = _linear(x)
    if inner is None or not isinstance(y, Scalar) or y.value == 0:
        return None
    return inner[0], inner[1] * y.value if e.function == "mul" else inner[1] / y.value


def _candidates(shape: Shape, chain: Sequence[Node]) -> Iterator[_Heads]:
    """What an operand of this shape (..., length, width), made by this chain, may hold."""
    length, width = shape[-2:]
    leading: list[Shape] = [shape[:2]] if len(shape) == 4 else []
    if len(shape) == 3:
        merged = (n.type.shape for n in chain if len(n.type.shape) == 4)
        leading = [s[:2] for s in merged if product(s[:2]) == shape[0]]
        leading += [(1, shape[0]), (shape[0], 1)]
    for batch, heads in leading:
        if isinstance(heads, int) and isinstance(width, int):
            yield _Heads(batch, heads, length, width)


def _group(parts: Sequence[tuple[str, Size]], shape: Shape) -> Parts | None:
    """Deal parts out, in order, to the axes they multiply up to."""
    left = [p for p in parts if p[1] != 1]
    grouped: Parts = []
    for size in shape:
        axis: list[tuple[str, Size]] = []
        while left and product(s for _, s in axis) != size:
            axis.append(left.pop(0))
        if product(s for _, s in axis) != size:
            return None
        grouped.append(axis)
    return None if left else grouped


def _move(parts: Parts, n: Node) -> Parts | None:
    """The parts after a reshape, a transpose, or an elementwise node."""
    if n.op is Op.TRANSPOSE:
        return [parts[a] for a in cast(TransposeAttrs, n.attrs).axes]
    return _group([p for axis in parts for p in axis], n.type.shape)


def _letters(parts: Parts) -> str:
    return "".join(letter for axis in parts for letter, _ in axis)


def _nontrivial(order: str, sizes: dict[str, Size]) -> str:
    return "".join(c for c in order if sizes[c] != 1)


def _rewrite(graph: Graph, match: _Match) -> Graph:
    taken = {n.name for n in graph.nodes}
    types = {n.name: n.type for n in graph.nodes}
    made: list[Node] = []
    args: list[str] = []
    for source, shape in match.operands:
        if types[source].shape != shape:
            name = fresh_name(f"{source}_heads", taken)
            taken.add(name)
            made.append(Node(name, Op.RESHAPE, (source,), Type(shape)))
            source = name
        args.append(source)
    args += [match.mask] if match.mask is not None else []
    attrs = AttentionAttrs(match.heads, match.scale)
    last, shape = match.last, match.operands[0][1]
    fused = Node(last.name, Op.ATTENTION, tuple(args), Type(shape), attrs, origin=last.origin)
    made.append(fused)
    if last.type.shape != shape:
        made[-1] = replace(fused, name=fresh_name(f"{last.name}_attention", taken))
        made.append(Node(last.name, Op.RESHAPE, (made[-1].name,), last.type, origin=last.origin))
    nodes = [new for n in graph.nodes for new in (made if n is last else [n])]
    return with_nodes(graph, nodes)

"""Finds softmax attention written in primitive operators (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias, cast

from sparsec.ir.attributes import ElementwiseAttrs, MatmulAttrs, SoftmaxAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.expr import Arg, Call, Expr, Scalar, arguments, call, rewrite
from sparsec.ir.graph import Graph, Node, Op, replace
from sparsec.passes.algebra import broadcast
from sparsec.passes.axis_parts import group, letters, move, nontrivial

#: One letter per axis of the heads: batch, head, position, feature.
_QUERY, _KEY = "bhld", "bhdl"
#: How projections lie, ours first; torch's own MultiheadAttention puts the length before the batch.
PROJECTIONS = ("blhd", "lbhd")

#: Numbers this low stand for "never" where a mask puts them in place of a score ...
_NEVER = -1e4
#: ... and are this instead, so that a row without any other key still weighs all keys alike.
_LOWEST = -3.4028234663852886e38
#: Fewer queries than this share no vector: heads are not brought together for them.
_FEW_QUERIES = 8

Shape: TypeAlias = tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of one operand: (batch, heads, length, features of a head)."""

    batch: Size
    heads: int
    length: Size
    width: int

    def sizes(self) -> dict[str, Size]:
        return {"b": self.batch, "h": self.heads, "l": self.length, "d": self.width}

    def projection(self, order: str = "blhd") -> Shape:
        """The shape of all heads side by side."""
        features = self.heads * self.width
        return (self.batch, self.length, features) if order[0] == "b" else (self.length, self.batch, features)


@dataclass(frozen=True, slots=True)
class Match:
    """``last`` is the node whose value the attention makes, up to a move from ``order``.

    ``operands`` are the projections: name, shape wanted and the order their parts lie in.
    """

    last: Node
    order: str
    heads: Heads
    operands: tuple[tuple[str, Heads, str], ...]
    mask: Mask
    scale: float


@dataclass(frozen=True, slots=True)
class Mask:
    """What is added to scores of a shape: an expression over nodes, or nothing."""

    expr: Expr | None = None
    args: tuple[str, ...] = ()
    scores: Shape = ()

    def joined(self, expr: Expr, args: tuple[str, ...], kind: str, scores: Shape) -> Mask:
        """With another term added, or (kind "where") under a choice that reads Arg(-1) for this mask."""
        read = [args[i] for i in arguments(expr) if i >= 0]
        names = tuple(dict.fromkeys((*self.args, *read)))
        own = Scalar(0.0) if self.expr is None else self._over(self.expr, self.args, names)
        other = rewrite(expr, lambda a: own if a.index < 0 else Arg(names.index(args[a.index])))
        plain = kind == "where" or self.expr is None
        return Mask(other if plain else call("add", own, other), names, scores)

    @staticmethod
    def _over(expr: Expr, args: tuple[str, ...], names: tuple[str, ...]) -> Expr:
        return rewrite(expr, lambda a: Arg(names.index(args[a.index])))


@dataclass(frozen=True, slots=True)
class _Source:
    """A projection, how its parts lie, and the factor between it and its heads."""

    name: str
    order: str
    factor: float


@dataclass(frozen=True, slots=True)
class Matcher:
    graph: Graph
    nodes: dict[str, Node]
    users: dict[str, list[Node]]

    def match(self, softmax: Node) -> Match | None:
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

    def _score_chains(self, value: str) -> Iterator[tuple[Node, Mask, float]]:
        """Ways to read a value as ``product * scale + mask``."""
        n = self.nodes[value]
        if n.op is Op.MATMUL and _is_plain_matmul(n):
            yield n, Mask(), 1.0
        elif n.op is Op.RESHAPE and _last(n) == _last(self.nodes[n.args[0]]):
            yield from self._score_chains(n.args[0])
        elif n.op is Op.ELEMENTWISE:
            for index, factor, kind, term in _readings(cast(ElementwiseAttrs, n.attrs).expr):
                inner = n.args[index]
                if self.nodes[inner].type == n.type:
                    yield from self._masked(n, inner, factor, kind, term)

    def _masked(
        self, n: Node, inner: str, factor: float, kind: str, term: Expr | None
    ) -> Iterator[tuple[Node, Mask, float]]:
        for product_node, mask, scale in self._score_chains(inner):
            if factor != 1.0 and mask.expr is not None:
                continue
            if term is not None and mask.scores not in ((), n.type.shape):
                continue
            if term is not None:
                mask = mask.joined(term, n.args, kind, n.type.shape)
            yield product_node, mask, scale * factor

    def _mask_shape(self, mask: Mask) -> Shape | None:
        return broadcast(self.nodes[a].type.shape for a in mask.args)

    def _fits(self, mask: Mask, heads: Heads, keys: Size) -> bool:
        """Whether the mask broadcasts to (batch, heads, queries, keys)."""
        if mask.expr is None:
            return True
        shape = self._mask_shape(mask)
        plain = mask.expr == Arg(0) and self.nodes[mask.args[0]].type.dtype != "float32"
        if shape is None or not shape or shape[-1] != keys or plain:
            return False
        leading = mask.scores[:-2]
        if leading == (heads.batch, heads.heads) or heads.batch == 1:
            return product(leading) == heads.batch * heads.heads
        return len(leading) == 1 and shape[:-2] in ((), (1,))

    def _operands(self, scores: Node, weighted: Node, mask: Mask, scale: float) -> Match | None:
        values = (scores.args[0], scores.args[1], weighted.args[1])
        chains = [self._chain(v) for v in values]
        length = _last(self.nodes[values[1]])
        for heads in _candidates(self.nodes[values[0]].type.shape, chains[0]):
            all_heads = (heads, replace(heads, length=length), replace(heads, length=length))
            orders = (_QUERY, _KEY, _QUERY)
            found = [self._source(*one) for one in zip(values, chains, all_heads, orders, strict=True)]
            last = self._merges_heads(weighted, heads)
            if last is None or None in found or not self._fits(mask, heads, length):
                continue
            sources = [one for one in found if one is not None]
            if sources[2].factor != 1.0:
                continue
            operands = tuple((s.name, h, s.order) for s, h in zip(sources, all_heads, strict=True))
            factor = sources[0].factor * sources[1].factor
            return Match(*last, heads, operands, mask, scale * factor)
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

    def _source(self, value: str, chain: list[Node], heads: Heads, order: str) -> _Source | None:
        """The projection whose heads ``value`` holds in ``order``."""
        sizes = heads.sizes()
        if self.nodes[value].type.shape[-2:] != tuple(sizes[c] for c in order[-2:]):
            return None
        for end in range(len(chain), -1, -1):
            if end and chain[end - 1].op is Op.ELEMENTWISE:
                continue  # a scaling of the whole projection belongs to the layer that makes it
            source = chain[end - 1].args[0] if end else value
            for lies in PROJECTIONS:
                if self._leads_to(source, lies, chain[:end], sizes) == nontrivial(order, sizes):
                    factors = [self._scale(n) for n in chain[:end]]
                    return _Source(source, lies, prod(f for f in factors if f is not None))
        few = isinstance(heads.length, int) and heads.length < _FEW_QUERIES
        return None if few else _Source(value, order, 1.0)

    def _leads_to(self, source: str, lies: str, chain: list[Node], sizes: Mapping[str, Size]) -> str | None:
        """The order of parts at the end of a chain, when ``source`` has them as ``lies`` says."""
        parts = group([(c, sizes[c]) for c in lies], self.nodes[source].type.shape)
        for n in reversed(chain):
            parts = None if parts is None else move(parts, n)
        return None if parts is None else letters(parts)

    def _merges_heads(self, weighted: Node, heads: Heads) -> tuple[Node, str] | None:
        """The node after which the heads lie side by side again, and how they lie."""
        sizes = heads.sizes()
        parts = group([(c, sizes[c]) for c in _QUERY], weighted.type.shape)
        n: Node | None = weighted
        while n is not None and parts is not None:
            for lies in PROJECTIONS:
                if letters(parts) == nontrivial(lies, sizes):
                    return n, lies
            n = self._only_user(n)
            parts = None if n is None or n.op not in (Op.RESHAPE, Op.TRANSPOSE) else move(parts, n)
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


def _readings(e: Expr) -> Iterator[tuple[int, float, str, Expr | None]]:
    """Readings of an expression as ``Arg(i) * factor`` and a mask: (i, factor, kind, mask).

    A mask of kind "add" is added; one of kind "where" stands in the place of what was added
    before, which it reads as Arg(-1).
    """
    alone = _linear(e)
    if alone is not None:
        yield (*alone, "", None)
    if not isinstance(e, Call):
        return
    if e.function == "add":
        for scores, mask in (e.operands, e.operands[::-1]):
            scaled = _linear(scores)
            if scaled is not None and arguments(mask) and scaled[0] not in arguments(mask):
                yield (*scaled, "add", mask)
    if e.function == "where":
        condition, *ways = e.operands
        for place in (0, 1):
            scaled, other = _linear(ways[place]), ways[1 - place]
            never = isinstance(other, Scalar) and other.value <= _NEVER
            if scaled is None or not never or scaled[0] in arguments(condition):
                continue
            low = Scalar(_LOWEST if _finite(other) else float("-inf"))
            terms = (Arg(-1), low) if place == 0 else (low, Arg(-1))
            yield (*scaled, "where", call("where", condition, *terms))


def _finite(e: Expr) -> bool:
    return isinstance(e, Scalar) and e.value > float("-inf")


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


def _candidates(shape: Shape, chain: Sequence[Node]) -> Iterator[Heads]:
    """What an operand of this shape (..., length, width), made by this chain, may hold."""
    length, width = shape[-2:]
    leading: list[Shape] = [shape[:2]] if len(shape) == 4 else []
    if len(shape) == 3:
        merged = (n.type.shape for n in chain if len(n.type.shape) == 4)
        leading = [s[:2] for s in merged if product(s[:2]) == shape[0]]
        leading += [(1, shape[0]), (shape[0], 1)]
    for batch, heads in leading:
        if isinstance(heads, int) and isinstance(width, int):
            yield Heads(batch, heads, length, width)

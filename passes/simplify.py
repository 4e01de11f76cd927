"""Fold constants, drop identities, merge equal values, remove dead code."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import Attrs, ConvAttrs, ElementwiseAttrs, MatmulAttrs, TransposeAttrs
from sparsec.ir.expr import Arg, Expr, Scalar, rewrite
from sparsec.ir.graph import Graph, Node, Op, const_node, fresh_name, replace, with_nodes
from sparsec.ir.types import Type, is_dynamic
from sparsec.passes.algebra import broadcast, renumber, simplify_expr, working_dtype
from sparsec.passes.moves import (
    drop_pad,
    drop_same_size,
    drop_slice,
    merge_concats,
    merge_slices,
    pad_after_reshape,
    slice_before_move,
    slice_part,
)
from sparsec.reference.evaluate import evaluate_node
from sparsec.targets.target import Target

Array: TypeAlias = NDArray[Any]

#: A folded constant may have this many elements more than the constants it is made from.
_GROWTH = 1 << 18
#: Constants up to this many bytes are compared by value when equal ones are merged.
_COMPARED_BYTES = 1 << 12


def simplify(graph: Graph, target: Target) -> Graph:
    """Rewrite until nothing changes; the result computes the same values.

    Nodes that read only constants are computed (never a ``tir`` node, never into something much
    larger than they read); reshapes and transposes that move nothing go; one-element constants
    move into expressions; equal nodes merge; nodes no output needs go.
    """
    while True:
        after = Rewriter(graph).run()
        if after is graph:
            return graph
        graph = after


@dataclass
class Rewriter:
    """One walk over a graph; every node sees arguments that are already rewritten."""

    graph: Graph
    nodes: dict[str, Node] = field(default_factory=dict)
    consts: dict[str, Array] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    known: dict[Hashable, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    users: Mapping[str, list[Node]] = field(default_factory=dict)

    def run(self) -> Graph:
        """The rewritten graph, or the very same if nothing changed."""
        self.consts = dict(self.graph.consts)
        self.users = self.graph.users()
        self.taken = {n.name for n in self.graph.nodes}
        for n in self.graph.nodes:
            self._visit(n)
        outputs = tuple(self.renamed.get(o, o) for o in self.graph.outputs)
        after = with_nodes(self.graph, self.nodes.values(), self.consts, outputs)
        unchanged = after.nodes == self.graph.nodes and outputs == self.graph.outputs
        return self.graph if unchanged and len(after.consts) == len(self.graph.consts) else after

    def _visit(self, n: Node) -> None:
        args = tuple(self.renamed.get(a, a) for a in n.args)
        found = self._rewritten(n if args == n.args else replace(n, args=args))
        if isinstance(found, str):
            self.renamed[n.name] = found
        else:
            self.nodes[n.name] = found

    def _rewritten(self, n: Node) -> Node | str:
        """A node for the same value, or the name of a value there already is."""
        for rule in _RULES.get(n.op, ()):
            found = rule(self, n)
            if isinstance(found, str):
                return found
            n = found
        return self._merged(self._folded(n))

    def _folded(self, n: Node) -> Node:
        """The node, or the constant it always computes."""
        if n.op in _NOT_FOLDED or not all(self.nodes[a].op is Op.CONST for a in n.args):
            return n
        if is_dynamic(n.type.shape) or n.type.layout.panel:
            return n
        arrays = [self.consts[a] for a in n.args]
        if int(cast(int, n.type.elements)) > sum(a.size for a in arrays) + _GROWTH:
            return n
        self.consts[n.name] = _compute(n, arrays)
        return replace(const_node(n.name, self.consts[n.name]), origin=n.origin)

    def _merged(self, n: Node) -> Node | str:
        """The node, or the name of an earlier equal one."""
        if n.op is Op.INPUT:
            return n
        key: Hashable = (n.op, n.args, n.attrs, n.type, n.choice)
        if n.op is Op.CONST:
            key = (n.type, n.attrs, _content(self.consts[n.name]))
        earlier = self.known.setdefault(key, n.name)
        return n if earlier == n.name else earlier

    def type_of(self, name: str) -> Type:
        """The type of a value that is already rewritten."""
        return self.nodes[name].type

    def readers(self, name: str) -> list[Node]:
        """The nodes that read a value of the graph; an output is also read by itself."""
        itself = [self.nodes[name]] if name in self.graph.outputs else []
        return self.users.get(name, []) + itself

    def add(self, stem: str, op: Op, args: tuple[str, ...], type_: Type, attrs: Attrs) -> str:
        """Add a node before the one being rewritten; returns its name."""
        name = fresh_name(stem, self.taken)
        self.taken.add(name)
        self.nodes[name] = Node(name, op, args, type_, attrs)
        return name

    def add_const(self, stem: str, array: Array) -> str:
        """Add a constant; returns its name."""
        name = fresh_name(stem, self.taken)
        self.taken.add(name)
        self.consts[name] = array
        self.nodes[name] = const_node(name, array)
        return name

    def scalar(self, name: str) -> float | None:
        """The value of a one-element constant."""
        array = self.consts.get(name)
        if array is None or array.size != 1 or array.dtype.kind not in "fiub":
            return None
        value = float(array.reshape(()))
        return value if array.dtype.kind == "f" or abs(value) < 2**53 else None


_NOT_FOLDED = frozenset({Op.INPUT, Op.CONST, Op.TIR, Op.RECURRENT, Op.ITEM, Op.RELAYOUT})

_MOVES = frozenset({Op.RESHAPE, Op.TRANSPOSE, Op.SLICE, Op.CONCAT, Op.PAD})


def _compute(n: Node, arrays: list[Array]) -> Array:
    """In double precision, rounded once; moves keep their bits."""
    wide = None if n.op in _MOVES else np.float64
    if wide is not None:
        arrays = [a.astype(wide) if a.dtype.kind == "f" else a for a in arrays]
    with np.errstate(all="ignore"):
        value = evaluate_node(n, arrays, {}, wide).astype(n.type.dtype, copy=False)
    return np.ascontiguousarray(value).reshape(value.shape)


def _content(array: Array) -> Hashable:
    return array.tobytes() if array.nbytes <= _COMPARED_BYTES else id(array)


def _drop_reshape(state: Rewriter, n: Node) -> Node | str:
    source = state.nodes[n.args[0]]
    if source.type == n.type:
        return source.name
    if source.op is Op.RESHAPE:
        n = replace(n, args=source.args)
        return source.args[0] if state.type_of(source.args[0]) == n.type else n
    return n


def _drop_transpose(state: Rewriter, n: Node) -> Node | str:
    axes = cast(TransposeAttrs, n.attrs).axes
    source = state.nodes[n.args[0]]
    if source.op is Op.TRANSPOSE:
        inner = cast(TransposeAttrs, source.attrs).axes
        axes = tuple(inner[a] for a in axes)
        n = replace(n, args=source.args, attrs=TransposeAttrs(axes))
        source = state.nodes[source.args[0]]
    if axes == tuple(range(len(axes))) and source.type == n.type:
        return source.name
    moved = [a for a in axes if source.type.shape[a] != 1]
    if moved == sorted(moved):
        return _drop_reshape(state, replace(n, op=Op.RESHAPE, attrs=None))
    return n


def _drop_relayout(state: Rewriter, n: Node) -> Node | str:
    return n.args[0] if state.type_of(n.args[0]) == n.type else n


def _simplify_elementwise(state: Rewriter, n: Node) -> Node | str:
    n = _simplify_expression(state, n, cast(ElementwiseAttrs, n.attrs).expr, 0, ElementwiseAttrs)
    e = cast(ElementwiseAttrs, n.attrs).expr
    if e == Arg(0) and state.type_of(n.args[0]) == n.type:
        return n.args[0]
    return n


def _simplify_epilogue(state: Rewriter, n: Node) -> Node | str:
    attrs = cast(MatmulAttrs | ConvAttrs, n.attrs)
    if attrs.epilogue is None:
        return n

    def with_epilogue(e: Expr) -> Attrs:
        return replace(attrs, epilogue=None if e == Arg(0) else e)

    return _simplify_expression(state, n, attrs.epilogue, 1, with_epilogue)


def _simplify_expression(
    state: Rewriter, n: Node, e: Expr, fixed: int, attrs: Callable[[Expr], Attrs]
) -> Node:
    """Simplify what a node computes; Arg(0) up to Arg(fixed - 1) are not among ``n.args``' tail.

    A matmul reads its product as Arg(0) and ``n.args[2:]`` after it, an elementwise node all of
    ``n.args``.
    """
    head = n.args[: 2 * fixed]
    tail = (n.name,) * fixed + n.args[2 * fixed :]
    e = _literals(state, n, e, tail, fixed)
    operands = [n.type.dtype if a == n.name else state.type_of(a).dtype for a in tail]
    e = simplify_expr(e, working_dtype(operands, n.type.dtype).kind == "f")
    e, kept = renumber(e, tail, fixed)
    if not fixed and not _same_result(state, n, tail, kept):
        e, kept = renumber(e, tail, len(tail))
    return replace(n, args=head + kept[fixed:], attrs=attrs(e))


def _literals(state: Rewriter, n: Node, e: Expr, args: tuple[str, ...], fixed: int) -> Expr:
    """``e`` with one-element constants as numbers, where that changes neither shape nor type."""
    values = {i: state.scalar(a) for i, a in enumerate(args) if i >= fixed}
    numbers = {i: v for i, v in values.items() if v is not None}
    rest = tuple(a for i, a in enumerate(args) if i not in numbers)
    if not fixed and not _same_result(state, n, args, rest):
        return e
    return rewrite(e, lambda arg: Scalar(numbers[arg.index]) if arg.index in numbers else arg)


def _same_result(state: Rewriter, n: Node, before: tuple[str, ...], after: tuple[str, ...]) -> bool:
    """Whether an elementwise node keeps its shape and the type it computes in."""
    if not after:
        return False
    types = [[state.type_of(a) for a in args] for args in (before, after)]
    shapes = [broadcast(t.shape for t in some) for some in types]
    computed = [working_dtype((t.dtype for t in some), n.type.dtype) for some in types]
    return computed[0] == computed[1] and shapes[0] == shapes[1] and shapes[0] is not None


def _flatten_weight(state: Rewriter, n: Node) -> Node | str:
    """A constant weight (1, K, M) is the matrix (K, M)."""
    x, w = state.type_of(n.args[0]), state.type_of(n.args[1])
    extra = len(w.shape) - 2
    constant = state.nodes[n.args[1]].op is Op.CONST
    if not constant or extra <= 0 or len(x.shape) < len(w.shape) or w.shape[:extra] != (1,) * extra:
        return n
    array = state.consts[n.args[1]]
    matrix = state.add_const(f"{n.args[1]}_matrix", array.reshape(array.shape[extra:]))
    return replace(n, args=(n.args[0], matrix, *n.args[2:]))


_Rule: TypeAlias = Callable[[Rewriter, Node], Node | str]
_RULES: Mapping[Op, tuple[_Rule, ...]] = {
    Op.RESHAPE: (_drop_reshape, pad_after_reshape),
    Op.TRANSPOSE: (_drop_transpose,),
    Op.RELAYOUT: (_drop_relayout,),
    Op.ELEMENTWISE: (_simplify_elementwise,),
    Op.MATMUL: (_flatten_weight, _simplify_epilogue),
    Op.CONV2D: (_simplify_epilogue,),
    Op.SLICE: (merge_slices, slice_part, slice_before_move, drop_slice),
    Op.CONCAT: (merge_concats,),
    Op.PAD: (drop_pad,),
    Op.RESIZE: (drop_same_size,),
}

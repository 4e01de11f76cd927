"""fold_convolution: pads, scales and shifts around a convolution become part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import ConvAttrs, ElementwiseAttrs, PadAttrs, PoolAttrs
from sparsec.ir.expr import Arg, Call, Expr, Scalar, call, walk
from sparsec.ir.graph import Graph, Node, Op, const_node, fresh_name, replace, with_nodes
from sparsec.passes.algebra import renumber
from sparsec.targets.layers import is_convolution
from sparsec.targets.target import Target

Array: TypeAlias = NDArray[Any]


def fold_convolution(graph: Graph, target: Target) -> Graph:
    """Fold what surrounds convolutions by constant weights; meant to run after fuse_elementwise.

    Zeros padded around an image join the padding of the convolution or pool that reads it.  A
    multiple plus a constant per channel (a batch normalisation) is folded into weight and bias;
    before the convolution only where no shift would meet padding.
    """
    after = _swept(graph)
    while after is not graph:
        graph, after = after, _swept(after)
    return graph


def _swept(graph: Graph) -> Graph:
    folding = _Folding(graph, graph.node_map(), dict(graph.consts), graph.users())
    for n in graph.nodes:
        folding.nodes[n.name] = folding.folded(n)
    if not folding.changed:
        return graph
    constants = [n for n in folding.nodes.values() if n.op is Op.CONST]
    others = [n for n in folding.nodes.values() if n.op is not Op.CONST]
    return with_nodes(graph, [*constants, *others], folding.consts)


@dataclass
class _Folding:
    """The nodes so far, constants and all; ``users`` are those of the graph before."""

    graph: Graph
    nodes: dict[str, Node]
    consts: dict[str, Array]
    users: Mapping[str, Sequence[Node]]
    changed: bool = field(default=False)

    def folded(self, n: Node) -> Node:
        """The node with all folded into it that can be."""
        if n.choice or n.op not in (Op.CONV2D, Op.POOL):
            return n
        after = self._without_pad(n)
        if is_convolution(self.nodes, after):
            after = self._without_affine_after(self._without_affine_before(after))
        self.changed = self.changed or after is not n
        return after

    # -- pads

    def _without_pad(self, n: Node) -> Node:
        source = self.nodes[n.args[0]]
        attrs = source.attrs
        if not isinstance(attrs, PadAttrs) or not _absorbs(n, attrs.value):
            return n
        inner: Any = self.nodes[source.args[0]].type.shape
        outer: Any = source.type.shape
        if inner[:2] != outer[:2] or any(attrs.before[:2]):
            return n
        window = cast(ConvAttrs | PoolAttrs, n.attrs)
        after = (outer[2 + a] - inner[2 + a] - attrs.before[2 + a] for a in (0, 1))
        padding: Any = tuple(map(sum, zip(window.padding, (*attrs.before[2:], *after), strict=True)))
        widened: Any = replace(window, padding=padding)
        if isinstance(window, PoolAttrs) and window.kind == "mean":
            widened = replace(widened, count_padding=True)
        return replace(n, args=(source.args[0], *n.args[1:]), attrs=widened)

    # -- scales and shifts

    def _without_affine_before(self, n: Node) -> Node:
        source, attrs = self.nodes[n.args[0]], cast(ConvAttrs, n.attrs)
        alone = len(self.users[source.name]) == 1 and source.name not in self.graph.outputs
        if source.op is not Op.ELEMENTWISE or not alone:
            return n
        channels = int(str(source.type.shape[1]))
        values = self._per_channel(source.args, channels, len(source.type.shape))
        moving = [i for i in range(len(source.args)) if i not in values]
        if len(moving) != 1 or self.nodes[source.args[moving[0]]].type != source.type:
            return n
        expr = cast(ElementwiseAttrs, source.attrs).expr
        found = _affine(expr, moving[0], values)[expr]
        if found is None or (found.shift.any() and any(attrs.padding)):
            return n
        return self._scaled_inputs(n, source.args[moving[0]], found.spread(channels))

    def _scaled_inputs(self, n: Node, x: str, found: _Affine) -> Node:
        weight = self.consts[n.args[1]].astype(np.float64)
        groups, inner = cast(ConvAttrs, n.attrs).groups, weight.shape[1]
        scale, shift = (
            np.repeat(v.reshape(groups, 1, inner), len(weight) // groups, 1).reshape(-1, inner, 1, 1)
            for v in (found.scale, found.shift)
        )
        bias = (weight * shift).sum((1, 2, 3))
        after = self._with_weight(n, weight * scale)
        if after is None:
            return n
        epilogue = cast(ConvAttrs, n.attrs).epilogue
        body, args = self._plus(Arg(0), bias, after)
        if epilogue is not None:
            body = _swapped(epilogue, Arg(0), body)
        return self._with_epilogue(replace(after, args=(x, *args[1:])), body)

    def _without_affine_after(self, n: Node) -> Node:
        """The largest part of the epilogue that is affine in the product and hides it from the rest."""
        epilogue = cast(ConvAttrs, n.attrs).epilogue
        if epilogue is None:
            return n
        outputs = int(str(n.type.shape[1]))
        values = {1 + i: v for i, v in self._per_channel(n.args[2:], outputs, 4).items()}
        every = _affine(epilogue, 0, values)
        parts = [e for e, a in every.items() if a is not None and not a.constant]
        for part in reversed(parts):
            found = every[part]
            assert found is not None
            marked = _swapped(epilogue, part, Scalar(0.0))
            if all(e != Arg(0) for e in walk(marked)):
                return n if _is_bias(part) else self._scaled_outputs(n, epilogue, part, found.spread(outputs))
        return n

    def _scaled_outputs(self, n: Node, epilogue: Expr, part: Expr, found: _Affine) -> Node:
        weight = self.consts[n.args[1]].astype(np.float64)
        after = self._with_weight(n, weight * found.scale.reshape(-1, 1, 1, 1))
        if after is None:
            return n
        body, args = self._plus(Arg(0), found.shift, after)
        return self._with_epilogue(replace(after, args=args), _swapped(epilogue, part, body))

    def _with_weight(self, n: Node, weight: Array) -> Node | None:
        """The node with another weight, under the old name where nobody else reads the old one.

        None where the weight leaves float32.
        """
        old, rounded = n.args[1], weight.astype(np.float32)
        if not np.isfinite(rounded).all():
            return None
        if np.array_equal(rounded, self.consts[old]):
            return n
        alone = len(self.users.get(old, ())) <= 1 and old not in self.graph.outputs
        name = self._const(old if alone else fresh_name(f"{old}_scaled", self.nodes), rounded)
        return replace(n, args=(n.args[0], name, *n.args[2:]))

    def _plus(self, product: Expr, shift: Array, n: Node) -> tuple[Expr, tuple[str, ...]]:
        """``product + shift`` and the node's arguments with the shift among them, if there is any."""
        if not shift.any():
            return product, n.args
        bias = self._const(
            fresh_name(f"{n.args[1]}_bias", self.nodes), shift.astype(np.float32).reshape(-1, 1, 1)
        )
        return call("add", product, Arg(len(n.args) - 1)), (*n.args, bias)

    def _with_epilogue(self, n: Node, epilogue: Expr) -> Node:
        shortened, kept = renumber(epilogue, (n.name, *n.args[2:]), 1)
        attrs = replace(cast(ConvAttrs, n.attrs), epilogue=None if shortened == Arg(0) else shortened)
        return replace(n, args=(*n.args[:2], *kept[1:]), attrs=attrs)

    def _const(self, name: str, array: Array) -> str:
        self.consts[name] = array
        self.nodes[name] = const_node(name, array)
        return name

    def _per_channel(self, args: Sequence[str], channels: int, rank: int) -> dict[int, Array]:
        """The constants among arguments that are one number or one per channel, as vectors."""
        found: dict[int, Array] = {}
        for i, arg in enumerate(args):
            array = self.consts.get(arg)
            if array is None or array.dtype != np.float32 or array.ndim > rank:
                continue
            shape = (1,) * (rank - array.ndim) + array.shape
            if array.size == 1 or (array.size == channels == shape[1]):
                found[i] = array.astype(np.float64).ravel()
        return found


def _absorbs(n: Node, value: float) -> bool:
    """Whether what is padded with a value may be padding of the window instead."""
    if not isinstance(n.attrs, PoolAttrs):
        return value == 0
    if n.attrs.kind == "max":
        return value == -np.inf
    return value == 0 and (n.attrs.count_padding or not any(n.attrs.padding))


@dataclass(frozen=True, eq=False)
class _Affine:
    """``scale * x + shift``, a number or one per channel each; ``constant`` where x does not occur."""

    scale: Array
    shift: Array
    constant: bool = False

    def spread(self, channels: int) -> _Affine:
        """Both as one number per channel."""
        return _Affine(np.broadcast_to(self.scale, channels), np.broadcast_to(self.shift, channels))


def _affine(expr: Expr, moving: int, values: Mapping[int, Array]) -> dict[Expr, _Affine | None]:
    """Every subtree as an affine function of Arg(moving); None for those that are not."""
    one, zero = np.ones(1), np.zeros(1)
    found: dict[Expr, _Affine | None] = {}
    for part in walk(expr):
        if isinstance(part, Call):
            operands = [found[o] for o in part.operands]
            known = [o for o in operands if o is not None]
            found[part] = _combined(part.function, known) if len(known) == len(operands) else None
        elif isinstance(part, Scalar):
            found[part] = _Affine(zero, np.array([part.value]), True)
        elif part.index == moving:
            found[part] = _Affine(one, zero)
        else:
            found[part] = _Affine(zero, values[part.index], True) if part.index in values else None
    return found


def _combined(function: str, operands: Sequence[_Affine]) -> _Affine | None:
    if function == "neg":
        return _Affine(-operands[0].scale, -operands[0].shift, operands[0].constant)
    if len(operands) != 2:
        return None
    x, y = operands
    constant = x.constant and y.constant
    if function in ("add", "sub"):
        sign = 1 if function == "add" else -1
        return _Affine(x.scale + sign * y.scale, x.shift + sign * y.shift, constant)
    if function == "mul" and x.constant:
        x, y = y, x
    if function == "mul" and y.constant:
        return _Affine(x.scale * y.shift, x.shift * y.shift, constant)
    if function == "div" and y.constant and y.shift.all():
        return _Affine(x.scale / y.shift, x.shift / y.shift, constant)
    return None


def _is_bias(part: Expr) -> bool:
    """Whether a part is the product already, or the product plus one number per channel."""
    if isinstance(part, Arg):
        return True
    return (
        isinstance(part, Call)
        and part.function == "add"
        and part.operands[0] == Arg(0)
        and (not isinstance(part.operands[1], Call) and part.operands[1] != Arg(0))
    )


def _swapped(expr: Expr, part: Expr, other: Expr) -> Expr:
    """The expression with every occurrence of a subtree replaced."""
    memo: dict[Expr, Expr] = {}
    for e in walk(expr):
        if e == part:
            memo[e] = other
        elif isinstance(e, Call):
            memo[e] = Call(e.function, tuple(memo[o] for o in e.operands))
        else:
            memo[e] = e
    return memo[expr]

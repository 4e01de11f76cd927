"""Recognise normalisation along the features written in primitive operators.

Layer normalisation (Ba et al. 2016), as files older than ONNX's operator of that name spell it, and
root mean square normalisation (Zhang and Sennrich 2019), for which ONNX long had none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from sparsec.ir.attributes import ElementwiseAttrs, LayerNormAttrs, ReduceAttrs
from sparsec.ir.expr import Arg, Call, Expr, Scalar, substitute
from sparsec.ir.graph import Graph, Node, Op, const_node, fresh_name, replace, with_nodes
from sparsec.targets.target import Target

#: nodes that one elementwise expression may be spread over
_DEPTH = 8

#: what a quotient's expression is over: what is divided, the variance, anything else
_DIVIDEND, _VARIANCE, _OTHER = Arg(0), Arg(1), Arg(2)


def fuse_norms(graph: Graph, target: Target) -> Graph:
    """Replace ``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` and the same without mean and beta.

    Gamma and beta may be missing; the root may be a quotient or a factor, over any number of nodes.
    What is read from elsewhere too (a mean, a centred x) stays beside the new node.
    """
    while True:
        matcher = _Matcher(graph, graph.node_map(), graph.users())
        found = (matcher.match(n) for n in graph.nodes if n.op is Op.REDUCE)
        match = next((m for m in found if m is not None), None)
        if match is None:
            return graph
        graph = _rewrite(graph, match)


@dataclass(frozen=True, slots=True)
class _Match:
    """``last`` becomes the norm of ``x``; a missing gamma or beta is None."""

    last: Node
    x: str
    epsilon: float
    centred: bool
    gamma: str | None
    beta: str | None


@dataclass(frozen=True, slots=True)
class _Matcher:
    graph: Graph
    nodes: Mapping[str, Node]
    users: Mapping[str, list[Node]]

    def match(self, square_mean: Node) -> _Match | None:
        """The norm whose variance, or mean square, a node is."""
        if not self._is_feature_mean(square_mean):
            return None
        d = self._squared(square_mean.args[0])
        if d is None:
            return None
        x = self._centred(d)
        for last in self._below(square_mean, 0):
            epsilon = self._quotient(last, d, square_mean.name)
            if epsilon is not None:
                return self._with_weights(_Match(last, x or d, epsilon, x is not None, None, None))
        return None

    def _is_feature_mean(self, n: Node) -> bool:
        attrs = n.attrs
        if n.op is not Op.REDUCE or not isinstance(attrs, ReduceAttrs) or n.type.dtype != "float32":
            return False
        shape = self.nodes[n.args[0]].type.shape
        along = attrs.axes == (len(shape) - 1,) and isinstance(shape[-1], int)
        return along and attrs.kind == "mean" and attrs.keepdims

    def _squared(self, name: str) -> str | None:
        """The value a node squares."""
        n = self.nodes[name]
        if n.op is not Op.ELEMENTWISE:
            return None
        match self._expression(n):
            case Call("mul", (Arg(i), Arg(j))) if n.args[i] == n.args[j]:
                return n.args[i]
            case Call("pow", (Arg(i), power)) if self._number(n, power) == 2:
                return n.args[i]
        return None

    def _centred(self, name: str) -> str | None:
        """What a node takes the mean of its features from."""
        n = self.nodes[name]
        if n.op is not Op.ELEMENTWISE:
            return None
        match self._expression(n):
            case Call("sub", (Arg(i), Arg(j))):
                mean = self.nodes[n.args[j]]
                if self._is_feature_mean(mean) and mean.args[0] == n.args[i]:
                    return n.args[i]
        return None

    def _below(self, n: Node, depth: int) -> Iterator[Node]:
        """Elementwise nodes that read a value of one number a token, through others of that kind."""
        for user in self.users[n.name] if depth < _DEPTH else ():
            if user.op is not Op.ELEMENTWISE:
                continue
            if user.type.shape == n.type.shape:
                yield from self._below(user, depth + 1)
            else:
                yield user

    def _quotient(self, n: Node, d: str, variance: str) -> float | None:
        """Epsilon, where a node is ``d / sqrt(variance + epsilon)``."""
        if n.type != self.nodes[d].type:
            return None
        factors = list(_factors(self._spread(n, {d: _DIVIDEND, variance: _VARIANCE}, 0), 1))
        roots = [f for f in factors if f != (_DIVIDEND, 1)]
        return _epsilon(*roots[0]) if len(factors) == 2 and len(roots) == 1 else None

    def _spread(self, n: Node, known: Mapping[str, Arg], depth: int) -> Expr:
        """A node's expression over what is known, with values of one number a token written out."""

        def leaf(name: str) -> Expr:
            if name in known:
                return known[name]
            before, number = self.nodes[name], self._constant(name)
            if number is not None:
                return Scalar(number)
            if before.op is Op.ELEMENTWISE and before.type.shape[-1:] == (1,) and depth < _DEPTH:
                return self._spread(before, known, depth + 1)
            return _OTHER

        return substitute(self._expression(n), [leaf(a) for a in n.args])

    def _with_weights(self, found: _Match) -> _Match:
        """The match with gamma and beta, where they follow and nothing else reads what is between."""
        gamma = self._following(found.last, "mul")
        if gamma is not None:
            found = replace(found, last=gamma[0], gamma=gamma[1])
        beta = self._following(found.last, "add") if found.centred else None
        return found if beta is None else replace(found, last=beta[0], beta=beta[1])

    def _following(self, n: Node, function: str) -> tuple[Node, str] | None:
        """The only reader of a node, if it is a product or sum with a number a feature, and those numbers."""
        users = self.users[n.name]
        if len(users) != 1 or n.name in self.graph.outputs:
            return None
        weight = self._weight(users[0], function, n.name)
        return None if weight is None else (users[0], weight)

    def _weight(self, n: Node, function: str, value: str) -> str | None:
        """The other operand of a product or sum, if it holds a number a feature."""
        if n.op is not Op.ELEMENTWISE or n.type != self.nodes[value].type:
            return None
        match self._expression(n):
            case Call(name, (Arg(i), Arg(j))) if name == function and value in (n.args[i], n.args[j]):
                other = n.args[j] if n.args[i] == value else n.args[i]
                kind = self.nodes[other].type
                features = n.type.shape[-1]
                if other != value and kind.shape == (features,) and kind.dtype == "float32":
                    return other
        return None

    def _expression(self, n: Node) -> Expr:
        return cast(ElementwiseAttrs, n.attrs).expr

    def _number(self, n: Node, operand: Expr) -> float | None:
        """An operand that is a constant number."""
        if isinstance(operand, Scalar):
            return operand.value
        return self._constant(n.args[operand.index]) if isinstance(operand, Arg) else None

    def _constant(self, name: str) -> float | None:
        array = self.graph.consts.get(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _epsilon(root: Expr, power: int) -> float | None:
    """What is added to the variance under a root that divides."""
    match root:
        case Call("sqrt", (inside,)) if power == -1:
            pass
        case Call("rsqrt", (inside,)) if power == 1:
            pass
        case Call("pow", (inside, Scalar(exponent))) if exponent * power == -0.5:
            pass
        case _:
            return None
    match inside:
        case Call("add", (a, Scalar(epsilon))) | Call("add", (Scalar(epsilon), a)):
            return epsilon if a == _VARIANCE else None
    return None


def _factors(expr: Expr, power: int) -> Iterator[tuple[Expr, int]]:
    """What is multiplied, with 1 or -1 for what is divided by."""
    match expr:
        case Call("mul", (a, b)):
            yield from _factors(a, power)
            yield from _factors(b, power)
        case Call("div", (Scalar(1.0), b)):
            yield from _factors(b, -power)
        case Call("div", (a, b)):
            yield from _factors(a, power)
            yield from _factors(b, -power)
        case _:
            yield expr, power


def _rewrite(graph: Graph, match: _Match) -> Graph:
    """One node in place of the last; what only the others read goes with them."""
    features = cast(int, match.last.type.shape[-1])
    taken, made, consts = set(graph.node_map()), list[Node](), dict(graph.consts)

    def weight(name: str | None, stem: str, value: float) -> str:
        if name is not None:
            return name
        label = fresh_name(stem, taken)
        taken.add(label)
        consts[label] = np.full(features, value, np.float32)
        made.append(const_node(label, consts[label]))
        return label

    args = [match.x, weight(match.gamma, f"{match.last.name}_gamma", 1.0)]
    if match.centred:
        args.append(weight(match.beta, f"{match.last.name}_beta", 0.0))
    norm = replace(
        match.last, op=Op.LAYER_NORM, args=tuple(args), attrs=LayerNormAttrs(match.epsilon, match.centred)
    )
    nodes = [norm if n.name == match.last.name else n for n in graph.nodes]
    return with_nodes(graph, [*made, *nodes], consts)

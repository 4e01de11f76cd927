"""Fuse elementwise nodes into the layers before them, then into each other.

A layer is a matmul by a constant matrix or a convolution by a constant weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from sparsec.ir.attributes import ElementwiseAttrs
from sparsec.ir.expr import Arg, Call, substitute, walk
from sparsec.ir.graph import Graph, Node, Op, replace, with_nodes
from sparsec.ir.types import PLAIN
from sparsec.passes.algebra import renumber, stays_small
from sparsec.passes.fuse_epilogue import fuse_epilogue
from sparsec.passes.move_reshapes import hoist, sink
from sparsec.targets.target import Target

#: Functions so cheap that computing them again costs less than storing the result.
_CHEAP = frozenset({"add", "sub", "mul", "max", "min", "neg", "abs"})
_COMPARISONS = frozenset({"less", "less_equal", "equal"})


def fuse_elementwise(graph: Graph, target: Target) -> Graph:
    """Fuse until nothing changes.

    First a reshape after a weight matmul moves before it, and one after a convolution moves behind
    what follows, so that it separates nothing; then the elementwise nodes that stand between a layer
    and the first value of use elsewhere become its epilogue; then the remaining elementwise nodes
    absorb the ones they read.
    """
    for step in (hoist, sink, fuse_epilogue, _fuse_pair):
        after = _exhaust(step, graph)
        if after is not graph:
            return fuse_elementwise(after, target)
    return graph


def _exhaust(step: Callable[[Graph], Graph | None], graph: Graph) -> Graph:
    after = step(graph)
    while after is not None:
        graph, after = after, step(after)
    return graph


def _fuse_pair(graph: Graph) -> Graph | None:
    """One sweep: every elementwise node absorbs what it reads, as far as that goes."""
    nodes, users = graph.node_map(), graph.users()
    readers = {name: [u.name for u in found] for name, found in users.items()}
    changed = False
    for name in list(nodes):
        producer = _next_absorbed(graph, nodes, readers, name)
        while producer is not None:
            changed = True
            _absorb_everywhere(nodes, readers, producer)
            producer = _next_absorbed(graph, nodes, readers, name)
    return with_nodes(graph, nodes.values()) if changed else None


def _next_absorbed(
    graph: Graph, nodes: dict[str, Node], readers: dict[str, list[str]], name: str
) -> Node | None:
    """A producer that this node, and all others that read it, may compute themselves."""
    n = nodes.get(name)
    if n is None or n.op is not Op.ELEMENTWISE or not _is_real(nodes, n):
        return None
    for arg in n.args:
        if arg not in graph.outputs and _absorbs(nodes, [nodes[r] for r in readers[arg]], nodes[arg]):
            return nodes[arg]
    return None


def _absorb_everywhere(nodes: dict[str, Node], readers: dict[str, list[str]], producer: Node) -> None:
    reading = readers.pop(producer.name)
    for user in reading:
        nodes[user] = _absorb(producer, nodes[user])
    for arg in producer.args:
        others = (r for r in readers[arg] if r != producer.name)
        readers[arg] = list(dict.fromkeys((*others, *reading)))
    del nodes[producer.name]


def _is_real(nodes: dict[str, Node], n: Node) -> bool:
    """Whether a node computes in float32, and so means the same inside another that does."""
    dtypes = {nodes[a].type.dtype for a in n.args}
    if n.type.layout != PLAIN or not dtypes <= {"float32", "bool"}:
        return False
    return n.type.dtype == "float32" or (n.type.dtype == "bool" and "float32" in dtypes)


def _absorbs(nodes: dict[str, Node], users: list[Node], producer: Node) -> bool:
    """Whether all users of a producer may compute it themselves."""
    if producer.op is not Op.ELEMENTWISE or not _is_real(nodes, producer):
        return False
    body = cast(ElementwiseAttrs, producer.attrs).expr
    if producer.type.dtype == "bool" and not (isinstance(body, Call) and body.function in _COMPARISONS):
        return False
    if len(users) > 1 and not _is_cheap(producer):
        return False
    return all(_fits(nodes, producer, u) for u in users)


def _is_cheap(producer: Node) -> bool:
    calls = [e for e in walk(cast(ElementwiseAttrs, producer.attrs).expr) if isinstance(e, Call)]
    return len(producer.args) == 1 and len(calls) <= 2 and all(c.function in _CHEAP for c in calls)


def _fits(nodes: dict[str, Node], producer: Node, user: Node) -> bool:
    if user.op is not Op.ELEMENTWISE or not _is_real(nodes, user):
        return False
    bodies = [cast(ElementwiseAttrs, n.attrs).expr for n in (producer, user)]
    same_shape = producer.type.shape == user.type.shape or producer.type.elements == 1
    return same_shape and stays_small(*bodies)


def _absorb(producer: Node, user: Node) -> Node:
    """The user, computing the producer itself."""
    names = [*(a for a in user.args if a != producer.name), *producer.args]
    body = cast(ElementwiseAttrs, producer.attrs).expr
    inner = substitute(body, [Arg(names.index(a)) for a in producer.args])
    operands = [inner if a == producer.name else Arg(names.index(a)) for a in user.args]
    whole, kept = renumber(substitute(cast(ElementwiseAttrs, user.attrs).expr, operands), names)
    return replace(user, args=kept, attrs=ElementwiseAttrs(whole))

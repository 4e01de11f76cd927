"""pack: store every chosen weight the way its kernel reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsec.ir.graph import Choice, Graph, Node, replace, with_nodes
from sparsec.targets.layers import weight_matrix
from sparsec.targets.problem import problem_of
from sparsec.targets.target import Target

if TYPE_CHECKING:
    from sparsec.ir.types import Array


def pack(graph: Graph, target: Target) -> Graph:
    """Add the packed constants of every choice that has none."""
    nodes = graph.node_map()
    consts = dict(graph.consts)
    done = [_packed(n, nodes, consts, target) if n.choice else n for n in graph.nodes]
    if all(a is b for a, b in zip(done, graph.nodes, strict=True)):
        return graph
    return with_nodes(graph, done, consts)


def _packed(n: Node, nodes: dict[str, Node], consts: dict[str, Array], target: Target) -> Node:
    if all(c.packed for c in n.choice):
        return n
    weight = weight_matrix(n, consts[n.args[1]])
    choices = tuple(_pack_choice(c, i, n, nodes, weight, consts, target) for i, c in enumerate(n.choice))
    return replace(n, choice=choices)


def _pack_choice(
    choice: Choice, index: int, n: Node, nodes: dict[str, Node], weight: Array, consts: dict[str, Array],
    target: Target,
) -> Choice:  # fmt: skip
    kernel = next(k for k in target.kernels if k.name == choice.kernel)
    packing = kernel.pack(weight, problem_of(nodes, n), dict(choice.config), target)
    names = []
    for label, array in packing.arrays.items():
        names.append(f"{n.name}.{index}.{label}")
        consts[names[-1]] = array
    return replace(choice, config=packing.config, packed=tuple(names))

"""assign_layouts: token panels for whole clusters of layers, converted at their borders only.

Nodes that can work on panels and exchange whole tensors form a cluster; a cluster with a weight
matmul over more than a few tokens is stored in panels throughout.
"""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx

from sparsec.ir.attributes import SoftmaxAttrs
from sparsec.ir.dims import Size
from sparsec.ir.graph import Graph, Node, Op, fresh_name, replace, with_nodes
from sparsec.ir.types import PLAIN, Layout, Type
from sparsec.targets.layers import is_linear
from sparsec.targets.target import Target

#: up to this many tokens a layer reads its weights once per token group, row-major (gemv kernels)
FEW_TOKENS = 4


def assign_layouts(graph: Graph, target: Target) -> Graph:
    """Store clusters of layers in token panels."""
    # the kernels of a GPU read rows as they are
    if target.gpu or any(n.type.layout != PLAIN for n in graph.nodes):
        return graph
    nodes = graph.node_map()
    widths = _cluster_widths(graph, nodes, target)
    return _rebuild(graph, nodes, widths) if widths else graph


def panel_width(tokens: Size, lanes: int) -> int:
    """Tokens a panel: four vectors, or fewer where that computes less padding."""
    if not isinstance(tokens, int):
        return 4 * lanes
    # narrow panels cost more per column: fewer accumulators share a weight's load
    costs = {4 * lanes: 1.0, 2 * lanes: 1.15, lanes: 1.5}
    return min(costs, key=lambda width: (-(-tokens // width) * width * costs[width], -width))


def _cluster_widths(graph: Graph, nodes: dict[str, Node], target: Target) -> dict[str, int]:
    links = nx.Graph()
    for n in graph.nodes:
        if _capable(nodes, n):
            links.add_node(n.name)
            links.add_edges_from((n.name, a) for a in _whole_args(nodes, n) if a in links)
    widths: dict[str, int] = {}
    for cluster in nx.connected_components(links):
        layers = [nodes[name] for name in cluster if is_linear(nodes, nodes[name])]
        tokens = [n.type.tokens for n in layers]
        if any(not isinstance(t, int) or t > FEW_TOKENS for t in tokens):
            heaviest = max(layers, key=_work)
            width = panel_width(heaviest.type.tokens, target.lanes)
            widths.update((name, width) for name in cluster)
    return widths


def _work(n: Node) -> tuple[float, str]:
    tokens = n.type.tokens
    return (float(tokens) if isinstance(tokens, int) else float("inf"), n.name)


def _capable(nodes: dict[str, Node], n: Node) -> bool:
    """Whether a node can read and write panels."""
    if n.type.dtype != "float32" or not n.type.shape:
        return False
    if n.op is Op.MATMUL:
        return is_linear(nodes, n)
    if n.op is Op.ELEMENTWISE:
        whole = _whole_args(nodes, n)
        return bool(whole) and all(a in whole or _small(nodes[a].type, n.type) for a in n.args)
    if n.op is Op.SOFTMAX and isinstance(n.attrs, SoftmaxAttrs):
        return n.attrs.axis == len(n.type.shape) - 1
    if n.op is Op.RESHAPE:
        before = nodes[n.args[0]].type
        return bool(before.shape) and before.shape[-1] == n.type.shape[-1]
    return n.op in (Op.LAYER_NORM, Op.ATTENTION)


def _small(value: Type, result: Type) -> bool:
    """One number, or one per feature, broadcast over the tokens."""
    if value.dtype != "float32":
        return False
    return value.elements == 1 or (value.elements == value.shape[-1] == result.shape[-1])


def _whole_args(nodes: dict[str, Node], n: Node) -> tuple[str, ...]:
    """The arguments a node reads as whole tensors, which must share its layout."""
    if n.op is Op.MATMUL:
        extras = [a for a in n.args[2:] if not _small(nodes[a].type, n.type)]
        return (n.args[0], *extras)
    if n.op is Op.ATTENTION:
        return n.args[:3]
    if n.op is Op.ELEMENTWISE:
        same = [a for a in n.args if nodes[a].type.shape == n.type.shape]
        return tuple(a for a in same if nodes[a].type.dtype == "float32")
    return n.args[:1]


def _rebuild(graph: Graph, nodes: dict[str, Node], widths: dict[str, int]) -> Graph:
    built: list[Node] = []
    taken = set(nodes)
    converted: dict[tuple[str, int], str] = {}

    def stored(name: str, panel: int) -> str:
        """``name`` in the wanted layout, converting it once."""
        have = widths.get(name, 0)
        if have == panel:
            return name
        if (name, panel) not in converted:
            label = fresh_name(f"{name}_{'panels' if panel else 'plain'}", taken)
            taken.add(label)
            kind = replace(nodes[name].type, layout=Layout(panel))
            built.append(Node(label, Op.RELAYOUT, (name,), kind, origin=nodes[name].origin))
            converted[name, panel] = label
        return converted[name, panel]

    for n in graph.nodes:
        width = widths.get(n.name, 0)
        whole = _whole_args(nodes, n) if width else ()
        args = tuple(stored(a, width if a in whole else 0) for a in n.args)
        built.append(replace(n, args=args, type=replace(n.type, layout=Layout(width))))
    outputs = tuple(stored(o, 0) for o in graph.outputs)
    return with_nodes(graph, _in_order(built), outputs=outputs)


def _in_order(nodes: Iterable[Node]) -> Iterable[Node]:
    return nodes

"""Move reshapes out of the way of fusing: steps of fuse_elementwise.

Each step makes one change, or returns None where there is none to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsec.ir.dims import Size
from sparsec.ir.graph import Graph, Node, Op, fresh_name, replace
from sparsec.ir.types import PLAIN, Type
from sparsec.passes.fusable import is_column, is_fusable, is_row, replaced


def hoist(graph: Graph) -> Graph | None:
    """A reshape after a weight matmul moves before it."""
    nodes, users = graph.node_map(), graph.users()
    for n in graph.nodes:
        if n.op is Op.RESHAPE and n.type.shape and n.type.layout == PLAIN:
            layer = nodes[n.args[0]]
            alone = len(users[layer.name]) == 1 and layer.name not in graph.outputs
            kept = layer.type.shape[-1:] == n.type.shape[-1:]
            linear = layer.op is Op.MATMUL and is_fusable(graph, nodes, layer)
            if alone and kept and linear and _extras_fit(nodes, layer, n.type):
                return _hoisted(graph, nodes, layer, n)
    return None


def _extras_fit(nodes: dict[str, Node], layer: Node, result: Type) -> bool:
    extras = [nodes[a].type for a in layer.args[2:]]
    return all(e.shape == layer.type.shape or is_row(e, result) for e in extras)


def _hoisted(graph: Graph, nodes: dict[str, Node], layer: Node, reshape: Node) -> Graph:
    views = _Views(nodes)
    inner = nodes[layer.args[1]].type.shape[0]
    args = [views.of(layer.args[0], (*reshape.type.shape[:-1], inner)), layer.args[1]]
    for extra in layer.args[2:]:
        full = nodes[extra].type.shape == layer.type.shape
        args.append(views.of(extra, reshape.type.shape) if full else extra)
    made = replace(layer, name=reshape.name, args=tuple(args), type=reshape.type)
    return replaced(graph, reshape, [*views.made, made])


def sink(graph: Graph) -> Graph | None:
    """A sequence is convolved as an image of height 1: what follows its reshape can work on the image."""
    nodes, users = graph.node_map(), graph.users()
    for n in graph.nodes:
        if n.op is not Op.RESHAPE or nodes[n.args[0]].op is not Op.CONV2D or n.name in graph.outputs:
            continue
        layer, readers = nodes[n.args[0]], users[n.name]
        alone = len(users[layer.name]) == 1 == len(readers) and layer.name not in graph.outputs
        kept = n.type.shape[:2] == layer.type.shape[:2] and is_fusable(graph, nodes, layer)
        if alone and kept and _works_alike(nodes, n, readers[0]):
            return _sunk(graph, nodes, n, readers[0])
    return None


def _works_alike(nodes: dict[str, Node], reshape: Node, user: Node) -> bool:
    """Whether an elementwise node can read the value from before a reshape, and others to match."""
    if user.op is not Op.ELEMENTWISE or user.type != reshape.type:
        return False
    others = [nodes[a].type for a in user.args if a != reshape.name]
    fitting = [o.shape == user.type.shape or is_column(o, user.type) for o in others]
    return all(fitting) and all(o.dtype == "float32" and o.layout == PLAIN for o in others)


def _sunk(graph: Graph, nodes: dict[str, Node], reshape: Node, user: Node) -> Graph:
    views, layer = _Views(nodes), nodes[reshape.args[0]]
    args: list[str] = []
    for arg in user.args:
        shape = nodes[arg].type.shape
        if arg == reshape.name:
            args.append(layer.name)
        elif shape == user.type.shape:
            args.append(views.of(arg, layer.type.shape))
        else:
            args.append(views.of(arg, (1,) if nodes[arg].type.elements == 1 else (layer.type.shape[1], 1, 1)))
    taken = {*nodes, *(n.name for n in views.made)}
    inner = replace(user, name=fresh_name(f"{user.name}_image", taken), args=tuple(args), type=layer.type)
    after = replace(reshape, name=user.name, args=(inner.name,))
    return replaced(graph, user, [*views.made, inner, after])


@dataclass
class _Views:
    """Makes reshape nodes, reusing what a reshape already reads."""

    nodes: dict[str, Node]
    made: list[Node] = field(default_factory=list)

    def of(self, name: str, shape: tuple[Size, ...]) -> str:
        """The value ``name`` in another shape."""
        if self.nodes[name].type.shape == shape:
            return name
        if self.nodes[name].op is Op.RESHAPE:
            return self.of(self.nodes[name].args[0], shape)
        taken = {*self.nodes, *(n.name for n in self.made)}
        view = fresh_name(f"{name}_view", taken)
        self.made.append(Node(view, Op.RESHAPE, (name,), Type(shape, self.nodes[name].type.dtype)))
        return view

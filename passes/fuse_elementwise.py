"""Fuse elementwise nodes into the layers before them, then into each other.

A layer is a matmul by a constant matrix or a convolution by a constant weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

from sparsec.dims import Size
from sparsec.expr import Arg, Call, Expr, substitute, walk
from sparsec.ir import (
    PLAIN,
    ConvAttrs,
    ElementwiseAttrs,
    Graph,
    MatmulAttrs,
    Node,
    Op,
    Type,
    fresh_name,
    replace,
    with_nodes,
)
from sparsec.passes.algebra import renumber, stays_small
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
    for step in (_hoist_reshape, _sink_reshape, _fuse_epilogue, _fuse_pair):
        after = _exhaust(step, graph)
        if after is not graph:
            return fuse_elementwise(after, target)
    return graph


def _exhaust(step: Callable[[Graph], Graph | None], graph: Graph) -> Graph:
    after = step(graph)
    while after is not None:
        graph, after = after, step(after)
    return graph


def _is_layer(graph: Graph, nodes: dict[str, Node], n: Node) -> bool:
    """Whether a node multiplies float32 values by a constant weight and no kernel is chosen yet."""
    if n.op not in (Op.MATMUL, Op.CONV2D) or n.type.dtype != "float32" or n.type.layout != PLAIN or n.choice:
        return False
    w = nodes[n.args[1]]
    return w.op is Op.CONST and (n.op is Op.CONV2D or len(w.type.shape) == 2)


def _is_extra(value: Type, layer: Node) -> bool:
    """Whether an epilogue can read it: one number, one per output feature, or one per result."""
    result = layer.type
    if value.dtype != "float32" or value.layout != result.layout:
        return False
    if value.shape == result.shape:
        return True
    return _is_row(value, result) if layer.op is Op.MATMUL else _is_column(value, result)


def _is_row(value: Type, result: Type) -> bool:
    """One number, or one per output feature."""
    if len(value.shape) > len(result.shape):
        return False
    single = value.elements == 1
    return single or (value.shape[-1] == result.shape[-1] and all(s == 1 for s in value.shape[:-1]))


def _is_column(value: Type, result: Type) -> bool:
    """One number, or one per output channel, the second axis of the result."""
    missing = len(result.shape) - len(value.shape)
    if missing < 0:
        return False
    shape = (*(1,) * missing, *value.shape)
    others = (*shape[:1], *shape[2:])
    return value.elements == 1 or (shape[1] == result.shape[1] and all(s == 1 for s in others))


def _hoist_reshape(graph: Graph) -> Graph | None:
    nodes, users = graph.node_map(), graph.users()
    for n in graph.nodes:
        if n.op is Op.RESHAPE and n.type.shape and n.type.layout == PLAIN:
            layer = nodes[n.args[0]]
            alone = len(users[layer.name]) == 1 and layer.name not in graph.outputs
            kept = layer.type.shape[-1:] == n.type.shape[-1:]
            linear = layer.op is Op.MATMUL and _is_layer(graph, nodes, layer)
            if alone and kept and linear and _extras_fit(nodes, layer, n.type):
                return _hoisted(graph, nodes, layer, n)
    return None


def _extras_fit(nodes: dict[str, Node], layer: Node, result: Type) -> bool:
    extras = [nodes[a].type for a in layer.args[2:]]
    return all(e.shape == layer.type.shape or _is_row(e, result) for e in extras)


def _hoisted(graph: Graph, nodes: dict[str, Node], layer: Node, reshape: Node) -> Graph:
    views = _Views(nodes)
    inner = nodes[layer.args[1]].type.shape[0]
    args = [views.of(layer.args[0], (*reshape.type.shape[:-1], inner)), layer.args[1]]
    for extra in layer.args[2:]:
        full = nodes[extra].type.shape == layer.type.shape
        args.append(views.of(extra, reshape.type.shape) if full else extra)
    made = replace(layer, name=reshape.name, args=tuple(args), type=reshape.type)
    return _insert(graph, reshape, [*views.made, made])


def _sink_reshape(graph: Graph) -> Graph | None:
    """A sequence is convolved as an image of height 1: what follows its reshape can work on the image."""
    nodes, users = graph.node_map(), graph.users()
    for n in graph.nodes:
        if n.op is not Op.RESHAPE or nodes[n.args[0]].op is not Op.CONV2D or n.name in graph.outputs:
            continue
        layer, readers = nodes[n.args[0]], users[n.name]
        alone = len(users[layer.name]) == 1 == len(readers) and layer.name not in graph.outputs
        kept = n.type.shape[:2] == layer.type.shape[:2] and _is_layer(graph, nodes, layer)
        if alone and kept and _works_alike(nodes, n, readers[0]):
            return _sunk(graph, nodes, n, readers[0])
    return None


def _works_alike(nodes: dict[str, Node], reshape: Node, user: Node) -> bool:
    """Whether an elementwise node can read the value from before a reshape, and others to match."""
    if user.op is not Op.ELEMENTWISE or user.type != reshape.type:
        return False
    others = [nodes[a].type for a in user.args if a != reshape.name]
    fitting = [o.shape == user.type.shape or _is_column(o, user.type) for o in others]
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
    return _insert(graph, user, [*views.made, inner, after])


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


def _insert(graph: Graph, place: Node, made: Iterable[Node]) -> Graph:
    """The graph with ``place`` replaced by other nodes."""
    listed = list(made)
    return with_nodes(graph, [new for n in graph.nodes for new in (listed if n is place else [n])])


def _fuse_epilogue(graph: Graph) -> Graph | None:
    nodes, users = graph.node_map(), graph.users()
    for position, n in enumerate(graph.nodes):
        if _is_layer(graph, nodes, n) and n.name not in graph.outputs and _starts_region(n, users):
            region = _Region(graph, nodes, users, n)
            region.grow(graph.nodes[position + 1 :])
            if region.exit is not None:
                return _insert(graph, region.exit, [region.fused()])
    return None


def _starts_region(layer: Node, users: dict[str, list[Node]]) -> bool:
    found = users[layer.name]
    return bool(found) and all(u.op is Op.ELEMENTWISE for u in found)


@dataclass
class _Region:
    """Elementwise nodes fed by one layer, grown until every path out leads through one exit.

    ``values`` gives what each member computes over the product, Arg(0), and ``extras``;
    ``depends`` are all values computed from the product, members or not: none of them may be
    an extra, or the fused node would wait for itself.
    """

    graph: Graph
    nodes: dict[str, Node]
    users: dict[str, list[Node]]
    layer: Node
    values: dict[str, Expr] = field(default_factory=dict)
    extras: list[str] = field(default_factory=list)
    depends: set[str] = field(default_factory=set)
    exit: Node | None = None

    def grow(self, later: Iterable[Node]) -> None:
        """Walk the nodes after the layer, in order."""
        epilogue = cast(MatmulAttrs | ConvAttrs, self.layer.attrs).epilogue
        self.values[self.layer.name] = Arg(0) if epilogue is None else epilogue
        self.extras = list(self.layer.args[2:])
        self.depends = {self.layer.name}
        for n in later:
            if self.depends.isdisjoint(n.args):
                continue
            self.depends.add(n.name)
            if self._accepts(n):
                self._take(n)
            elif not self.values.keys().isdisjoint(n.args):
                return  # a member is read outside: no later exit can be the only one

    def fused(self) -> Node:
        """The layer with the region up to the exit as its epilogue, under the exit's name."""
        assert self.exit is not None
        names = (self.layer.name, *self.extras)
        epilogue, kept = renumber(self.values[self.exit.name], names, 1)
        args = (*self.layer.args[:2], *kept[1:])
        attrs = replace(cast(MatmulAttrs | ConvAttrs, self.layer.attrs), epilogue=epilogue)
        return replace(self.layer, name=self.exit.name, args=args, attrs=attrs)

    def _accepts(self, n: Node) -> bool:
        if n.op is not Op.ELEMENTWISE or n.type != self.layer.type:
            return False
        outside = [a for a in n.args if a not in self.values]
        known = all(a not in self.depends and _is_extra(self.nodes[a].type, self.layer) for a in outside)
        return known and stays_small(self._expression(n))

    def _expression(self, n: Node) -> Expr:
        """What a node computes, with arguments from outside numbered as they would be."""
        extras = [*self.extras, *(a for a in n.args if a not in self.values and a not in self.extras)]
        operands = [self.values.get(a) or Arg(1 + extras.index(a)) for a in n.args]
        return substitute(cast(ElementwiseAttrs, n.attrs).expr, operands)

    def _take(self, n: Node) -> None:
        found = self._expression(n)
        self.extras += dict.fromkeys(a for a in n.args if a not in self.values and a not in self.extras)
        self.values[n.name] = found
        if all(self._is_inside(member) for member in self.values if member != n.name):
            self.exit = n

    def _is_inside(self, member: str) -> bool:
        return member not in self.graph.outputs and all(u.name in self.values for u in self.users[member])


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

"""The intermediate representation: the grammar of a model on one screen.

A :class:`Graph` is a tuple of frozen nodes in topological order.  A node names its arguments;
constants live beside the nodes in ``Graph.consts``.  Passes never change a graph, they build
another.  What a graph means is defined by ``sparsec.reference.evaluate``.

Operators (shapes by NumPy's rules):

=============  ===================================  ==============================================
op             args                                 meaning
=============  ===================================  ==============================================
input, const   none                                 a run-time input; an array of ``Graph.consts``
matmul         x (..., K), w (..., K, M), extras    ``epilogue(x @ w, *extras)``; a 2-D const w is
                                                    the weight of a linear layer
conv2d         x (N, C, H, W), w (M, C/groups, R,   ``epilogue(conv(x, w), *extras)``: cross-correlation
               S), extras                           with zero padding; extras broadcast to the result
pool           x (N, C, H, W)                       max or mean over windows
resize         x (N, C, H, W)                       H and W resampled: nearest or linear
attention      q, k, v (B, L, H*D) [, mask]         ``softmax(q_h k_h^T * scale + mask) v_h`` per head;
                                                    mask broadcasts to (B, H, Lq, Lk)
elementwise    any, broadcast together              the attrs' expression
recurrent      x (T, B, G*H), r (H, G*H), h (B or   one LSTM, GRU or RNN layer over T steps from state h
               1, H), then what attrs say           (see RecurrentAttrs); items: y (T, B, H), last h, last c
layer_norm     x, gamma, beta (features,)           over the last axis; epilogue-free
softmax        x                                    over ``axis`` (log_softmax: ``log=True``)
reduce         x                                    sum, mean, max, min over ``axes``
reshape        x                                    same elements, row-major, ``type.shape``
transpose      x                                    axes permuted
concat         any, equal but for one axis          joined along ``axis``
slice          x                                    ``x[begin:end:step]`` on every axis
pad            x                                    ``value`` around x
relayout       x                                    same value, another storage layout
tir            any                                  an operator carried as TIR (see TirAttrs)
item           a tir or recurrent node              its output number ``index``
=============  ===================================  ==============================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sparsec.ir.attributes import Attrs, ConstAttrs, RecurrentAttrs, TirAttrs
from sparsec.ir.types import Type

if TYPE_CHECKING:
    import numpy as np

    from sparsec.ir.types import Array


class Op(StrEnum):
    """The kinds of node."""

    INPUT = "input"
    CONST = "const"
    MATMUL = "matmul"
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    ELEMENTWISE = "elementwise"
    LAYER_NORM = "layer_norm"
    SOFTMAX = "softmax"
    REDUCE = "reduce"
    RESHAPE = "reshape"
    TRANSPOSE = "transpose"
    CONV2D = "conv2d"
    POOL = "pool"
    RESIZE = "resize"
    CONCAT = "concat"
    SLICE = "slice"
    PAD = "pad"
    RELAYOUT = "relayout"
    TIR = "tir"
    ITEM = "item"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a weight: kernel, its format, predicted time, packed size, time if measured."""

    kernel: str
    format: str
    microseconds: float
    nbytes: int
    note: str = ""
    measured: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs a node for ``columns`` (first, last or None for no end).

    ``config`` are the kernel's settings as sorted pairs; ``packed`` names the constants the
    kernel reads; ``reason`` is the sentence of the report; ``candidates`` best first.
    """

    kernel: str
    format: str
    config: tuple[tuple[str, int], ...] = ()
    packed: tuple[str, ...] = ()
    columns: tuple[int, int | None] = (1, None)
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One operation and the value it makes; ``name`` is the value's name."""

    name: str
    op: Op
    args: tuple[str, ...]
    type: Type
    attrs: Attrs = None
    choice: tuple[Choice, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """``nodes`` in topological order, ``outputs`` by node name, ``consts`` by const node name.

    ``output_names`` are the names users see, parallel to ``outputs``.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    consts: Mapping[str, Array] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The input nodes, in the order users give them."""
        return tuple(n for n in self.nodes if n.op is Op.INPUT)

    def node_map(self) -> dict[str, Node]:
        """Nodes by name."""
        return {n.name: n for n in self.nodes}

    def users(self) -> dict[str, list[Node]]:
        """For each value, the nodes that read it (graph outputs not counted)."""
        found: dict[str, list[Node]] = {n.name: [] for n in self.nodes}
        for n in self.nodes:
            for arg in dict.fromkeys(n.args):
                found[arg].append(n)
        return found

    def same_as(self, other: Graph) -> bool:
        """Whether both graphs are equal, constants compared by identity, then by bytes."""
        heads = (self.nodes, self.outputs, self.output_names)
        if heads != (other.nodes, other.outputs, other.output_names):
            return False
        if self.consts.keys() != other.consts.keys():
            return False
        return all(_same_array(a, other.consts[k]) for k, a in self.consts.items())


def with_nodes(
    graph: Graph,
    nodes: Iterable[Node],
    consts: Mapping[str, Array] | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Graph:
    """A graph with other nodes, dead nodes and unused constants dropped, inputs all kept."""
    kept_outputs = graph.outputs if outputs is None else outputs
    alive = _live(tuple(nodes), kept_outputs)
    pool = graph.consts if consts is None else consts
    named = {name for n in alive for c in n.choice for name in c.packed}
    named |= {n.name for n in alive if n.op is Op.CONST}
    return Graph(alive, kept_outputs, graph.output_names, {k: v for k, v in pool.items() if k in named})


def _live(nodes: tuple[Node, ...], outputs: tuple[str, ...]) -> tuple[Node, ...]:
    wanted = set(outputs)
    for n in reversed(nodes):
        if n.name in wanted or n.op is Op.INPUT:
            wanted.update(n.args)
            wanted.add(n.name)
    return tuple(n for n in nodes if n.name in wanted)


def _same_array(a: Array, b: Array) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def fresh_name(stem: str, taken: Iterable[str]) -> str:
    """``stem``, or ``stem_1``, ``stem_2`` ... whichever is free."""
    used = taken if isinstance(taken, set | dict) else set(taken)
    if stem not in used:
        return stem
    count = 1
    while f"{stem}_{count}" in used:
        count += 1
    return f"{stem}_{count}"


def const_node(name: str, array: np.ndarray[Any, Any]) -> Node:
    """The node of a constant array."""
    return Node(name, Op.CONST, (), Type(tuple(array.shape), str(array.dtype)), ConstAttrs())


def outputs_of(n: Node) -> tuple[Type, ...]:
    """The types of all a node makes, its own first; several are read through item nodes."""
    if isinstance(n.attrs, TirAttrs):
        return n.attrs.outputs
    if isinstance(n.attrs, RecurrentAttrs):
        state = replace(n.type, shape=n.type.shape[1:])
        return (n.type, state, state) if n.attrs.kind == "lstm" else (n.type, state)
    return (n.type,)

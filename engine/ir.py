"""The intermediate representation: the grammar of a model on one screen.

A :class:`Graph` is a tuple of frozen nodes in topological order.  A node names its arguments;
constants live beside the nodes in ``Graph.consts``.  Passes never change a graph, they build
another.  What a graph means is defined by ``sparsec.reference``.

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

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from sparsec.dims import Dim, Size, product
from sparsec.errors import IRError
from sparsec.expr import Expr
from sparsec.verify_windows import window_problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparsec.pattern import Pattern

    Array: TypeAlias = NDArray[Any]


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
class Layout:
    """How a tensor is stored.

    ``panel == 0``: plain row-major.  ``panel == P``: *token panels*: the last axis is the
    features, all others together are T tokens, stored as ``[ceil(T/P)][features][P]``; lanes
    beyond T hold arbitrary finite or non-finite garbage that no reader may let escape.
    """

    panel: int = 0

    def __str__(self) -> str:
        return f"panels({self.panel})" if self.panel else "plain"


PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class Type:
    """Shape, NumPy dtype name and storage layout of a value."""

    shape: tuple[Size, ...]
    dtype: str = "float32"
    layout: Layout = PLAIN

    @property
    def elements(self) -> Size:
        """Number of elements, without padding."""
        return product(self.shape)

    @property
    def tokens(self) -> Size:
        """Product of all axes but the last."""
        return product(self.shape[:-1])

    def __str__(self) -> str:
        short = self.dtype.replace("float", "f").replace("uint", "u").replace("int", "i")
        where = "" if self.layout == PLAIN else f" {self.layout}"
        return f"{short}[{', '.join(map(str, self.shape))}]{where}"


@dataclass(frozen=True, slots=True)
class ConstAttrs:
    """``pattern``: what the zeros look like, once infer_patterns has run."""

    pattern: Pattern | None = None


@dataclass(frozen=True, slots=True)
class MatmulAttrs:
    """``epilogue`` reads the product as Arg(0) and the extra arguments as Arg(1) onward.

    ``active``: the share of x's features that were not zero in every token of a calibration
    sample, on average; None where there was none.
    """

    epilogue: Expr | None = None
    active: float | None = None


@dataclass(frozen=True, slots=True)
class AttentionAttrs:
    """``heads``, and the ``scale`` that multiplies the scores."""

    heads: int
    scale: float


@dataclass(frozen=True, slots=True)
class ElementwiseAttrs:
    """The expression over the node's arguments."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class LayerNormAttrs:
    """``epsilon`` is added to the variance; without ``centred`` to the mean square, and there is no beta."""

    epsilon: float
    centred: bool = True


@dataclass(frozen=True, slots=True)
class SoftmaxAttrs:
    """``axis`` is non-negative; ``log`` asks for log-softmax."""

    axis: int
    log: bool = False


@dataclass(frozen=True, slots=True)
class ReduceAttrs:
    """``kind`` is sum, mean, max or min; ``axes`` are non-negative and sorted."""

    kind: str
    axes: tuple[int, ...]
    keepdims: bool


@dataclass(frozen=True, slots=True)
class TransposeAttrs:
    """``axes`` as NumPy's transpose takes them."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConvAttrs:
    """``padding`` is (top, left, bottom, right); pairs are (vertical, horizontal).

    ``epilogue`` reads the convolution as Arg(0) and the extra arguments as Arg(1) onward.
    """

    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    epilogue: Expr | None = None


@dataclass(frozen=True, slots=True)
class PoolAttrs:
    """``kind`` is max or mean; ``padding`` (top, left, bottom, right) may be exceeded at the end.

    Whatever lies outside x never wins a max; a mean divides by the elements inside x, or with
    ``count_padding`` by those inside x and its declared padding.
    """

    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    count_padding: bool = False


@dataclass(frozen=True, slots=True)
class ResizeAttrs:
    """``method`` is nearest or linear; the other two are ONNX Resize's words.

    ``coordinates``: half_pixel, pytorch_half_pixel, align_corners or asymmetric;
    ``rounding`` (nearest): round_prefer_floor, round_prefer_ceil, floor or ceil.
    """

    method: str
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"


@dataclass(frozen=True, slots=True)
class ConcatAttrs:
    """``axis`` is non-negative."""

    axis: int


@dataclass(frozen=True, slots=True)
class SliceAttrs:
    """``begin`` and ``step`` per axis, non-negative and positive; the type's shape says where it ends."""

    begin: tuple[int, ...]
    step: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PadAttrs:
    """``before`` elements of ``value`` on each axis, and as many after as the type's shape needs."""

    before: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class RecurrentAttrs:
    """``kind`` is lstm, gru or rnn: 4, 3 or 1 gates of H columns each, in ONNX's order.

    x holds the products of all inputs with the input weights, and the biases.  An lstm reads (and
    makes) a cell state c, shaped as h, after h.  ``reverse`` runs from the last step to the first; y keeps
    the order of x.  A gru with ``reset_after`` resets the product with r rather than its operand, and
    reads the bias (H,) of that product's last gate after h (ONNX: linear_before_reset).
    """

    kind: str
    reverse: bool = False
    reset_after: bool = False


@dataclass(frozen=True, slots=True)
class TirAttrs:
    """An operator the IR has no word for, as one self-contained TIR function.

    ``source`` is the operator's name in Relax; ``module`` the TVM JSON of an IRModule with one
    PrimFunc called ``name`` taking the arguments and then the outputs as tensors;
    ``outputs`` the output types (the node's own type is the first).
    """

    source: str
    name: str
    module: str
    outputs: tuple[Type, ...]


@dataclass(frozen=True, slots=True)
class ItemAttrs:
    """Which output of a node that has several."""

    index: int


Attrs: TypeAlias = (
    ConstAttrs | MatmulAttrs | AttentionAttrs | ElementwiseAttrs | LayerNormAttrs | SoftmaxAttrs
    | ReduceAttrs | TransposeAttrs | ConvAttrs | PoolAttrs | ResizeAttrs | ConcatAttrs | SliceAttrs
    | PadAttrs | RecurrentAttrs | TirAttrs | ItemAttrs | None
)  # fmt: skip


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


def panels(size: Size, width: int) -> Size | None:
    """``ceil(size / width)`` when it is a known number, else None."""
    return -(-size // width) if isinstance(size, int) else None


def verify(graph: Graph) -> Graph:
    """Check the rules every pass must keep; returns the graph.

    Raises:
        IRError: names the node and the rule.
    """
    seen: dict[str, Type] = {}
    for n in graph.nodes:
        if n.name in seen:
            raise IRError(f"{n.name}: two nodes have this name")
        missing = [a for a in n.args if a not in seen]
        if missing:
            raise IRError(f"{n.name} ({n.op}): reads {missing[0]}, which no earlier node makes")
        _verify_node(graph, n)
        if problem := window_problem(n, [seen[a] for a in n.args]):
            raise IRError(f"{n.name} ({n.op}): {problem}")
        seen[n.name] = n.type
    _verify_outputs(graph, seen.keys())
    return graph


_ATTRS: Mapping[Op, type] = {
    Op.CONST: ConstAttrs, Op.MATMUL: MatmulAttrs, Op.ATTENTION: AttentionAttrs,
    Op.ELEMENTWISE: ElementwiseAttrs, Op.LAYER_NORM: LayerNormAttrs, Op.SOFTMAX: SoftmaxAttrs,
    Op.REDUCE: ReduceAttrs, Op.TRANSPOSE: TransposeAttrs, Op.CONV2D: ConvAttrs, Op.POOL: PoolAttrs,
    Op.RESIZE: ResizeAttrs, Op.CONCAT: ConcatAttrs, Op.SLICE: SliceAttrs, Op.PAD: PadAttrs,
    Op.RECURRENT: RecurrentAttrs, Op.TIR: TirAttrs, Op.ITEM: ItemAttrs,
}  # fmt: skip


def _verify_node(graph: Graph, n: Node) -> None:
    wanted = _ATTRS.get(n.op, type(None))
    if not isinstance(n.attrs, wanted):
        raise IRError(f"{n.name} ({n.op}): attrs must be {wanted.__name__}, not {type(n.attrs).__name__}")
    if n.op is Op.CONST:
        _verify_const(graph, n)
    if any(isinstance(d, int) and d < 0 for d in n.type.shape):
        raise IRError(f"{n.name} ({n.op}): negative size in {n.type}")
    if n.type.layout.panel and (n.type.dtype != "float32" or not n.type.shape):
        raise IRError(f"{n.name} ({n.op}): only float32 tensors can be stored in panels, not {n.type}")
    absent = [c for choice in n.choice for c in choice.packed if c not in graph.consts]
    if absent:
        raise IRError(f"{n.name} ({n.op}): packed constant {absent[0]} is not in the graph")


def _verify_const(graph: Graph, n: Node) -> None:
    array = graph.consts.get(n.name)
    if array is None:
        raise IRError(f"{n.name} (const): no array of this name")
    if tuple(array.shape) != n.type.shape or str(array.dtype) != n.type.dtype:
        raise IRError(f"{n.name} (const): array {array.dtype}{array.shape} but type {n.type}")


def _verify_outputs(graph: Graph, seen: Collection[str]) -> None:
    if len(graph.outputs) != len(graph.output_names):
        raise IRError("outputs and output_names differ in length")
    for name in graph.outputs:
        if name not in seen:
            raise IRError(f"output {name}: no node makes it")


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


def is_dynamic(sizes: Iterable[Size]) -> bool:
    """Whether any of the sizes is symbolic."""
    return any(isinstance(s, Dim) for s in sizes)

"""verify: the rules that every pass must keep."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sparsec.errors import IRError
from sparsec.ir.attributes import (
    AttentionAttrs,
    ConcatAttrs,
    ConstAttrs,
    ConvAttrs,
    ElementwiseAttrs,
    ItemAttrs,
    LayerNormAttrs,
    MatmulAttrs,
    PadAttrs,
    PoolAttrs,
    RecurrentAttrs,
    ReduceAttrs,
    ResizeAttrs,
    SliceAttrs,
    SoftmaxAttrs,
    TirAttrs,
    TransposeAttrs,
)
from sparsec.ir.graph import Graph, Node, Op
from sparsec.ir.types import Type
from sparsec.ir.verify_windows import window_problem

_ATTRS: Mapping[Op, type] = {
    Op.CONST: ConstAttrs, Op.MATMUL: MatmulAttrs, Op.ATTENTION: AttentionAttrs,
    Op.ELEMENTWISE: ElementwiseAttrs, Op.LAYER_NORM: LayerNormAttrs, Op.SOFTMAX: SoftmaxAttrs,
    Op.REDUCE: ReduceAttrs, Op.TRANSPOSE: TransposeAttrs, Op.CONV2D: ConvAttrs, Op.POOL: PoolAttrs,
    Op.RESIZE: ResizeAttrs, Op.CONCAT: ConcatAttrs, Op.SLICE: SliceAttrs, Op.PAD: PadAttrs,
    Op.RECURRENT: RecurrentAttrs, Op.TIR: TirAttrs, Op.ITEM: ItemAttrs,
}  # fmt: skip


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

"""Relax's structural operators (products, normalisations, reductions, axes) as nodes of ours.

A rule gets the converter, the call and the name for its node; it returns None for the cases the
IR has no word for, which Relax then lowers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsec.frontends.relax_emit import all_float32, sized
from sparsec.frontends.relax_moves import MOVES
from sparsec.frontends.relax_norms import NORMS
from sparsec.frontends.relax_recurrent import recurrent
from sparsec.frontends.relax_transposed import TRANSPOSED
from sparsec.frontends.relax_types import type_of
from sparsec.frontends.relax_windows import WINDOWS
from sparsec.ir.attributes import (
    Attrs,
    ElementwiseAttrs,
    LayerNormAttrs,
    MatmulAttrs,
    ReduceAttrs,
    SoftmaxAttrs,
    TransposeAttrs,
)
from sparsec.ir.expr import Arg, Scalar, call
from sparsec.ir.graph import Op
from sparsec.ir.types import Type

if TYPE_CHECKING:
    from sparsec.frontends.from_relax import Converter
    from sparsec.frontends.relax_emit import Rule
    from sparsec.frontends.relax_values import Value


def _rank(expr: Any) -> int:
    return len(expr.ty.shape.values)


def _node(
    converter: Converter, relax_call: Any, name: str, op: Op, args: Sequence[str], attrs: Attrs = None
) -> str:
    origin = converter.origin[1] or relax_call.op.name
    return converter.building.add(name, op, args, converter.type(relax_call.ty), attrs, origin)


def _matmul(converter: Converter, relax_call: Any, name: str) -> Value:
    x, w = relax_call.args
    if not all_float32(relax_call) or _rank(x) < 2 or _rank(w) < 2:
        return None
    args = (converter.node(x), converter.node(w))
    return _node(converter, relax_call, name, Op.MATMUL, args, MatmulAttrs())


def _reshape(converter: Converter, relax_call: Any, name: str) -> Value:
    x = relax_call.args[0]
    source = converter.node(x)
    if type_of(x.ty) == type_of(relax_call.ty):
        return source
    return _node(converter, relax_call, name, Op.RESHAPE, (source,))


def _transpose(converter: Converter, relax_call: Any, name: str) -> Value:
    x = relax_call.args[0]
    if not all_float32(relax_call):
        return None
    rank = _rank(x)
    given = relax_call.attrs.axes
    axes = tuple(int(a) % rank for a in given) if given is not None else tuple(range(rank))[::-1]
    if axes == tuple(range(rank)):
        return converter.node(x)
    return _node(converter, relax_call, name, Op.TRANSPOSE, (converter.node(x),), TransposeAttrs(axes))


def _layer_norm(converter: Converter, relax_call: Any, name: str) -> Value:
    attrs, rank = relax_call.attrs, _rank(relax_call.args[0])
    axes = [int(a) % rank for a in attrs.axes]
    if not all_float32(relax_call) or axes != [rank - 1] or not (attrs.center and attrs.scale):
        return None
    args = [converter.node(a) for a in relax_call.args]
    return _node(converter, relax_call, name, Op.LAYER_NORM, args, LayerNormAttrs(float(attrs.epsilon)))


def _softmax(log: bool) -> Rule:
    def rule(converter: Converter, relax_call: Any, name: str) -> Value:
        x = relax_call.args[0]
        if not all_float32(relax_call):
            return None
        attrs = SoftmaxAttrs(int(relax_call.attrs.axis) % _rank(x), log)
        return _node(converter, relax_call, name, Op.SOFTMAX, (converter.node(x),), attrs)

    return rule


def _reduce(kind: str) -> Rule:
    def rule(converter: Converter, relax_call: Any, name: str) -> Value:
        x = relax_call.args[0]
        rank = _rank(x)
        if not all_float32(relax_call) or rank == 0:
            return None
        given = relax_call.attrs.axis
        axes = tuple(sorted({int(a) % rank for a in given})) if given is not None else tuple(range(rank))
        if not axes:
            return converter.node(x)
        attrs = ReduceAttrs(kind, axes, bool(relax_call.attrs.keepdims))
        return _node(converter, relax_call, name, Op.REDUCE, (converter.node(x),), attrs)

    return rule


def _identity(converter: Converter, relax_call: Any, name: str) -> Value:
    return converter.value(relax_call.args[0])


def _dropout(converter: Converter, relax_call: Any, name: str) -> Value:
    value = converter.value(relax_call.args[0])
    return (value, None)


def _attention(converter: Converter, relax_call: Any, name: str) -> Value:
    """``softmax(q k^T * scale + bias) v`` of tensors (batch, tokens, heads, size), spelled out."""
    query, key = relax_call.args[:2]
    attrs = relax_call.attrs
    if not all_float32(relax_call) or attrs.causal_mask is not None or attrs.window_size is not None:
        return None
    if type_of(query.ty).shape[2] != type_of(key.ty).shape[2]:
        return None
    return _Attention(converter, relax_call, name).emit()


class _Attention:
    """The nodes of one attention call."""

    def __init__(self, converter: Converter, relax_call: Any, name: str) -> None:
        self.converter, self.call, self.name = converter, relax_call, name
        self.origin = converter.origin[1] or relax_call.op.name

    def emit(self) -> str:
        converter, (query, key, value) = self.converter, self.call.args[:3]
        batch, rows, heads, size = converter.type(query.ty).shape
        columns = converter.type(key.ty).shape[1]
        width = converter.type(value.ty).shape[3]
        q = self._add(
            "q", Op.TRANSPOSE, (converter.node(query),), (batch, heads, rows, size), _axes(0, 2, 1, 3)
        )
        k = self._add(
            "k", Op.TRANSPOSE, (converter.node(key),), (batch, heads, size, columns), _axes(0, 2, 3, 1)
        )
        v = self._add(
            "v", Op.TRANSPOSE, (converter.node(value),), (batch, heads, columns, width), _axes(0, 2, 1, 3)
        )
        scores = (batch, heads, rows, columns)
        product = self._add("scores", Op.MATMUL, (q, k), scores, MatmulAttrs())
        scaled = self._add("scaled", Op.ELEMENTWISE, (product, *self._bias()), scores, self._scaled(size))
        weights = self._add("weights", Op.SOFTMAX, (scaled,), scores, SoftmaxAttrs(3))
        mixed = self._add("mixed", Op.MATMUL, (weights, v), (batch, heads, rows, width), MatmulAttrs())
        shape = (batch, rows, heads, width)
        return self.converter.building.add(
            self.name, Op.TRANSPOSE, (mixed,), Type(shape), _axes(0, 2, 1, 3), self.origin
        )

    def _add(self, part: str, op: Op, args: Sequence[str], shape: tuple[Any, ...], attrs: Attrs) -> str:
        return self.converter.building.add(f"{self.name}_{part}", op, args, Type(shape), attrs, self.origin)

    def _bias(self) -> tuple[str, ...]:
        return tuple(self.converter.node(a) for a in self.call.args[3:])

    def _scaled(self, size: Any) -> ElementwiseAttrs:
        given = self.call.attrs.scale
        factor = float(given.value if hasattr(given, "value") else given) if given is not None else size**-0.5
        scaled = call("mul", Arg(0), Scalar(factor))
        return ElementwiseAttrs(call("add", scaled, Arg(1)) if len(self.call.args) > 3 else scaled)


def _axes(*axes: int) -> TransposeAttrs:
    return TransposeAttrs(axes)


STRUCTURE: Mapping[str, Rule] = {
    "relax.matmul": _matmul,
    "relax.reshape": _reshape,
    "relax.flatten": _reshape,
    "relax.nn.batch_flatten": _reshape,
    "relax.squeeze": _reshape,
    "relax.expand_dims": _reshape,
    "relax.permute_dims": _transpose,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.softmax": _softmax(log=False),
    "relax.nn.log_softmax": _softmax(log=True),
    "relax.sum": _reduce("sum"),
    "relax.mean": _reduce("mean"),
    "relax.max": _reduce("max"),
    "relax.min": _reduce("min"),
    "relax.nn.attention": _attention,
    "relax.nn.attention_bias": _attention,
    "relax.nn.dropout": _dropout,
    "relax.stop_lift_params": _identity,
    "relax.wrap_param": _identity,
    "relax.call_dps_packed": recurrent,
    **{name: sized(rule) for name, rule in (WINDOWS | TRANSPOSED | MOVES | NORMS).items()},
}

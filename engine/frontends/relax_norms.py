"""Relax's statistics and the normalisations made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsec.frontends.relax_emit import Emitter, all_float32, ints
from sparsec.ir.attributes import LayerNormAttrs, ReduceAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.expr import Arg, call
from sparsec.ir.graph import Op

if TYPE_CHECKING:
    from sparsec.frontends.from_relax import Converter
    from sparsec.frontends.relax_emit import Rule
    from sparsec.frontends.relax_values import Value


def _variance(converter: Converter, relax_call: Any, name: str) -> Value:
    """The mean of the squared differences from the mean."""
    if not all_float32(relax_call):
        return None
    e, x = Emitter(converter, relax_call, name), converter.node(relax_call.args[0])
    shape, given = e.shape(x), relax_call.attrs.axis
    axes = tuple(sorted({a % len(shape) for a in ints(given)} if given is not None else range(len(shape))))
    centred = call("sub", Arg(0), Arg(1))
    squared = e.elementwise(call("mul", centred, centred), (x, e.mean(x, axes)), shape)
    return e.result(Op.REDUCE, (squared,), ReduceAttrs("mean", axes, bool(relax_call.attrs.keepdims)))


def _instance_norm(converter: Converter, relax_call: Any, name: str) -> Value:
    x = relax_call.args[0]
    channels = converter.type(x.ty).shape[1]
    return _channel_norm(converter, relax_call, name, channels)


def _group_norm(converter: Converter, relax_call: Any, name: str) -> Value:
    return _channel_norm(converter, relax_call, name, int(relax_call.attrs.num_groups))


def _channel_norm(converter: Converter, relax_call: Any, name: str, groups: Size) -> Value:
    """Every group of neighbouring channels becomes one row of a layer norm; then per-channel scale."""
    attrs = relax_call.attrs
    shape = converter.type(relax_call.args[0].ty).shape
    rank = len(shape)
    axes = sorted(a % rank for a in ints(attrs.axes))
    centred = bool(getattr(attrs, "center", True)) and bool(getattr(attrs, "scale", True))
    axes = axes[1:] if shape[0] == 1 and axes[:1] == [0] else axes
    usual = int(attrs.channel_axis) % rank == 1 and axes == list(range(2, rank))
    if not all_float32(relax_call) or not usual or not centred or not _divides(groups, shape):
        return None
    e = Emitter(converter, relax_call, name)
    x, gamma, beta = (converter.node(a) for a in relax_call.args)
    width = int(str(product(shape[1:]))) // int(str(groups))
    ones, zeros = (converter.building.add_literal(np.full(width, v, np.float32)) for v in (1, 0))
    rows = e.reshape(x, (shape[0] * groups, width))
    normal = e.part(
        "rows", Op.LAYER_NORM, (rows, ones, zeros), e.shape(rows), LayerNormAttrs(float(attrs.epsilon))
    )
    column = (shape[1], *(1,) * (rank - 2))
    scaled = call("add", call("mul", Arg(0), Arg(1)), Arg(2))
    args = (e.reshape(normal, shape), e.reshape(gamma, column), e.reshape(beta, column))
    return e.elementwise(scaled, args, shape)


def _divides(groups: Size, shape: Sequence[Size]) -> bool:
    known = isinstance(groups, int) and all(isinstance(s, int) for s in shape[1:])
    return known and int(str(shape[1])) % int(str(groups)) == 0


NORMS: dict[str, Rule] = {
    "relax.variance": _variance,
    "relax.nn.instance_norm": _instance_norm,
    "relax.nn.group_norm": _group_norm,
}

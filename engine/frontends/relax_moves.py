"""Relax's joins, cuts and pads as nodes of ours, for float32 tensors and constant places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import ir as tvm_ir
from tvm import relax

from sparsec.frontends.relax_calls import is_tensor
from sparsec.frontends.relax_emit import Emitter, all_float32, ints
from sparsec.ir.attributes import ConcatAttrs, PadAttrs, SliceAttrs
from sparsec.ir.dims import Size
from sparsec.ir.graph import Op

if TYPE_CHECKING:
    from sparsec.frontends.from_relax import Converter
    from sparsec.frontends.relax_emit import Rule
    from sparsec.frontends.relax_values import Value

#: joins of more parts than this are left to Relax
_MOST_COPIES = 64


def _parts(relax_call: Any) -> list[Any]:
    """The tensors of a join that are written out as a tuple; none if one is not float32."""
    given = relax_call.args[0]
    found = list(given.fields) if isinstance(given, relax.Tuple) else []
    return found if all(is_tensor(f.ty, "float32") for f in found) else []


def _concat(converter: Converter, relax_call: Any, name: str) -> Value:
    parts = [converter.node(p) for p in _parts(relax_call)]
    if not parts or relax_call.attrs.axis is None:
        return None
    e = Emitter(converter, relax_call, name)
    axis = int(relax_call.attrs.axis) % len(e.shape(parts[0]))
    return parts[0] if len(parts) == 1 else e.result(Op.CONCAT, parts, ConcatAttrs(axis))


def _stack(converter: Converter, relax_call: Any, name: str) -> Value:
    parts = [converter.node(p) for p in _parts(relax_call)]
    if not parts:
        return None
    e = Emitter(converter, relax_call, name)
    shape = e.shape(parts[0])
    axis = int(relax_call.attrs.axis or 0) % (len(shape) + 1)
    views = [e.reshape(p, (*shape[:axis], 1, *shape[axis:])) for p in parts]
    return views[0] if len(views) == 1 else e.result(Op.CONCAT, views, ConcatAttrs(axis))


def _tile(converter: Converter, relax_call: Any, name: str) -> Value:
    """Copies side by side, axis by axis."""
    if not all_float32(relax_call):
        return None
    e, value = Emitter(converter, relax_call, name), converter.node(relax_call.args[0])
    counts = ints(relax_call.attrs.repeats)
    rank = max(len(counts), len(e.shape(value)))
    counts = (*(1,) * (rank - len(counts)), *counts)
    if max(counts, default=1) > _MOST_COPIES or min(counts, default=1) < 1:
        return None
    value = e.reshape(value, (*(1,) * (rank - len(e.shape(value))), *e.shape(value)))
    for axis, count in enumerate(counts):
        shape = e.shape(value)
        if count > 1:
            longer = (*shape[:axis], shape[axis] * count, *shape[axis + 1 :])
            value = e.part("tiled", Op.CONCAT, (value,) * count, longer, ConcatAttrs(axis))
    return value


def _strided_slice(converter: Converter, relax_call: Any, name: str) -> Value:
    spans = [[_number(v) for v in getattr(a, "fields", [None])] for a in relax_call.args[1:]]
    if not all_float32(relax_call) or any(v is None for span in spans for v in span):
        return None
    e, x = Emitter(converter, relax_call, name), converter.node(relax_call.args[0])
    shape = e.shape(x)
    begin, step = [0] * len(shape), [1] * len(shape)
    axes, begins, ends = spans[:3]
    for place, axis in enumerate(axes):
        at = int(axis or 0) % len(shape)
        first = _first(begins[place], shape[at])
        stride = int(spans[3][place] or 0) if len(spans) > 3 else 1
        if first is None or stride < 1 or (ends[place] or 0) < -(2**62):
            return None
        begin[at], step[at] = first, stride
    return _cut(e, x, begin, step)


def _number(value: Any) -> int | None:
    plain = getattr(value, "value", value)
    plain = getattr(plain, "value", plain)
    return int(plain) if isinstance(plain, int) else None


def _first(begin: int | None, extent: Size) -> int | None:
    """Where a slice begins; None where it depends on an open size."""
    if begin is None:
        return None
    if isinstance(extent, int):
        return min(max(begin + extent if begin < 0 else begin, 0), extent)
    return begin if begin >= 0 else None


def _cut(e: Emitter, x: str, begin: Sequence[int], step: Sequence[int]) -> str:
    """The call's result as a slice of x, or x where it is all of it."""
    whole = e.shape(x) == e.converter.type(e.call.ty).shape
    if whole and not any(begin) and set(step) <= {1}:
        return x
    return e.result(Op.SLICE, (x,), SliceAttrs(tuple(begin), tuple(step)))


def _split(converter: Converter, relax_call: Any, name: str) -> Value:
    """A slice for each part; one part is no tuple in Relax."""
    source, ty = relax_call.args[0], relax_call.ty
    fields = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
    if not all(is_tensor(t, "float32") for t in (source.ty, *fields)):
        return None
    e, x = Emitter(converter, relax_call, name), converter.node(source)
    shape = e.shape(x)
    axis = int(relax_call.attrs.axis) % len(shape)
    if not isinstance(shape[axis], int):
        return None
    found, first = [], 0
    for number, field in enumerate(fields):
        part = converter.type(field).shape
        begin = [first if a == axis else 0 for a in range(len(shape))]
        found.append(_whole_or_part(e, str(number), x, begin, part, (1,) * len(begin)))
        first += int(str(part[axis]))
    return tuple(found) if isinstance(ty, relax.TupleType) else found[0]


def _whole_or_part(
    e: Emitter, part: str, x: str, begin: Sequence[int], shape: tuple[Size, ...], step: Sequence[int]
) -> str:
    """A slice of x on the way, or x where it is all of it."""
    if shape == e.shape(x):
        return x
    return e.part(part, Op.SLICE, (x,), shape, SliceAttrs(tuple(begin), tuple(step)))


def _take(converter: Converter, relax_call: Any, name: str) -> Value:
    """One index, or several at equal distances, as a slice."""
    data, indices = relax_call.args
    floats = all(is_tensor(t, "float32") for t in (data.ty, relax_call.ty))
    if not floats or not isinstance(indices, tvm_ir.GenericConst) or relax_call.attrs.axis is None:
        return None
    e, wanted = Emitter(converter, relax_call, name), indices.value.numpy()
    x = converter.node(data)
    shape = e.shape(x)
    axis = int(relax_call.attrs.axis) % len(shape)
    span = _span(wanted.ravel(), shape[axis])
    if span is None or wanted.ndim > 1:
        return None
    first, step = (
        [s if a == axis else d for a in range(len(shape))] for s, d in zip(span, (0, 1), strict=True)
    )
    part = (*shape[:axis], int(wanted.size), *shape[axis + 1 :])
    return e.finished(_whole_or_part(e, "part", x, first, part, step))


def _span(indices: np.ndarray[Any, Any], extent: Size) -> tuple[int, int] | None:
    """First index and distance; None if they are not equal or may lie outside."""
    if not indices.size or not isinstance(extent, int):
        return None
    steps = set(np.diff(indices).tolist()) or {1}
    inside = indices.min() >= 0 and indices.max() < extent
    return (int(indices[0]), steps.pop()) if inside and len(steps) == 1 and min(steps) > 0 else None


def _pad(converter: Converter, relax_call: Any, name: str) -> Value:
    attrs = relax_call.attrs
    widths = ints(attrs.pad_width)
    if not all_float32(relax_call) or attrs.pad_mode != "constant" or min(widths, default=0) < 0:
        return None
    e = Emitter(converter, relax_call, name)
    x = converter.node(relax_call.args[0])
    return e.result(Op.PAD, (x,), PadAttrs(widths[::2], float(attrs.pad_value)))


MOVES: dict[str, Rule] = {
    "relax.concat": _concat,
    "relax.stack": _stack,
    "relax.tile": _tile,
    "relax.strided_slice": _strided_slice,
    "relax.split": _split,
    "relax.take": _take,
    "relax.nn.pad": _pad,
}

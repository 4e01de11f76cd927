"""Arithmetic with open sizes: what exporters write about shapes, kept as TVM's size expressions.

``x.view(x.size(0), -1, 64)`` of a model with an open batch is a dozen ONNX nodes over small
integer tensors.  Here such a tensor is a :class:`Sizes`, and what reads it (a reshape, a
broadcast, a range) becomes an operator with a symbolic shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
import tvm
from tvm import ir as tvm_ir
from tvm import relax, tirx


@dataclass(frozen=True)
class Sizes:
    """A whole number (``scalar``) or a vector of them, some of which are open sizes."""

    values: tuple[Any, ...]
    scalar: bool = False
    #: TVM's importer asks every value for its type
    ty: Any = None

    def expression(self) -> Any:
        """As TVM's converters take it."""
        return relax.prim_value(self.values[0]) if self.scalar else relax.ShapeExpr(list(self.values))


Attributes: TypeAlias = Mapping[str, Any]
#: operands, attributes -> a result, or None where nothing is known
_Rule: TypeAlias = Callable[[Sequence[Sizes | None], Attributes], Any]


def convert_sizes(operator: str, inputs: Sequence[Any], attrs: Attributes) -> Any:
    """What a node makes of open sizes; None for a node that reads none, or makes something else of them."""
    if operator == "Shape":
        return _shape(inputs[0], attrs)
    given = [None if i is None else _sizes(i) for i in inputs]
    reads = any(isinstance(i, Sizes | relax.ShapeExpr) or tvm_ir.is_prim_expr(i) for i in inputs)
    if not reads and (operator != "Expand" or _all_known(inputs[0])):
        return None
    if operator in _OF_TENSORS and given[1] is not None:
        return _OF_TENSORS[operator](inputs[0], given[1], attrs)
    rule = _RULES.get(operator)
    known = all(g is not None or i is None for g, i in zip(given, inputs, strict=True))
    return rule(given, attrs) if rule and known else None


def _sizes(value: Any) -> Sizes | None:
    if isinstance(value, Sizes):
        return value
    if isinstance(value, relax.ShapeExpr):
        return Sizes(tuple(value.values))
    if tvm_ir.is_prim_expr(value):
        return Sizes((value,), True)
    if not isinstance(value, tvm_ir.GenericConst):
        return None
    array = value.value.numpy()
    if array.ndim > 1 or array.dtype.kind not in "ib":
        return None
    return Sizes(tuple(tirx.IntImm("int64", int(v)) for v in array.ravel()), array.ndim == 0)


def _all_known(data: Any) -> bool:
    return data.ty.shape is None or all(_number(s) is not None for s in data.ty.shape.values)


def _number(size: Any) -> int | None:
    return int(size.value) if isinstance(size, tirx.IntImm) else None


def _numbers(sizes: Sizes | None) -> list[int]:
    """The values, all of them known.

    Raises:
        ValueError: one is open.
    """
    found = [_number(v) for v in sizes.values] if sizes else []
    if any(v is None for v in found):
        raise ValueError("a place that depends on an open size")
    return [v for v in found if v is not None]


def _made(values: Sequence[Any], scalar: bool) -> Any:
    """A constant where all is known."""
    simple = [tvm.sym.Analyzer().simplify(v) if isinstance(v, tvm_ir.Expr) else v for v in values]
    known = [_number(v) for v in simple]
    if all(k is not None for k in known):
        return relax.const(np.array(known[0] if scalar else known, np.int64), "int64")
    return Sizes(tuple(simple), scalar)


def _shape(data: Any, attrs: Attributes) -> Any:
    if isinstance(data, Sizes):
        return relax.const(np.array([] if data.scalar else [len(data.values)], np.int64), "int64")
    shape = getattr(data.ty, "shape", None)
    if not isinstance(data.ty, relax.TensorType) or shape is None:
        return None
    return _made(list(shape.values)[attrs.get("start", 0) : attrs.get("end")], False)


# -- of sizes alone


def _cast(given: Sequence[Sizes | None], attrs: Attributes) -> Any:
    return given[0] if attrs["to"] in (onnx.TensorProto.INT32, onnx.TensorProto.INT64) else None


def _concat(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
    return _made([v for g in given if g for v in g.values], False)


def _gather(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
    data, at = given[0], given[1]
    return _made([data.values[i] for i in _numbers(at)], at.scalar) if data and at else None


def _slice(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
    data, begin, end = given[:3]
    step = _numbers(given[4])[0] if len(given) > 4 and given[4] else 1
    return _made(data.values[_numbers(begin)[0] : _numbers(end)[0] : step], False) if data else None


def _as_vector(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
    return Sizes(given[0].values) if given[0] and given[0].scalar else None


def _as_scalar(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
    return Sizes(given[0].values, True) if given[0] and len(given[0].values) == 1 else None


def _product(given: Sequence[Sizes | None], attrs: Attributes) -> Any:
    total: Any = tirx.IntImm("int64", 1)
    for value in given[0].values if given[0] else ():
        total = total * value
    return _made([total], not attrs.get("keepdims", 1))


def _pairs(a: Sizes, b: Sizes) -> list[tuple[Any, Any]]:
    count = max(len(a.values), len(b.values))
    left, right = (s.values * count if len(s.values) == 1 else s.values for s in (a, b))
    return list(zip(left, right, strict=True))


def _paired(function: Callable[[Any, Any], Any]) -> _Rule:
    def rule(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
        a, b = given[:2]
        if a is None or b is None:
            return None
        return _made([function(x, y) for x, y in _pairs(a, b)], a.scalar and b.scalar)

    return rule


def _equal(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
    """Where it is certain: an open size is never below 0."""
    a, b = given[:2]
    if a is None or b is None:
        return None
    found = [_same(x, y) for x, y in _pairs(a, b)]
    if any(f is None for f in found):
        return None
    return relax.const(np.array(found[0] if a.scalar and b.scalar else found, bool), "bool")


def _same(x: Any, y: Any) -> bool | None:
    known = [n for n in map(_number, (x, y)) if n is not None]
    if len(known) == 2:
        return known[0] == known[1]
    if tvm.sym.Analyzer().can_prove_equal(x, y):
        return True
    return False if any(n < 0 for n in known) else None


def _where(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
    condition, a, b = given
    if condition is None or a is None or b is None:
        return None
    chosen = [bool(c) for c in _numbers(condition)]
    count = max(len(chosen), len(a.values), len(b.values))
    pairs = _pairs(Sizes(a.values * (count if len(a.values) == 1 else 1)), b)
    chosen *= count if len(chosen) == 1 else 1
    return _made([x if c else y for c, (x, y) in zip(chosen, pairs, strict=True)], a.scalar and b.scalar)


def _range(given: Sequence[Sizes | None], _attrs: Attributes) -> Any:
    start, stop, step = (g.values[0] for g in given if g)
    return relax.op.arange(start, stop, step, "int64")


_RULES: Mapping[str, _Rule] = {
    "Add": _paired(lambda x, y: x + y), "Cast": _cast, "Concat": _concat,
    "Div": _paired(tirx.floordiv), "Equal": _equal, "Gather": _gather,
    "Identity": lambda given, _attrs: given[0], "Mod": _paired(tirx.floormod),
    "Mul": _paired(lambda x, y: x * y), "Range": _range, "ReduceProd": _product, "Slice": _slice,
    "Squeeze": _as_scalar, "Sub": _paired(lambda x, y: x - y), "Unsqueeze": _as_vector, "Where": _where,
}  # fmt: skip


# -- of a tensor and sizes


def _reshape(data: Any, sizes: Sizes, attrs: Attributes) -> Any:
    """To sizes of which 0 is the data's own, and -1 what remains."""
    if isinstance(data, Sizes | relax.ShapeExpr) or tvm_ir.is_prim_expr(data) or data.ty.shape is None:
        return None
    shape, target = list(data.ty.shape.values), list(sizes.values)
    if not attrs.get("allowzero", 0):
        target = [shape[i] if _number(s) == 0 else s for i, s in enumerate(target)]
    open_places = [i for i, s in enumerate(target) if _number(s) == -1]
    for place in open_places:
        target[place] = _remaining(shape, target[:place] + target[place + 1 :])
    return relax.op.reshape(data, relax.ShapeExpr(target))


def _remaining(shape: Sequence[Any], taken: Sequence[Any]) -> Any:
    """The size that brings ``taken`` to the elements of ``shape``."""
    left, gone = _factors(shape), _factors(taken)
    for factor in list(gone):
        # TVM's expressions overload ==, so lists of them are searched by place
        places = [i for i, f in enumerate(left) if _number(factor) is None and _same(f, factor)]
        if places:
            left.pop(places[0])
            gone = [g for g in gone if g is not factor]
    above, below = (prod(n for n in map(_number, some) if n is not None) for some in (left, gone))
    if any(_number(f) is None for f in gone) or not below or above % below:
        raise ValueError("a size to be inferred that is no product of the others")
    rest: Any = tirx.IntImm("int64", above // below)
    for factor in left:
        rest = rest * factor if _number(factor) is None else rest
    return rest


def _factors(sizes: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for size in sizes:
        found += _factors([size.a, size.b]) if isinstance(size, tirx.Mul) else [size]
    return found


def _expand(data: Any, sizes: Sizes, _attrs: Attributes) -> Any:
    """Broadcast both ways: of two sizes, the one that is not 1."""
    if isinstance(data, Sizes | relax.ShapeExpr) or tvm_ir.is_prim_expr(data) or data.ty.shape is None:
        return None
    have, want = list(data.ty.shape.values), list(sizes.values)
    rank = max(len(have), len(want))
    have, want = ([tirx.IntImm("int64", 1)] * (rank - len(s)) + s for s in (have, want))
    target = [h if _number(w) in (1, -1) or _number(h) not in (1, None) else w
              for h, w in zip(have, want, strict=True)]  # fmt: skip
    return relax.op.broadcast_to(data, relax.ShapeExpr(target))


_OF_TENSORS: Mapping[str, Callable[[Any, Sizes, Attributes], Any]] = {"Expand": _expand, "Reshape": _reshape}

"""Relax types and sizes as ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, tirx

from sparsec.errors import Unsupported
from sparsec.frontends.names import clean_symbol
from sparsec.ir.dims import Size, symbol
from sparsec.ir.types import Type


def fix_sizes(name: str, shape: Sequence[Size] = ()) -> str:
    """How a user fixes an input's sizes; an open batch is 1 in the example, other open sizes are 32."""
    example = [s if isinstance(s, int) else 32 if axis else 1 for axis, s in enumerate(shape)]
    text = ", ".join(map(str, example)) + ("," if len(example) == 1 else "")
    python, shell = f'shapes={{"{name}": ({text})}}', f"--shape {name}={','.join(map(str, example))}"
    return f"fix the input sizes, for example {python} (command line: {shell})"


def size_of(expr: Any) -> Size:
    """A TIR integer expression as a dimension.

    Raises:
        Unsupported: it is no polynomial in named sizes even after TVM's simplifier.
    """
    found = _polynomial(expr)
    if found is None and not isinstance(expr, int):
        found = _polynomial(tvm.sym.Analyzer().simplify(expr))
    if found is None:
        raise Unsupported(f"the size {expr} is no sum of products of the model's named sizes")
    return found


def type_of(ty: Any) -> Type:
    """A Relax tensor type as ours, plain layout.

    Raises:
        Unsupported: no tensor, or its shape is only known by running the model.
    """
    if not isinstance(ty, relax.TensorType):
        raise Unsupported(f"a value of type {ty} is not a tensor")
    if ty.shape is None or not isinstance(ty.shape, relax.ShapeExpr):
        raise Unsupported("the shape of its result depends on the data")
    return Type(tuple(size_of(s) for s in ty.shape.values), dtype_of(ty))


def dtype_of(ty: Any) -> str:
    """The NumPy name of a Relax tensor type's element type."""
    return str(ty.dtype.dtype)


def _polynomial(expr: Any) -> Size | None:
    if isinstance(expr, int):
        return expr
    if isinstance(expr, tirx.IntImm):
        return int(expr.value)
    if isinstance(expr, tirx.Var):
        return symbol(clean_symbol(str(expr.name)))
    if isinstance(expr, tirx.Add | tirx.Sub | tirx.Mul):
        return _combine(expr)
    return _polynomial(expr.value) if isinstance(expr, tirx.Cast) else None


def _combine(expr: Any) -> Size | None:
    a, b = _polynomial(expr.a), _polynomial(expr.b)
    if a is None or b is None:
        return None
    if isinstance(expr, tirx.Mul):
        return a * b
    return a + b if isinstance(expr, tirx.Add) else a + b * -1

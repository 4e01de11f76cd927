"""Operators without a kernel of their own, written as tensor expressions and carried as TIR.

They are correct for every shape and dtype and as fast as a compiler makes plain loops; what
costs time in real models gets a kernel instead.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sparsec.dims import Dim, Size
from sparsec.ir import TirAttrs, Type


def transpose(x: Type, axes: tuple[int, ...], result: Type) -> TirAttrs:
    """NumPy's transpose."""
    from tvm import topi

    data = _placeholder(x)
    return _attrs("transpose", [data, topi.transpose(data, axes)], result)


def reduce(x: Type, kind: str, axes: tuple[int, ...], keepdims: bool, result: Type) -> TirAttrs:
    """sum, mean, max or min over axes."""
    from tvm import tirx, topi

    data = _placeholder(x)
    over = list(axes)
    if kind == "mean":
        total = topi.sum(data, axis=over, keepdims=keepdims)
        count: Any = tirx.const(1.0, x.dtype)
        for axis in axes:
            count = count * data.shape[axis].astype(x.dtype)
        value = topi.divide(total, count)
    else:
        value = getattr(topi, kind)(data, axis=over, keepdims=keepdims)
    return _attrs(f"reduce_{kind}", [data, value], result)


def _placeholder(x: Type) -> Any:
    from tvm import te

    named: dict[str, Any] = {}
    return te.placeholder(tuple(_size(s, named) for s in x.shape), name="x", dtype=x.dtype)


def _size(size: Size, named: dict[str, Any]) -> Any:
    from tvm import tirx

    if not isinstance(size, Dim):
        return tirx.IntImm("int64", size)
    # each distinct size is one variable, bound from the tensor's shape when it is called
    text = str(size)
    if text not in named:
        named[text] = tirx.Var(f"n{len(named)}", "int64")
    return named[text]


def _attrs(source: str, tensors: list[Any], result: Type) -> TirAttrs:
    import tvm
    from tvm import te

    function = te.create_prim_func(tensors)
    name = f"{source}_{hashlib.sha256(function.script().encode()).hexdigest()[:10]}"
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    return TirAttrs(source, name, tvm.ir.save_json(module), (result,))

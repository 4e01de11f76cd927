"""Operators without a kernel of their own, written as tensor expressions and carried as TIR.

They are correct for every shape and dtype and as fast as a compiler makes plain loops; what
costs time in real models gets a kernel instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from sparsec.ir.attributes import ResizeAttrs, TirAttrs
from sparsec.ir.dims import Dim, Size
from sparsec.ir.expr import Arg, Expr, Scalar, walk
from sparsec.ir.resampling import taps
from sparsec.ir.types import Type


def transpose(x: Type, axes: tuple[int, ...], result: Type) -> TirAttrs:
    """NumPy's transpose."""
    from tvm import topi

    data = _placeholder(x)
    return _attrs("transpose", [data, topi.transpose(data, axes)], result)


def reduce(x: Type, kind: str, axes: tuple[int, ...], keepdims: bool, result: Type) -> TirAttrs:
    """sum, mean, max or min over axes."""
    from tvm import tirx, topi

    data = _placeholder(x)
    if x.elements == 0:
        return _attrs(f"reduce_{kind}", [data, _nothing_reduced(kind, result)], result)
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


def concat(types: Sequence[Type], axis: int, result: Type) -> TirAttrs:
    """Tensors one after another along an axis."""
    from tvm import topi

    named: dict[str, Any] = {}
    data = [_placeholder(t, named, f"x{i}") for i, t in enumerate(types)]
    return _attrs("concat", [*data, topi.concatenate(data, axis)], result)


def slice_(x: Type, begin: Sequence[int], step: Sequence[int], result: Type) -> TirAttrs:
    """``x[begin:end:step]`` on every axis."""
    from tvm import te

    named: dict[str, Any] = {}
    data = _placeholder(x, named)
    shape = tuple(_size(s, named) for s in result.shape)

    def value(*index: Any) -> Any:
        return data[tuple(b + i * s for i, b, s in zip(index, begin, step, strict=True))]

    return _attrs("slice", [data, te.compute(shape, value, name="y")], result)


def pad(x: Type, before: Sequence[int], value: float, result: Type) -> TirAttrs:
    """``value`` around x."""
    from tvm import te, tirx

    named: dict[str, Any] = {}
    data = _placeholder(x, named)
    shape = tuple(_size(s, named) for s in result.shape)

    def element(*index: Any) -> Any:
        places = [i - b for i, b in zip(index, before, strict=True)]
        inside = [p >= 0 for p, b in zip(places, before, strict=True) if b]
        inside += [p < size for p, size in zip(places, data.shape, strict=True)]
        return tirx.if_then_else(tirx.all(*inside), data[tuple(places)], _literal(value, x.dtype))

    return _attrs("pad", [data, te.compute(shape, element, name="y")], result)


def resize(x: Type, attrs: ResizeAttrs, result: Type) -> TirAttrs:
    """The last two axes resampled."""
    from tvm import te, tirx

    named: dict[str, Any] = {}
    data = _placeholder(x, named)
    shape = tuple(_size(s, named) for s in result.shape)
    tables = [taps(attrs, cast(int, x.shape[i]), cast(int, result.shape[i])) for i in (2, 3)]

    def chosen(table: Any, index: Any, dtype: str) -> Any:
        """The table's entry, found by halves."""
        if len(table) == 1:
            return tirx.const(table[0].item(), dtype)
        half = len(table) // 2
        low, high = chosen(table[:half], index, dtype), chosen(table[half:], index - half, dtype)
        return tirx.Select(index < half, low, high)

    def value(n: Any, c: Any, i: Any, j: Any) -> Any:
        rows, columns = tables

        def along(row: Any) -> Any:
            low, high = (data[n, c, row, chosen(columns[side], j, "int64")] for side in (0, 1))
            return low + (high - low) * chosen(columns[2], j, x.dtype)

        if attrs.method == "nearest":
            return data[n, c, chosen(rows[0], i, "int64"), chosen(columns[0], j, "int64")]
        low, high = (along(chosen(rows[side], i, "int64")) for side in (0, 1))
        return low + (high - low) * chosen(rows[2], i, x.dtype)

    return _attrs("resize", [data, te.compute(shape, value, name="y")], result)


def _nothing_reduced(kind: str, result: Type) -> Any:
    """What reducing no elements gives: loops that never run would leave memory as it was."""
    from tvm import te

    named: dict[str, Any] = {}
    value = {"sum": 0.0, "mean": float("nan"), "max": float("-inf"), "min": float("inf")}[kind]
    shape = tuple(_size(s, named) for s in result.shape)
    return te.compute(shape, lambda *_: _literal(value, result.dtype), name="y")


def elementwise(expr: Expr, types: Sequence[Type], result: Type) -> TirAttrs:
    """An expression over arguments of any dtype that broadcast together.

    Computes in the type ``sparsec.reference.expr.evaluate_expr`` names, the widest floating one, else
    int64, but at least in float32.
    """
    from tvm import te

    named: dict[str, Any] = {}
    data = [_placeholder(t, named, f"x{i}") for i, t in enumerate(types)]
    shape = tuple(_size(s, named) for s in result.shape)
    working = _working(types, result)

    def value(*index: Any) -> Any:
        done: dict[Expr, Any] = {}
        for e in walk(expr):
            if isinstance(e, Arg):
                done[e] = _cast(
                    _broadcast(data[e.index], types[e.index], result, index), types[e.index].dtype, working
                )
            elif isinstance(e, Scalar):
                done[e] = _literal(e.value, working)
            else:
                done[e] = _FUNCTIONS[e.function](working, *(done[o] for o in e.operands))
        return _cast(done[expr], working, result.dtype)

    return _attrs("elementwise", [*data, te.compute(shape, value, name="y")], result)


def matmul(a: Type, b: Type, result: Type) -> TirAttrs:
    """NumPy's matmul of two tensors of at least two axes, batch axes broadcast."""
    from tvm import te

    named: dict[str, Any] = {}
    left, right = _placeholder(a, named, "a"), _placeholder(b, named, "b")
    inner = te.reduce_axis((0, _size(a.shape[-1], named)), name="k")
    shape = tuple(_size(s, named) for s in result.shape)

    def value(*index: Any) -> Any:
        rows = _broadcast(left, a, result, (*index[:-1], inner))
        columns = _broadcast(right, b, result, (*index[:-2], inner, index[-1]))
        product = _cast(rows, a.dtype, result.dtype) * _cast(columns, b.dtype, result.dtype)
        return te.sum(product, axis=inner)

    return _attrs("matmul", [left, right, te.compute(shape, value, name="y")], result)


def _broadcast(data: Any, t: Type, result: Type, index: Sequence[Any]) -> Any:
    """The element of ``data`` that broadcasting reads at ``index`` of the result."""
    at = index[len(index) - len(t.shape) :]
    return data[tuple(0 if size == 1 else i for size, i in zip(t.shape, at, strict=True))]


def _working(types: Sequence[Type], result: Type) -> str:
    floats = {t.dtype for t in (*types, result) if _is_float(t.dtype)}
    # half precision is computed in float32: several functions exist only there, and none is faster
    return ("float64" if "float64" in floats else "float32") if floats else "int64"


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def _literal(value: float, dtype: str) -> Any:
    from tvm import tirx

    return tirx.const(value if _is_float(dtype) else int(value), dtype)


def _cast(value: Any, have: str, want: str) -> Any:
    from tvm import tirx

    if have == want:
        return value
    return tirx.NE(value, _literal(0, have)) if want == "bool" else tirx.Cast(want, value)


def _tirx(name: str) -> Callable[..., Any]:
    """The tirx function of this name, looked up when it is called."""

    def apply(working: str, *operands: Any) -> Any:
        from tvm import tirx

        if working.startswith("float"):
            return getattr(tirx, name)(*operands)
        wide = [tirx.Cast("float64", o) for o in operands]
        return tirx.Cast(working, getattr(tirx, name)(*wide))

    return apply


def _divide(working: str, x: Any, y: Any) -> Any:
    """Integers divide towards zero, and by zero give zero."""
    from tvm import tirx

    if working.startswith("float"):
        return x / y
    zero = _literal(0, working)
    return tirx.if_then_else(tirx.EQ(y, zero), zero, tirx.truncdiv(x, y))


def _equal(working: str, x: Any, y: Any) -> Any:
    from tvm import tirx

    return _cast(tirx.EQ(x, y), "bool", working)


def _choose(working: str, condition: Any, x: Any, y: Any) -> Any:
    from tvm import tirx

    return tirx.Select(_cast(condition, working, "bool"), x, y)


def _larger(working: str, x: Any, y: Any) -> Any:
    from tvm import tirx

    return tirx.Select(_keeps(working, x, x > y), x, y)


def _smaller(working: str, x: Any, y: Any) -> Any:
    from tvm import tirx

    return tirx.Select(_keeps(working, x, x < y), x, y)


def _keeps(working: str, x: Any, wins: Any) -> Any:
    """Whether the first operand is the result: it wins, or it is no number."""
    from tvm import tirx

    return tirx.any(wins, tirx.isnan(x)) if working.startswith("float") else wins


def _sign(working: str, x: Any) -> Any:
    zero = _literal(0, working)
    return _cast(x > zero, "bool", working) - _cast(x < zero, "bool", working)


def _sigmoid(working: str, x: Any) -> Any:
    from tvm import tirx

    one = _literal(1, working)
    return one / (one + tirx.exp(_literal(0, working) - x))


def _absolute(working: str, x: Any) -> Any:
    from tvm import tirx

    zero = _literal(0, working)
    return tirx.Select(x < zero, zero - x, x)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": lambda _, x, y: x + y, "sub": lambda _, x, y: x - y, "mul": lambda _, x, y: x * y,
    "div": _divide, "max": _larger, "min": _smaller, "pow": _tirx("power"),
    "neg": lambda working, x: _literal(0, working) - x, "abs": _absolute,
    "exp": _tirx("exp"), "log": _tirx("log"), "sqrt": _tirx("sqrt"), "rsqrt": _tirx("rsqrt"),
    "tanh": _tirx("tanh"), "sigmoid": _sigmoid, "erf": _tirx("erf"), "floor": _tirx("floor"),
    "ceil": _tirx("ceil"), "round": _tirx("nearbyint"), "sign": _sign, "sin": _tirx("sin"),
    "cos": _tirx("cos"),
    "less": lambda working, x, y: _cast(x < y, "bool", working),
    "less_equal": lambda working, x, y: _cast(x <= y, "bool", working),
    "equal": _equal, "where": _choose,
}  # fmt: skip


def _placeholder(x: Type, named: dict[str, Any] | None = None, name: str = "x") -> Any:
    from tvm import te

    sizes = {} if named is None else named
    return te.placeholder(tuple(_size(s, sizes) for s in x.shape), name=name, dtype=x.dtype)


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

"""Rules about shapes and expressions that several passes share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from sparsec.ir.dims import Size
from sparsec.ir.expr import Arg, Call, Expr, Scalar, call, rewrite, walk
from sparsec.reference.expr import evaluate_expr

#: Fusion stops at so many distinct subtrees (registers and code size) ...
MAX_DISTINCT = 64
#: ... and at so many subtrees counted each time they occur (the length as text).
MAX_SPELLED = 4096


def broadcast(shapes: Iterable[Sequence[Size]]) -> tuple[Size, ...] | None:
    """The shape that shapes broadcast to by NumPy's rules; None when it is not certain.

    Two different symbols, or a symbol and a number other than 1, are not certain.
    """
    every = [tuple(s) for s in shapes]
    rank = max((len(s) for s in every), default=0)
    found: list[Size] = [1] * rank
    for shape in every:
        for axis, size in enumerate(shape, start=rank - len(shape)):
            if found[axis] == 1:
                found[axis] = size
            elif size not in (1, found[axis]):
                return None
    return tuple(found)


def working_dtype(operands: Iterable[str], result: str) -> np.dtype[np.generic]:
    """The type an expression is computed in, as ``sparsec.reference.expr.evaluate_expr`` says."""
    floats = [d for d in (*operands, result) if d.startswith("float")]
    return np.result_type(*floats) if floats else np.dtype(np.int64)


def simplify_expr(expr: Expr, floating: bool) -> Expr:
    """Apply identities that hold to the last bit (powers: to the last two; zeros: but for the sign).

    Args:
        expr: any expression.
        floating: whether it is computed in a floating type, where halving is a product.
    """
    memo: dict[Expr, Expr] = {}
    for part in walk(expr):
        if isinstance(part, Call):
            memo[part] = _simplify_call(part.function, tuple(memo[o] for o in part.operands), floating)
        else:
            memo[part] = part
    return memo[expr]


def _simplify_call(function: str, operands: tuple[Expr, ...], floating: bool) -> Expr:
    if floating and all(isinstance(o, Scalar) for o in operands):
        return Scalar(float(evaluate_expr(Call(function, operands), [], np.float64)))
    if len(operands) == 2:
        x, y = operands
        if function in ("add", "mul") and isinstance(x, Scalar):
            x, y = y, x
        if isinstance(y, Scalar):
            return _with_scalar(function, x, y.value, floating)
    if function == "where" and isinstance(operands[0], Scalar):
        return operands[1] if operands[0].value else operands[2]
    return Call(function, operands)


def _with_scalar(function: str, x: Expr, value: float, floating: bool) -> Expr:
    """``function(x, value)``."""
    neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0, "pow": 1.0}
    if neutral.get(function) == value:
        return x
    if function == "div" and floating and _is_power_of_two(value):
        return _with_scalar("mul", x, 1.0 / value, floating)
    if function == "pow" and value in (2.0, 3.0):
        square = call("mul", x, x)
        return square if value == 2.0 else call("mul", square, x)
    if function == "pow" and value == 0.5 and floating:
        return call("sqrt", x)
    return call(function, x, Scalar(value))


def _is_power_of_two(value: float) -> bool:
    if value == 0 or not math.isfinite(value):
        return False
    mantissa, exponent = math.frexp(value)
    return abs(mantissa) == 0.5 and abs(exponent) < 100


def stays_small(*exprs: Expr) -> bool:
    """Whether expressions put into one, each read a few times, are worth compiling as one."""
    return (
        sum(len(walk(e)) for e in exprs) <= MAX_DISTINCT
        and math.prod(_spelled(e) for e in exprs) <= MAX_SPELLED
    )


def _spelled(expr: Expr) -> int:
    counts: dict[Expr, int] = {}
    for part in walk(expr):
        counts[part] = 1 + sum(counts[o] for o in part.operands) if isinstance(part, Call) else 1
    return counts[expr]


def renumber(expr: Expr, args: Sequence[str], first: int = 0) -> tuple[Expr, tuple[str, ...]]:
    """Drop arguments an expression does not read and merge equal ones.

    Args:
        expr: reads ``Arg(i)`` as ``args[i]``.
        args: names of values.
        first: how many leading arguments must stay where they are.

    Returns:
        The expression over the shorter list, and that list.
    """
    kept = list(args[:first])
    place: dict[int, Expr] = {i: Arg(i) for i in range(first)}
    for part in walk(expr):
        if isinstance(part, Arg) and part.index not in place:
            name = args[part.index]
            if name not in kept[first:]:
                kept.append(name)
            place[part.index] = Arg(kept.index(name, first))
    return rewrite(expr, lambda arg: place[arg.index]), tuple(kept)

"""What an elementwise expression means, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsec.ir.expr import Arg, Expr, Scalar, walk

Array: TypeAlias = NDArray[Any]


def evaluate_expr(expr: Expr, operands: Sequence[Array], result: DTypeLike) -> Array:
    """The value of an elementwise expression; ``operands[i]`` is Arg(i).

    Floating operands (or, without any, a floating ``result``) fix the type computed in;
    otherwise it is int64.  Comparisons give 1 or 0 of that type.
    """
    working = _working_dtype(operands, np.dtype(result))
    memo: dict[Expr, Array] = {}
    for e in walk(expr):
        if isinstance(e, Arg):
            memo[e] = np.asarray(operands[e.index]).astype(working, copy=False)
        elif isinstance(e, Scalar):
            memo[e] = np.asarray(e.value).astype(working)
        else:
            found = _FUNCTIONS[e.function](*(memo[o] for o in e.operands))
            memo[e] = np.asarray(found).astype(working, copy=False)
    return memo[expr]


def _working_dtype(operands: Sequence[Array], result: np.dtype[Any]) -> np.dtype[Any]:
    floats = [o.dtype for o in operands if np.issubdtype(o.dtype, np.floating)]
    if np.issubdtype(result, np.floating):
        floats.append(result)
    return np.result_type(*floats) if floats else np.dtype(np.int64)


def _erf(x: Array) -> Array:
    from scipy.special import erf  # a light import of sparsec must not pay for scipy

    found: Array = erf(x)
    return found


def _divide(x: Array, y: Array) -> Array:
    """Integers divide as in C and ONNX: towards zero."""
    if not np.issubdtype(x.dtype, np.integer):
        return np.divide(x, y)
    return np.where(y == 0, 0, np.sign(x) * np.sign(y) * (abs(x) // np.maximum(abs(y), 1)))


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _divide,
    "max": np.maximum, "min": np.minimum, "pow": np.power, "neg": np.negative, "abs": np.abs,
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "erf": _erf,
    "floor": np.floor, "ceil": np.ceil, "round": np.round, "sign": np.sign,
    "sin": np.sin, "cos": np.cos, "less": np.less, "less_equal": np.less_equal,
    "equal": np.equal, "where": lambda c, x, y: np.where(c != 0, x, y),
}  # fmt: skip

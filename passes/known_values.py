"""Values known when a model is compiled, NaN where they are not, and what elementwise code makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.expr import Arg, Call, Expr, Scalar, walk
from sparsec.reference.expr import evaluate_expr

Array: TypeAlias = NDArray[Any]


def along(array: Array | None, axis: int, size: int) -> Array:
    """A constant as one number for each index of an axis (counted from the last), NaN if it is not that."""
    if array is not None and array.dtype.kind in "fiub":
        if array.size == 1:
            return np.full(size, float(array.reshape(())))
        if array.size == size and array.ndim >= -axis and array.shape[axis] == size:
            return array.astype(np.float64).ravel()
    return np.full(size, np.nan)


def evaluated(expr: Expr, operands: Sequence[Array], size: int) -> Array:
    """An expression's value where it is known: NaN stands for what is not, which zero times is zero."""
    memo: dict[Expr, Array] = {}
    for part in walk(expr):
        if isinstance(part, Arg):
            memo[part] = operands[part.index]
        elif isinstance(part, Scalar):
            memo[part] = np.full(size, part.value)
        else:
            memo[part] = _called(part, [memo[o] for o in part.operands])
    return memo[expr]


def _called(part: Call, values: list[Array]) -> Array:
    known = ~np.isnan(values).any(0)
    plain = Call(part.function, tuple(map(Arg, range(len(values)))))
    with np.errstate(all="ignore"):
        found = evaluate_expr(plain, [np.where(np.isnan(v), 1.0, v) for v in values], np.float64)
    if part.function == "mul":
        zero = (values[0] == 0) | (values[1] == 0)
        known, found = known | zero, np.where(zero, 0.0, found)
    return np.where(known & np.isfinite(found), found, np.nan)

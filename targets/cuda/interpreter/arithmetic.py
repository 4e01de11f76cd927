"""arithmetic: what TIR's operators and functions do to NumPy arrays, as a GPU would do them.

Integers wrap; casts of floats to integers truncate and saturate; half and bfloat16 results are rounded to
nearest even after every operation.  Unlike the GPU's, ``max`` and ``min`` keep NaN, so that what was read
from memory nobody wrote stays visible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from sparsec.targets.cuda.interpreter.memory import Values

Function = Callable[..., Values]


def _narrow(function: Function) -> Function:
    """A function of floats that computes half precision in single precision and rounds."""

    def computed(*values: Values) -> Values:
        kind = values[0].dtype
        if kind.itemsize != 2:
            return np.asarray(function(*values)).astype(kind, copy=False)
        return np.asarray(function(*(v.astype(np.float32) for v in values))).astype(kind)

    return computed


def divide(a: Values, b: Values) -> Values:
    """C's division: of integers towards zero."""
    if a.dtype.kind in "iu":
        whole: Values = np.asarray((a - np.fmod(a, b)) // b)
        return whole
    return np.asarray(np.true_divide(a, b)).astype(a.dtype, copy=False)


def floor_mod(a: Values, b: Values) -> Values:
    """The remainder with the divisor's sign; bits where the divisor is a constant power of two."""
    if a.dtype.kind in "iu" and b.size == 1:
        by = int(b.item())
        if by > 0 and by & (by - 1) == 0:
            return np.asarray(a & (b - b.dtype.type(1)))
    return np.asarray(np.mod(a, b))


def cast(value: Values, kind: np.dtype[Any]) -> Values:
    """Convert to another type: floats to integers towards zero, to what is nearest that fits."""
    if value.dtype == kind:
        return value
    if kind == np.bool_:
        return np.asarray(value != 0)
    if kind.kind in "iu" and value.dtype.kind not in "iub":
        # the largest 64-bit integers are no float64: what comes next below is
        top = np.nextafter(2.0 ** (8 * kind.itemsize - (kind.kind == "i")), 0)
        wide = np.clip(value.astype(np.float64), float(np.iinfo(kind).min), top)
        return np.where(np.isnan(wide), 0, wide).astype(kind)
    if kind.itemsize == 2 and kind.kind not in "iu" and value.dtype.kind in "iu":
        return value.astype(np.float32).astype(kind)
    return value.astype(kind)


def fused(a: Values, b: Values, c: Values) -> Values:
    """``a * b + c`` rounded once (float32: exact in float64 but for its last rounding)."""
    if a.dtype == np.float64:
        return np.asarray(a * b + c)
    wide = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    return wide.astype(a.dtype)


def _bits(value: Values) -> Values:
    unsigned: Values = np.ascontiguousarray(value).view(f"uint{8 * value.dtype.itemsize}").astype(np.uint64)
    return unsigned


def leading_zeros(value: Values) -> Values:
    """How many zero bits come before the first one."""
    width = 8 * value.dtype.itemsize
    high = np.frexp((_bits(value) >> 32).astype(np.float64))[1]
    low = np.frexp((_bits(value) & 0xFFFFFFFF).astype(np.float64))[1]
    return np.asarray(width - np.where(high > 0, high + 32, low)).astype(np.int32)


def population(value: Values) -> Values:
    """How many bits are set."""
    count: Values = np.bitwise_count(_bits(value)).astype(np.int32)
    return count


def _round_away(value: Values) -> Values:
    # adding a half first would carry numbers just below one half to one
    whole = np.floor(np.abs(value))
    return np.asarray(np.copysign(whole + (np.abs(value) - whole >= 0.5), value))


BINARY: dict[str, Function] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Min": np.minimum, "Max": np.maximum,
    "Div": divide, "Mod": np.fmod, "FloorDiv": np.floor_divide, "FloorMod": floor_mod,
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater,
    "GE": np.greater_equal, "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor, "LShift": np.left_shift, "RShift": np.right_shift,
}  # fmt: skip

UNARY: dict[str, Function] = {"Not": np.logical_not, "BitwiseNot": np.invert}

#: TIR's calls by their names without a dialect
CALLS: dict[str, Function] = {
    **{name: _narrow(getattr(np, name)) for name in (
        "exp", "exp2", "log", "log2", "log10", "log1p", "sqrt", "tanh", "sinh", "cosh", "sin", "cos", "tan",
        "floor", "ceil", "trunc", "fabs", "copysign", "fmod", "hypot", "nextafter")},
    "atan": _narrow(np.arctan), "atan2": _narrow(np.arctan2), "asin": _narrow(np.arcsin),
    "acos": _narrow(np.arccos),
    "nearbyint": _narrow(np.rint), "pow": _narrow(np.power),
    "exp10": _narrow(lambda x: np.power(x.dtype.type(10), x)),
    "erf": _narrow(special.erf), "sigmoid": _narrow(special.expit), "round": _narrow(_round_away),
    "rsqrt": _narrow(lambda x: x.dtype.type(1) / np.sqrt(x)),
    "fma": fused, "clz": leading_zeros, "popcount": population, "isnan": np.isnan, "isinf": np.isinf,
    "isfinite": np.isfinite, "likely": lambda x: x, "bitwise_not": np.invert, "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor, "shift_left": np.left_shift,
    "shift_right": np.right_shift, "truncmod": np.fmod,
    "vectorlow": lambda x: x[..., : x.shape[-1] // 2], "vectorhigh": lambda x: x[..., x.shape[-1] // 2 :],
    "vectorcombine": lambda x, y: np.concatenate(np.broadcast_arrays(x, y), axis=-1),
}  # fmt: skip

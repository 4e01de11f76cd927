"""Vectorised elementary functions as polynomials in TIR.

TVM lowers ``exp``, ``erf`` and ``tanh`` of a vector to scalar libm calls; these expand to
multiply-adds instead.  They take scalars or vectors of float32 and return the same type.
Accuracy (against float64, over all finite inputs): a few units in the last place for ``exp``,
``log`` and ``sigmoid``, 5e-7 absolute for ``tanh`` and ``erf``.

Sources: exp and log follow Cephes (Moshier); tanh and erf are the rational approximations
published in Eigen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from sparsec.ir.expr import Arg, Call, Expr, Scalar, walk
from sparsec.targets.kernels.builder import Kernel

_TANH_ODD = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_ODD = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_EVEN = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip
_EXP = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip


def lanes_of(x: Any) -> int:
    """Vector length of an expression (1 for a scalar)."""
    text = str(x.ty.dtype) if hasattr(x, "ty") and hasattr(x.ty, "dtype") else str(x.dtype)
    return int(text.rsplit("x", 1)[1]) if "x" in text else 1


def constant(value: float, like: Any, dtype: str = "float32") -> Any:
    """A number shaped like ``like``."""
    number = tirx.IntImm(dtype, int(value)) if dtype == "int32" else tirx.FloatImm(dtype, value)
    lanes = lanes_of(like)
    return T.Broadcast(number, lanes) if lanes > 1 else number


def _typed(dtype: str, like: Any) -> str:
    lanes = lanes_of(like)
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def _horner(x: Any, coefficients: Sequence[float]) -> Any:
    total = constant(coefficients[0], x)
    for c in coefficients[1:]:
        total = total * x + constant(c, x)
    return total


def _bind(value: Any) -> Any:
    return T.Bind(value)


def exp(x: Any) -> Any:
    """e**x; 0 below -87.3, infinity above 88.7, NaN stays NaN."""
    low, high = constant(-87.33654, x), constant(88.72283, x)
    c = _clamped(x, -87.33654, 88.72283)
    n = _bind(T.floor(c * constant(1.44269504088896341, x) + constant(0.5, x)))
    r = _bind(c - n * constant(0.693359375, x) + n * constant(2.12194440e-4, x))
    p = _bind(_horner(r, _EXP) * r * r + r + constant(1.0, x))
    # two steps of 2**(n/2): 2**128 itself is no finite float
    half = _bind(T.cast(T.floor(n * constant(0.5, x)), _typed("int32", x)))
    rest = _bind(T.cast(n, _typed("int32", x)) - half)
    y = _bind(p * _power_of_two(half, x) * _power_of_two(rest, x))
    return _bind(T.Select(x > high, constant(float("inf"), x), T.Select(x < low, constant(0.0, x), y)))


def _power_of_two(n: Any, like: Any) -> Any:
    bits = T.shift_left(n + constant(127, like, "int32"), constant(23, like, "int32"))
    return T.reinterpret(_typed("float32", like), bits)


def log(x: Any) -> Any:
    """Natural logarithm; -infinity at 0, NaN below."""
    tiny = x < constant(1.17549435e-38, x)
    scaled = _bind(T.Select(tiny, x * constant(8388608.0, x), x))
    bits = _bind(T.reinterpret(_typed("int32", x), scaled))
    e = T.shift_right(bits, constant(23, x, "int32")) - constant(126, x, "int32")
    mask, half = constant(0x007FFFFF, x, "int32"), constant(0x3F000000, x, "int32")
    m = _bind(T.reinterpret(_typed("float32", x), T.bitwise_or(T.bitwise_and(bits, mask), half)))
    exponent = T.cast(e, _typed("float32", x)) - T.Select(tiny, constant(23.0, x), constant(0.0, x))
    small = m < constant(0.707106781186547524, x)
    f = _bind(T.Select(small, m + m, m) - constant(1.0, x))
    n = _bind(exponent - T.Select(small, constant(1.0, x), constant(0.0, x)))
    z = _bind(f * f)
    y = f * z * _horner(f, _LOG) - n * constant(2.12194440e-4, x) - z * constant(0.5, x)
    y = _bind(f + y + n * constant(0.693359375, x))
    y = T.Select(x > constant(3.4028234e38, x), constant(float("inf"), x), y)
    y = T.Select(x == constant(0.0, x), constant(float("-inf"), x), y)
    return _bind(T.Select(x >= constant(0.0, x), y, constant(float("nan"), x)))


def _clamped(x: Any, low: float, high: float) -> Any:
    # selects, not T.min and T.max: a NaN must come through
    c = T.Select(x > constant(high, x), constant(high, x), x)
    return _bind(T.Select(x < constant(low, x), constant(low, x), c))


def _odd_rational(x: Any, bound: float, odd: Sequence[float], even: Sequence[float]) -> Any:
    c = _clamped(x, -bound, bound)
    square = _bind(c * c)
    return _bind(c * _horner(square, odd) / _horner(square, even))


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return _odd_rational(x, 7.90531110763549805, _TANH_ODD, _TANH_EVEN)


def erf(x: Any) -> Any:
    """The error function."""
    return _odd_rational(x, 4.0, _ERF_ODD, _ERF_EVEN)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x)."""
    return _bind(constant(1.0, x) / (constant(1.0, x) + exp(constant(0.0, x) - x)))


def _opaque(value: Any) -> Any:
    # TVM 0.27 fails to bound the product of a select and another number; LLVM's fence costs nothing
    return _bind(T.call_llvm_pure_intrin(_typed("float32", value), "llvm.arithmetic.fence", value))


def _number(condition: Any, like: Any) -> Any:
    return T.Select(condition, constant(1.0, like), constant(0.0, like))


def _sign(x: Any) -> Any:
    zero = constant(0.0, x)
    return _number(x > zero, x) - _number(x < zero, x)


#: expression function -> its TIR; operands all have one type
EMIT: Mapping[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    # a NaN in the first operand comes out, so emit() puts literals second
    "max": lambda a, b: T.Select(a < b, b, a), "min": lambda a, b: T.Select(a > b, b, a),
    "pow": T.pow, "neg": lambda a: constant(0.0, a) - a, "abs": T.fabs,
    "exp": exp, "log": log, "sqrt": T.sqrt,
    "rsqrt": lambda a: constant(1.0, a) / T.sqrt(a), "tanh": tanh, "sigmoid": sigmoid, "erf": erf,
    "floor": T.floor, "ceil": T.ceil, "round": T.nearbyint, "sign": _sign, "sin": T.sin, "cos": T.cos,
    "less": lambda a, b: _number(a < b, a), "less_equal": lambda a, b: _number(a <= b, a),
    "equal": lambda a, b: _number(a == b, a),
    "where": lambda c, a, b: T.Select(c != constant(0.0, c), a, b),
}  # fmt: skip


#: functions whose expansion uses its operand many times
_EXPANDED = frozenset({"exp", "log", "tanh", "sigmoid", "erf"})
#: functions that are selects
_SELECTS = frozenset({"max", "min", "where", "less", "less_equal", "equal", "sign"})


def emit(k: Kernel, expr: Expr, operands: Callable[[int], Any], like: Any) -> Any:
    """TIR of an expression; ``operands(i)`` loads argument ``i``; every subtree is computed once.

    TVM's simplifier inlines names of pure expressions, so nested functions would grow
    exponentially: their operands and results rest in registers instead.
    """
    done: dict[Expr, Any] = {}
    slot = 0
    for e in walk(expr):
        if isinstance(e, Arg):
            done[e] = _bind(operands(e.index))
        elif isinstance(e, Scalar):
            done[e] = constant(e.value, like)
        elif isinstance(e, Call):
            inputs = [done[o] for o in _ordered(e)]
            if e.function in _EXPANDED:
                held = k.hold(inputs[0], lanes_of(like), slot)
                done[e] = k.hold(EMIT[e.function](held), lanes_of(like), slot + 1)
                slot += 2
            elif e.function in _SELECTS:
                done[e] = _opaque(EMIT[e.function](*inputs))
            else:
                done[e] = _bind(EMIT[e.function](*inputs))
    return done[expr]


def _ordered(e: Call) -> tuple[Expr, ...]:
    if e.function in ("max", "min") and isinstance(e.operands[0], Scalar):
        return e.operands[::-1]
    return e.operands

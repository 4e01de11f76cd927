"""Elementwise expressions in CUDA kernels, in float32.

A thread's neighbours in memory are read and written as vectors and computed one by one: a GPU has no
vector arithmetic, and TVM 0.27 writes comparisons of vectors that nvcc refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsec.ir.expr import Arg, Call, Expr, Scalar, walk
from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Array, Kernel
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.target import Problem

#: neighbours a vector may have; eight are for dtypes of two bytes
LANES = (1, 2, 4, 8)


def constant(value: float) -> Any:
    """A float32 literal."""
    return tirx.FloatImm("float32", float(value))


def emit(k: Kernel, expr: Expr, operands: Sequence[Any]) -> Any:
    """The value of an expression; ``operands[i]`` is argument i, float32.

    Subtrees that are used twice are computed once.
    """
    values: dict[Expr, Any] = {}
    for e in walk(expr):
        if isinstance(e, Arg):
            values[e] = k.bind(operands[e.index])
        elif isinstance(e, Scalar):
            values[e] = constant(e.value)
        else:
            values[e] = k.bind(_call(k, e, [values[o] for o in e.operands]))
    return values[expr]


def _call(k: Kernel, e: Call, operands: list[Any]) -> Any:
    one, zero = constant(1), constant(0)
    if e.function in ("max", "min"):
        return _extreme(k, e, *operands)
    if e.function == "erf":
        return _erf(k, operands[0])
    if e.function in _TIR:
        return getattr(T, _TIR[e.function])(*operands)
    if e.function in _PLAIN:
        return _PLAIN[e.function](*operands)
    if e.function in _TESTS:
        return T.Select(_TESTS[e.function](*operands), one, zero)
    if e.function == "where":
        condition, yes, no = operands
        return T.Select(condition != zero, yes, no)
    if e.function == "sigmoid":
        return one / (one + T.exp(zero - operands[0]))
    if e.function == "sign":
        (x,) = operands
        return T.Select(x > zero, one, T.Select(x < zero, zero - one, x))
    raise AssertionError(f"no CUDA for the function {e.function}")


def _extreme(k: Kernel, e: Call, a: Any, b: Any) -> Any:
    """As NumPy: a NaN on either side wins, where fmaxf drops it."""
    if isinstance(e.operands[1], Scalar):
        return T.Select(b > a if e.function == "max" else b < a, b, a)
    return k.value(instructions.maximum if e.function == "max" else instructions.minimum, a, b)


def _erf(k: Kernel, x: Any) -> Any:
    """To 4e-7, absolutely: formula 7.1.26 of Abramowitz and Stegun, a third of erff's instructions."""
    size = k.bind(T.fabs(x))
    t = k.bind(k.value(instructions.reciprocal, constant(1) + constant(0.3275911) * size))
    total = constant(_ERF[0])
    for coefficient in _ERF[1:]:
        total = total * t + constant(coefficient)
    tail = k.value(instructions.exp2, size * size * constant(-1.4426950408889634))
    value = k.bind(constant(1) - total * t * tail)
    return T.Select(x < constant(0), constant(0) - value, value)


_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)

#: functions that TIR has, by their names there
_TIR = {
    "pow": "pow", "abs": "fabs", "exp": "exp", "log": "log", "sqrt": "sqrt", "rsqrt": "rsqrt", "tanh": "tanh",
    "floor": "floor", "ceil": "ceil", "round": "nearbyint", "sin": "sin", "cos": "cos",
}  # fmt: skip

_PLAIN: Mapping[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b, "neg": lambda a: -a,
}  # fmt: skip

_TESTS: Mapping[str, Callable[[Any, Any], Any]] = {
    "less": lambda a, b: a < b, "less_equal": lambda a, b: a <= b, "equal": lambda a, b: a == b,
}  # fmt: skip


def load(k: Kernel, array: Array, index: Any, lanes: int = 1) -> list[Any]:
    """``lanes`` neighbouring elements of a float dtype as float32 numbers, read at once.

    The address must be a multiple of their bytes.
    """
    if lanes == 1:
        value = array[index]
        return [k.bind(value if array.dtype == "float32" else T.cast(value, "float32"))]
    numbers = k.registers(lanes)
    if array.dtype == "float32":
        for part in range(0, lanes, 4):
            width = min(lanes, 4)
            numbers.put(part, array.vector(index + part, width), width)
    else:
        # as words: nvcc takes vectors of four halves apart
        count = lanes // 2
        words = k.registers(count, "uint32")
        words.put(0, k.words(array).vector(_halved(k, index), count), count)
        for i in range(count):
            pair = T.reinterpret(f"{array.dtype}x2", words[i])
            numbers.put(2 * i, T.cast(pair, "float32x2"), 2)
    return [numbers[i] for i in range(lanes)]


def store(k: Kernel, array: Array, index: Any, values: Sequence[Any]) -> None:
    """Store float32 numbers as neighbouring elements of the array's dtype, rounded to nearest, at once."""
    lanes = len(values)
    if lanes == 1:
        array.put(index, values[0] if array.dtype == "float32" else T.cast(values[0], array.dtype))
        return
    numbers = k.registers(lanes)
    for i, value in enumerate(values):
        numbers.put(i, value)
    if array.dtype == "float32":
        for part in range(0, lanes, 4):
            width = min(lanes, 4)
            array.put(index + part, numbers.vector(part, width), width)
    else:
        count = lanes // 2
        words = k.registers(count, "uint32")
        for i in range(count):
            pair = T.cast(numbers.vector(2 * i, 2), f"{array.dtype}x2")
            words.put(i, T.reinterpret("uint32", pair))
        k.words(array).put(_halved(k, index), words.vector(0, count), count)


def store_whole(k: Kernel, array: Array, index: Any, values: Sequence[Any]) -> None:
    """As :func:`store`, to global memory, and surely in one access: see ``instructions.store_quad``."""
    if array.dtype != "float32" or len(values) != 4:
        store(k, array, index, values)
        return
    quad = k.registers(4)
    for i, value in enumerate(values):
        quad.put(i, value)
    k.call(instructions.store_quad, array.pointer(index), quad.pointer())


def _halved(k: Kernel, index: Any) -> Any:
    """The word that an even element of two bytes begins."""
    return k.bind(index // 2)


def extra_pointers(problem: Problem) -> list[tuple[str, str]]:
    """The pointer parameters of a problem's extra arguments, in order."""
    return [(f"extra{i}", problem.dtype) for i in range(len(problem.extras))]


def finish(k: Kernel, problem: Problem, values: Sequence[Any], row: Any, offset: Any) -> list[Any]:
    """A layer's epilogue: bias, residual, activation.

    Args:
        k: the kernel.
        problem: whose epilogue.
        values: products, float32, of neighbours in y's memory: output features of a linear layer,
            positions of one output feature of a convolution.
        row: the (first) output feature.
        offset: the element of y, and of any extra of y's shape, that the first value goes to; where
            there are several, their address is a multiple of their bytes.

    Returns:
        as many values.
    """
    if problem.epilogue is None:
        return list(values)
    lanes = len(values)
    extras = [_extra(k, problem, i, row, offset, lanes) for i in range(len(problem.extras))]
    return [emit(k, problem.epilogue, [values[i], *(extra[i] for extra in extras)]) for i in range(lanes)]


def _extra(k: Kernel, problem: Problem, i: int, row: Any, offset: Any, lanes: int) -> list[Any]:
    array, kind = k[f"extra{i}"], problem.extras[i]
    if kind == "full":
        return load(k, array, offset, lanes)
    if kind == "row" and not problem.conv:
        return load(k, array, row, lanes)
    return load(k, array, row if kind == "row" else 0) * lanes

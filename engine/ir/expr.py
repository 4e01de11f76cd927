"""Elementwise expressions: what an elementwise node or a fused epilogue computes.

An expression is a tree of :class:`Arg` (the node's argument ``i``), :class:`Scalar` and
:class:`Call`.  Trees are frozen and compare by value; emitters and evaluators memoise on that,
so a shared subtree is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

#: function name -> number of operands; the whole vocabulary of elementwise code.
FUNCTIONS: Mapping[str, int] = {
    "add": 2, "sub": 2, "mul": 2, "div": 2, "max": 2, "min": 2, "pow": 2,
    "neg": 1, "abs": 1, "exp": 1, "log": 1, "sqrt": 1, "rsqrt": 1, "tanh": 1, "sigmoid": 1,
    "erf": 1, "floor": 1, "ceil": 1, "round": 1, "sign": 1, "sin": 1, "cos": 1,
    "less": 2, "less_equal": 2, "equal": 2, "where": 3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arg:
    """Operand ``index`` of the node (in a matmul's epilogue, 0 is the product itself)."""

    index: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A literal number."""

    value: float


@dataclass(frozen=True, slots=True)
class Call:
    """``function`` (a key of :data:`FUNCTIONS`) applied to operands; comparisons give 1 or 0."""

    function: str
    operands: tuple[Expr, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Hashing afresh would walk the whole tree, exponentially long where subtrees are shared.
        object.__setattr__(self, "_hash", hash((self.function, self.operands)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Call], tuple[str, tuple[Expr, ...]]]:
        return Call, (self.function, self.operands)  # string hashes differ between processes


Expr: TypeAlias = Arg | Scalar | Call


def call(function: str, *operands: Expr) -> Call:
    """Build a call, checking the name and the number of operands."""
    if FUNCTIONS.get(function) != len(operands):
        raise ValueError(f"elementwise function {function!r} does not take {len(operands)} operands")
    return Call(function, tuple(operands))


def relu(x: Expr) -> Expr:
    """``max(x, 0)``."""
    return call("max", x, Scalar(0.0))


def clip(x: Expr, low: float, high: float) -> Expr:
    """``min(max(x, low), high)``."""
    return call("min", call("max", x, Scalar(low)), Scalar(high))


def silu(x: Expr) -> Expr:
    """``x * sigmoid(x)``."""
    return call("mul", x, call("sigmoid", x))


def gelu(x: Expr) -> Expr:
    """The exact GELU, ``x/2 * (1 + erf(x/sqrt 2))`` (Hendrycks and Gimpel 2016)."""
    inner = call("add", Scalar(1.0), call("erf", call("mul", x, Scalar(0.5**0.5))))
    return call("mul", call("mul", x, Scalar(0.5)), inner)


def substitute(expr: Expr, replacements: Sequence[Expr]) -> Expr:
    """Replace every ``Arg(i)`` by ``replacements[i]``."""
    return rewrite(expr, lambda arg: replacements[arg.index])


def rewrite(expr: Expr, replace: Callable[[Arg], Expr]) -> Expr:
    """Rebuild a tree with every argument passed through ``replace`` (memoised by value)."""
    memo: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:
        if e not in memo:
            if isinstance(e, Arg):
                memo[e] = replace(e)
            elif isinstance(e, Call):
                memo[e] = Call(e.function, tuple(visit(o) for o in e.operands))
            else:
                memo[e] = e
        return memo[e]

    return visit(expr)


def arguments(expr: Expr) -> tuple[int, ...]:
    """The argument indices an expression reads, sorted."""
    return tuple(sorted({e.index for e in walk(expr) if isinstance(e, Arg)}))


def walk(expr: Expr) -> tuple[Expr, ...]:
    """Every distinct subtree, operands before the calls that use them."""
    seen: dict[Expr, None] = {}

    def visit(e: Expr) -> None:
        if e in seen:
            return
        if isinstance(e, Call):
            for operand in e.operands:
                visit(operand)
        seen[e] = None

    visit(expr)
    return tuple(seen)


def text(expr: Expr, names: Sequence[str] | None = None) -> str:
    """A readable form; ``names[i]`` stands for argument ``i``."""
    if isinstance(expr, Arg):
        return names[expr.index] if names else f"${expr.index}"
    if isinstance(expr, Scalar):
        return f"{expr.value:g}"
    return f"{expr.function}({', '.join(text(o, names) for o in expr.operands)})"

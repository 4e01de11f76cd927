"""interpreter_nodes: what the interpreter asks about TIR expressions before it runs them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.targets.cuda.interpreter.arithmetic import BINARY, UNARY
from sparsec.targets.cuda.interpreter.memory import numpy_type


def lanes_of(node: Any) -> tuple[np.dtype[Any], int]:
    """The element type of an expression and how many it has."""
    name, _, lanes = str(node.ty).partition("x")
    return numpy_type(name), int(lanes or 1)


def unrounded(base: Any, lanes: int) -> Any:
    """``base`` of ``base // lanes * lanes``: what a kernel promises to be a multiple is checked to be one."""
    rounded = type(base).__name__ == "Mul" and type(base.a).__name__ == "FloorDiv"
    if rounded and all(int(getattr(n, "value", 0)) == lanes for n in (base.b, base.a.b)):
        return base.a.a
    return base


def may_divide_by_zero(kind: str, node: Any) -> bool:
    """Whether it divides integers by what is no constant."""
    division = kind in ("Div", "Mod", "FloorDiv", "FloorMod") and lanes_of(node)[0].kind in "iu"
    return division and type(node.b).__name__ != "IntImm"


def harmless(node: Any) -> bool:
    """Whether evaluating it for threads that do not need it can do no harm: no memory, calls, or divisors."""
    kind = type(node).__name__
    if kind in ("Var", "IntImm", "FloatImm"):
        return True
    if kind in BINARY or kind in ("And", "Or"):
        return not may_divide_by_zero(kind, node) and harmless(node.a) and harmless(node.b)
    return (kind in UNARY and harmless(node.a)) or (kind == "Cast" and harmless(node.value))

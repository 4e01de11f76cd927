"""torch's arithmetic, in the type torch computes in.

TVM's converters make a number beside a tensor one of the tensor's type, so that 0.5 beside
integers becomes 0, take no integers where the result has fractions, and overlook ``alpha``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tvm import relax

from sparsec.errors import Unsupported

_NAMES = ("add", "sub", "rsub", "mul", "div", "remainder", "fmod", "eq", "ne", "lt", "le", "gt", "ge")
_OF_ONE = (
    "atan", "cos", "cosh", "erf", "exp", "expm1", "log", "log10", "log1p", "log2", "reciprocal", "rsqrt",
    "sigmoid", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
#: operators whose operands are of one type
ARITHMETIC: tuple[str, ...] = (
    *(f"{name}.{kind}" for name in _NAMES for kind in ("Tensor", "Scalar")),
    *(f"{name}.default" for name in ("atan2", "maximum", "minimum", *_OF_ONE)),
    "pow.Scalar", "pow.Tensor_Scalar", "pow.Tensor_Tensor",
)  # fmt: skip


def convert_arithmetic(importer: Any, node: Any) -> Any:
    """The Relax variable of an fx node, made by TVM of operands that all have the right type.

    Raises:
        Unsupported: a number times ``alpha``.
    """
    nodes = [a for a in node.args[:2] if isinstance(a, torch.fx.Node)]
    plain = [a.meta.get("val") if a in nodes else a for a in node.args[:2]]
    if not all(isinstance(p, torch.Tensor | int | float) for p in plain):
        return importer.theirs[node.target.__name__](node)
    made = node.meta["val"].dtype
    common = made if made.is_floating_point else torch.result_type(*plain)
    alpha = node.kwargs.get("alpha", 1)
    if alpha != 1 and node.args[1] not in nodes:
        raise Unsupported("alpha beside a number is not supported")
    operands = {a: _operand(importer, a, common, 1) for a in nodes}
    if alpha != 1:
        if nodes[0] is nodes[-1]:
            raise Unsupported("alpha beside a tensor and itself is not supported")
        operands[nodes[-1]] = _operand(importer, nodes[-1], common, alpha)
    return _converted(importer, node, operands)


def convert_whole_division(importer: Any, node: Any) -> Any:
    """``div`` with a rounding mode."""
    operands = [a for a in node.args[:2] if isinstance(a, torch.fx.Node)]
    dtype, emit = node.meta["val"].dtype, importer.block_builder.emit
    left, right = (
        _operand(importer, a, dtype, 1)
        if a in operands
        else relax.const(a, str(dtype).removeprefix("torch."))
        for a in node.args[:2]
    )
    if node.kwargs.get("rounding_mode") == "floor":
        return emit(relax.op.floor_divide(left, right))
    if not dtype.is_floating_point or node.kwargs.get("rounding_mode") is None:
        raise Unsupported("division of integers towards zero is not supported")
    return emit(relax.op.trunc(emit(relax.op.divide(left, right))))


def _operand(importer: Any, node: Any, dtype: torch.dtype, factor: float) -> Any:
    """A value in a type, times a factor."""
    value, emit = importer.env[node], importer.block_builder.emit
    name = str(dtype).removeprefix("torch.")
    if node.meta["val"].dtype != dtype:
        value = emit(relax.op.astype(value, name))
    return value if factor == 1 else emit(relax.op.multiply(value, relax.const(factor, name)))


def _converted(importer: Any, node: Any, operands: Mapping[Any, Any]) -> Any:
    """TVM's conversion of a node whose operands are, for once, these."""
    before = {a: importer.env[a] for a in operands}
    importer.env.update(operands)
    try:
        return importer.theirs[node.target.__name__](node)
    finally:
        importer.env.update(before)

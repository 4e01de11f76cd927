"""Questions about Relax calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import ir as tvm_ir
from tvm import relax

from sparsec.frontends.relax_types import dtype_of


def in_bounds(relax_call: Any) -> Any:
    """Gathers that clamp their indices: TVM's default reads outside the tensor for a wrong one."""
    if op_name(relax_call) != "relax.take":
        return relax_call
    data, indices = relax_call.args
    clamped = relax.op.take(data, indices, relax_call.attrs.axis, mode="clip")
    return tvm_ir.Call(clamped.op, clamped.args, clamped.attrs)


def legaliser(relax_call: Any) -> Callable[[Any, Any], Any] | None:
    op = relax_call.op
    if not isinstance(op, tvm_ir.Op) or not op.has_attr("FLegalize"):
        return None
    found: Callable[[Any, Any], Any] = op.get_attr("FLegalize")
    return found


def op_name(relax_call: Any) -> str:
    return str(getattr(relax_call.op, "name", type(relax_call.op).__name__))


def tensor_args(relax_call: Any) -> list[Any]:
    return [a for a in relax_call.args if isinstance(a.ty, relax.TensorType)]


def is_tensor(ty: Any, dtype: str) -> bool:
    return isinstance(ty, relax.TensorType) and dtype_of(ty) == dtype

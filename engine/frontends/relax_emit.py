"""Writing the nodes that one Relax call becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tvm import relax

from sparsec.frontends.relax_calls import is_tensor, tensor_args
from sparsec.ir.attributes import Attrs, ElementwiseAttrs, ReduceAttrs, TransposeAttrs
from sparsec.ir.dims import Size
from sparsec.ir.expr import Expr
from sparsec.ir.graph import Op
from sparsec.ir.types import Type

if TYPE_CHECKING:
    from sparsec.frontends.from_relax import Converter
    from sparsec.frontends.relax_values import Value

    #: gets the converter, the call and the name for its node; None for what the IR has no word for
    Rule = Callable[[Converter, Any, str], Value]


class Emitter:
    """Adds the nodes of one call; all but the last get a name of their own after the call's."""

    def __init__(self, converter: Converter, relax_call: Any, name: str) -> None:
        self.converter, self.call, self.name = converter, relax_call, name
        self.origin = converter.origin[1] or relax_call.op.name

    def shape(self, value: str) -> tuple[Size, ...]:
        """The shape of a node."""
        return self.converter.building.made[value].type.shape

    def result(self, op: Op, args: Sequence[str], attrs: Attrs = None) -> str:
        """The node of the call's own type and name."""
        building, type_ = self.converter.building, self.converter.type(self.call.ty)
        return building.add(self.name, op, args, type_, attrs, self.origin)

    def part(self, part: str, op: Op, args: Sequence[str], shape: Sequence[Size], attrs: Attrs = None) -> str:
        """A node on the way."""
        building = self.converter.building
        return building.add(f"{self.name}_{part}", op, args, Type(tuple(shape)), attrs, self.origin)

    def reshape(self, value: str, shape: Sequence[Size]) -> str:
        """The value in another shape; itself if it has it."""
        if self.shape(value) == tuple(shape):
            return value
        return self.part("view", Op.RESHAPE, (value,), shape)

    def transpose(self, value: str, *axes: int) -> str:
        """The value with its axes permuted."""
        shape = self.shape(value)
        return self.part("moved", Op.TRANSPOSE, (value,), [shape[a] for a in axes], TransposeAttrs(axes))

    def elementwise(self, expr: Expr, args: Sequence[str], shape: Sequence[Size]) -> str:
        """An expression over args."""
        return self.part("value", Op.ELEMENTWISE, args, shape, ElementwiseAttrs(expr))

    def mean(self, value: str, axes: tuple[int, ...]) -> str:
        """The mean over axes that stay as ones."""
        shape = [1 if i in axes else s for i, s in enumerate(self.shape(value))]
        return self.part("mean", Op.REDUCE, (value,), shape, ReduceAttrs("mean", axes, True))

    def finished(self, value: str) -> str:
        """The call's result: the value in the call's own shape."""
        if self.shape(value) == self.converter.type(self.call.ty).shape:
            return value
        return self.result(Op.RESHAPE, (value,))


def all_float32(relax_call: Any) -> bool:
    """Whether the arguments that are tensors, and the result, are float32 tensors."""
    types = [relax_call.ty, *(a.ty for a in tensor_args(relax_call))]
    return all(is_tensor(t, "float32") for t in types)


def sized(rule: Rule) -> Rule:
    """The rule, for calls whose arguments all have shapes; what was refused has none."""

    def guarded(converter: Converter, relax_call: Any, name: str) -> Value:
        for arg in _tensors(relax_call):
            known = converter.value(arg)
            rank = len(converter.building.made[known].type.shape) if isinstance(known, str) else None
            if arg.ty.shape is None or rank not in (None, len(arg.ty.shape.values)):
                return None
        return rule(converter, relax_call, name)

    return guarded


def _tensors(relax_call: Any) -> list[Any]:
    """The arguments that are tensors, also inside tuples."""
    inside = [f for a in relax_call.args if isinstance(a, relax.Tuple) for f in a.fields]
    return [a for a in (*relax_call.args, *inside) if isinstance(a.ty, relax.TensorType)]


def numbers(sizes: Sequence[Size]) -> bool:
    """Whether all sizes are known."""
    return all(isinstance(s, int) for s in sizes)


def ints(values: Any) -> tuple[int, ...]:
    """Relax's array of constants."""
    return tuple(int(v) for v in values)

"""Relax -> our graph: the one converter behind every frontend that uses TVM's importers.

Operators our IR has words for become nodes of ours; every other one is legalised by Relax, call
by call, to TIR functions that ``tir`` nodes carry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import tvm
from tvm import ir as tvm_ir
from tvm import relax

from sparsec.errors import Unsupported
from sparsec.frontends.relax_calls import in_bounds, is_tensor, legaliser, op_name, tensor_args
from sparsec.frontends.relax_dims import CanonicalSizes
from sparsec.frontends.relax_elementwise import COMPARISONS, FLOAT_RULES, LOGIC
from sparsec.frontends.relax_refusals import free_sizes, unsupported
from sparsec.frontends.relax_structure import STRUCTURE
from sparsec.frontends.relax_tir import tir_attrs
from sparsec.frontends.relax_types import type_of
from sparsec.frontends.relax_values import Building, Mask, Operands, Spread, Value
from sparsec.ir.attributes import ItemAttrs
from sparsec.ir.expr import Expr, Scalar
from sparsec.ir.expr import call as expr_call
from sparsec.ir.graph import Graph, Op, with_nodes
from sparsec.ir.types import Type
from sparsec.ir.verify import verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Imported:
    """What a Relax importer made of a model.

    ``weights`` are the parameters of ``main`` that are constants, by parameter name; ``origins``
    gives (operator, node name) in the source model for the variables that were named;
    ``output_names`` are the names users see; ``weight_names`` and ``size_names`` rename
    parameters and symbolic sizes.
    """

    module: Any
    weights: Mapping[str, Array]
    output_names: Sequence[str]
    origins: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    weight_names: Mapping[str, str] = field(default_factory=dict)
    size_names: Mapping[str, str] = field(default_factory=dict)


def from_relax(imported: Imported) -> Graph:
    """Convert ``main`` of a Relax module.

    Raises:
        Unsupported: one error that lists every operator that cannot be carried.
        ModelError: ``main`` is no straight-line function of tensors.
    """
    return Converter(imported).graph()


class Converter:
    """Walks the bindings of ``main``; ``values`` maps Relax variables to what they stand for."""

    def __init__(self, imported: Imported) -> None:
        self.imported = imported
        self.builder = relax.BlockBuilder(imported.module)
        self.building = Building()
        self.values: dict[Any, Value] = {}
        self.sizes = CanonicalSizes(imported.size_names)
        self.failures: list[tuple[str, str, str]] = []
        self.origin = ("", "")
        self.source = ""

    def graph(self) -> Graph:
        """Convert everything, then raise or return."""
        main = self.imported.module["main"]
        for param in main.params:
            self.values[param] = self._parameter(param)
        bindings = [b for block in main.body.blocks for b in block.bindings]
        for binding, origin in zip(bindings, _origins(bindings, self.imported.origins), strict=True):
            self.origin = origin
            self._bind(binding)
        if self.failures:
            raise unsupported(self.failures, free_sizes(main.params))
        outputs = self._outputs(main.body.body)
        building = self.building
        empty = Graph((), outputs, tuple(self.imported.output_names))
        return verify(with_nodes(empty, building.nodes, building.consts))

    def _parameter(self, param: Any) -> Value:
        name = str(param.name)
        if name in self.imported.weights:
            shown = self.imported.weight_names.get(name, name)
            return self.building.add_const(shown, np.asarray(self.imported.weights[name]))
        return self.building.add(name, Op.INPUT, (), self.type(param.ty))

    def _outputs(self, result: Any) -> tuple[str, ...]:
        value = self.value(result)
        parts = value if isinstance(value, tuple) else (value,)
        return tuple(self.stored(p) for p in parts)

    # -- bindings

    def _bind(self, binding: Any) -> None:
        var, value = binding.var, binding.value
        name, origin = str(var.name), self.origin[1]
        try:
            if isinstance(binding, relax.MatchCast):
                raise Unsupported("a shape that depends on the data")
            self.values[var] = self.convert(value, name)
        except (Unsupported, tvm.error.InternalError) as refused:
            self._fail(value, str(refused).strip().splitlines()[-1])
            self.values[var] = self._placeholder(var.ty, name, origin)

    def convert(self, value: Any, name: str) -> Value:
        """What the right-hand side of a binding stands for."""
        if isinstance(value, relax.If):
            raise Unsupported("branches are not supported; export the model with the condition fixed")
        if isinstance(value, tvm_ir.Call):
            return self._call(value, name)
        return self.value(value)

    def _fail(self, value: Any, reason: str) -> None:
        operator, node = self.origin
        called = getattr(getattr(value, "op", None), "name", type(value).__name__)
        self.failures.append((operator or str(called), node, reason))

    def _placeholder(self, ty: Any, name: str, origin: str) -> Value:
        """A stand-in for a refused value, so that the rest of the model is still examined."""
        if isinstance(ty, relax.TupleType):
            return tuple(self._placeholder(f, name, origin) for f in ty.fields)
        return self.building.add(name, Op.INPUT, (), Type(()), None, origin)

    # -- values

    def value(self, expr: Any) -> Value:
        """What a Relax leaf expression stands for."""
        if isinstance(expr, relax.Var):
            known: Value = self.values[expr]
            return known
        if isinstance(expr, tvm_ir.GenericConst):
            return self.building.add_literal(expr.value.numpy())
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(f) for f in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            parts = self.value(expr.tuple_value)
            assert isinstance(parts, tuple)
            return parts[int(expr.index)]
        if isinstance(expr, relax.ShapeExpr):
            return None
        raise Unsupported(f"an expression of kind {type(expr).__name__}")

    def node(self, expr: Any) -> str:
        """The node that holds a tensor."""
        return self.stored(self.value(expr))

    def stored(self, value: Value) -> str:
        """The node that holds a value; masks and broadcasts are computed as tensors only here."""
        if isinstance(value, Mask | Spread):
            found = self._legalise(value.call, "mask" if isinstance(value, Mask) else "broadcast")
            assert isinstance(found, str)
            return found
        if not isinstance(value, str):
            raise Unsupported("a shape used as a tensor")
        return value

    def type(self, ty: Any) -> Type:
        """A Relax type as ours, in the model's own sizes."""
        return self.sizes.restore(type_of(ty))

    # -- calls

    def _call(self, relax_call: Any, name: str) -> Value:
        op = op_name(relax_call)
        if op == "relax.call_tir":
            return self._call_tir(relax_call, name)
        if op == "relax.broadcast_to" and any(is_tensor(relax_call.ty, d) for d in ("float32", "bool")):
            return self._spread(relax_call)
        for attempt in (self._elementwise, self._mask, self._where, self._structure):
            found = attempt(op, relax_call, name)
            if found is not None:
                return found
        return self._legalise(relax_call, name)

    def _elementwise(self, op: str, relax_call: Any, name: str) -> Value:
        rule = FLOAT_RULES.get(op)
        if rule is None or not self._floats(relax_call) or not is_tensor(relax_call.ty, "float32"):
            return None
        operands, tensors = Operands(), tensor_args(relax_call)
        shape = type_of(relax_call.ty).shape
        # another operand that already has the result's shape makes an explicit broadcast needless
        implied = any(type_of(a.ty).shape == shape and not isinstance(self.value(a), Spread) for a in tensors)
        expr = rule(relax_call, [self._operand(operands, a, len(shape), implied) for a in tensors])
        return self._emit(expr, operands, relax_call, name)

    def _emit(self, expr: Expr, operands: Operands, relax_call: Any, name: str) -> Value:
        if not operands.names:
            return None
        type_ = self.type(relax_call.ty)
        return self.building.elementwise(
            name, expr, operands.names, type_, self.origin[1] or op_name(relax_call)
        )

    def _mask(self, op: str, relax_call: Any, name: str) -> Value:
        operands = Operands()
        if op in COMPARISONS and self._floats(relax_call):
            rank = len(type_of(relax_call.ty).shape)
            parts = [self._operand(operands, a, rank) for a in relax_call.args]
            return Mask(COMPARISONS[op](relax_call, parts), tuple(operands.names), relax_call)
        masks = [self.value(a) for a in relax_call.args] if op in LOGIC else []
        if masks and all(isinstance(m, Mask) for m in masks):
            parts = [operands.mask(m) for m in masks if isinstance(m, Mask)]
            return Mask(LOGIC[op](relax_call, parts), tuple(operands.names), relax_call)
        return None

    def _where(self, op: str, relax_call: Any, name: str) -> Value:
        if op not in ("relax.where", "relax.astype") or not is_tensor(relax_call.ty, "float32"):
            return None
        if op == "relax.astype" and is_tensor(relax_call.args[0].ty, "float32"):
            return self.value(relax_call.args[0])
        mask = self.value(relax_call.args[0])
        stored = isinstance(mask, str | Spread) and is_tensor(relax_call.args[0].ty, "bool")
        if not isinstance(mask, Mask) and (not stored or op == "relax.astype"):
            return None
        operands, shape = Operands(), type_of(relax_call.ty).shape
        ways = relax_call.args[1:]
        # as for other elementwise operators: what already has the result's shape does the broadcasting
        implied = any(type_of(a.ty).shape == shape and isinstance(self.value(a), str) for a in ways)
        if isinstance(mask, Mask):
            expr = operands.mask(mask)
        else:
            expr = self._operand(operands, relax_call.args[0], len(shape), implied)
        if op == "relax.where":
            expr = expr_call("where", expr, *(self._operand(operands, a, len(shape), implied) for a in ways))
        return self._emit(expr, operands, relax_call, name)

    def _spread(self, relax_call: Any) -> Value:
        value = self.value(relax_call.args[0])
        source = value.source if isinstance(value, Spread) else self.stored(value)
        same = type_of(relax_call.args[0].ty) == type_of(relax_call.ty)
        return value if same else Spread(source, relax_call)

    def _structure(self, op: str, relax_call: Any, name: str) -> Value:
        rule = STRUCTURE.get(op)
        return rule(self, relax_call, name) if rule else None

    def _operand(self, operands: Operands, arg: Any, rank: int, implied: bool = False) -> Expr:
        if isinstance(arg, tvm_ir.GenericConst):
            array = arg.value.numpy()
            if array.size == 1 and array.ndim <= rank:
                return Scalar(float(array.reshape(())))
        value = self.value(arg)
        if implied and isinstance(value, Spread):
            return operands.node(value.source)
        return operands.node(self.stored(value))

    def _floats(self, relax_call: Any) -> bool:
        tensors = tensor_args(relax_call)
        return bool(tensors) and all(is_tensor(t.ty, "float32") for t in tensors)

    # -- everything else becomes TIR

    def _legalise(self, relax_call: Any, name: str) -> Value:
        op = op_name(relax_call)
        legalise = legaliser(relax_call)
        if legalise is None:
            raise Unsupported(f"Relax cannot lower {op}")
        plain, renamed = self.sizes.canonical_call(in_bounds(relax_call))
        for fresh, original in renamed:
            self.values[fresh] = self.value(original)
        bindings = self._lower(op, plain, legalise)
        if any(op_name(b.value) == op for b in bindings if isinstance(b.value, tvm_ir.Call)):
            raise Unsupported(f"Relax cannot lower {op} for these shapes")
        outer, self.source = self.source, op
        try:
            for binding in bindings:
                self.values[binding.var] = result = self.convert(binding.value, name)
        finally:
            self.source = outer
        return result

    def _lower(self, op: str, relax_call: Any, legalise: Callable[[Any, Any], Any]) -> list[Any]:
        builder = self.builder
        builder._begin_dataflow_block()
        try:
            builder.emit(legalise(builder, builder.normalize(relax_call)))
        except Exception as failure:
            first = str(failure).strip().splitlines()[-1:] or [type(failure).__name__]
            raise Unsupported(f"Relax cannot lower {op}: {first[0]}") from failure
        finally:
            block = builder._end_block()
        return list(block.bindings)

    def _call_tir(self, relax_call: Any, name: str) -> Value:
        target = relax_call.args[0]
        source = self.source or f"relax.{str(target.name_hint).rstrip('0123456789')}"
        operands = list(relax_call.args[1].fields)
        if len(relax_call.args) > 2 or any(not isinstance(a.ty, relax.TensorType) for a in operands):
            raise Unsupported(f"{source} needs sizes that its arguments' shapes do not give")
        outputs = self._output_types(relax_call.ty)
        function = self.builder.get()[target]
        attrs = tir_attrs(source, function, outputs)
        args = [self.node(a) for a in operands]
        made = self.building.add(name, Op.TIR, args, outputs[0], attrs, self.origin[1] or source)
        if not isinstance(relax_call.ty, relax.TupleType):
            return made
        return tuple(self._item(made, i, type_) for i, type_ in enumerate(outputs))

    def _output_types(self, ty: Any) -> tuple[Type, ...]:
        fields = ty.fields if isinstance(ty, relax.TupleType) else [ty]
        return tuple(self.type(f) for f in fields)

    def _item(self, made: str, index: int, type_: Type) -> str:
        return self.building.add(f"{made}_{index}", Op.ITEM, (made,), type_, ItemAttrs(index), self.origin[1])


def _origins(bindings: Sequence[Any], known: Mapping[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """Each binding's source node; unnamed ones belong to the next named one (importers emit them first)."""
    found: list[tuple[str, str]] = []
    current = ("", "")
    for binding in reversed(bindings):
        current = known.get(str(binding.var.name), current)
        found.append(current)
    return found[::-1]

"""interpreter_expressions: TIR expressions as functions of a machine, made once and called again and again.

An expression becomes a function that returns an array which broadcasts to ``[blocks, threads]``, with a
last axis of lanes for vectors (of length one where all lanes are equal); an address a :class:`Pointer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsec.targets.cuda.instructions import Instruction
from sparsec.targets.cuda.interpreter.arithmetic import BINARY, CALLS, UNARY, cast
from sparsec.targets.cuda.interpreter.machine import Machine
from sparsec.targets.cuda.interpreter.memory import InterpreterError, Memory, Pointer, Values, numpy_type
from sparsec.targets.cuda.interpreter.nodes import harmless, lanes_of, may_divide_by_zero, unrounded

Evaluate = Callable[[Machine], Any]


def owned(value: Any) -> Any:
    """The value, copied if it is part of memory that may change."""
    return np.array(value) if isinstance(value, np.ndarray) and not value.flags.owndata else value


@dataclass
class Expressions:
    """Makes functions of expressions; knows which slot of the machine holds which variable and memory."""

    instructions: Mapping[str, Instruction]
    slots: dict[int, int] = field(default_factory=dict)

    def slot(self, variable: Any) -> int:
        """The slot of a variable, a new one the first time."""
        return self.slots.setdefault(hash(variable), len(self.slots))

    def alias(self, variable: Any, other: Any) -> None:
        """A second name of what another variable stands for."""
        self.slots[hash(variable)] = self.known(other)

    def known(self, variable: Any) -> int:
        """The slot of a variable that was met before."""
        if hash(variable) not in self.slots:
            raise InterpreterError(f"{variable} is used outside its scope")
        return self.slots[hash(variable)]

    def make(self, node: Any) -> Evaluate:
        """The function of an expression.

        Raises:
            InterpreterError: it has a node the interpreter does not know.
        """
        kind = type(node).__name__
        if kind in BINARY:
            return self._binary(kind, node)
        if kind in UNARY:
            return self._unary(UNARY[kind], node.a)
        maker = getattr(self, f"_make_{kind.lower()}", None)
        if maker is None:
            raise InterpreterError(f"the interpreter does not know {kind}: {node}")
        made: Evaluate = maker(node)
        return made

    def _binary(self, kind: str, node: Any) -> Evaluate:
        a, b, function = self.make(node.a), self.make(node.b), BINARY[kind]
        if may_divide_by_zero(kind, node):
            return self._division(function, a, b, node)
        return lambda machine: function(a(machine), b(machine))

    @staticmethod
    def _division(function: Callable[..., Values], a: Evaluate, b: Evaluate, node: Any) -> Evaluate:
        def divided(machine: Machine) -> Values:
            by = b(machine)
            machine.refuse(by == 0, lambda where: f"division by zero in {node}")
            return function(a(machine), by)

        return divided

    def _both(self, function: Callable[..., Values], node: Any) -> Evaluate:
        a, b = self.make(node.a), self.make(node.b)
        return lambda machine: function(a(machine), b(machine))

    def _unary(self, function: Callable[..., Values], operand: Any) -> Evaluate:
        a = self.make(operand)
        return lambda machine: function(a(machine))

    # -- leaves

    @staticmethod
    def _make_intimm(node: Any) -> Evaluate:
        value = np.full((1, 1), int(node.value), lanes_of(node)[0])
        return lambda machine: value

    @staticmethod
    def _make_floatimm(node: Any) -> Evaluate:
        value = np.full((1, 1), float(node.value), lanes_of(node)[0])
        return lambda machine: value

    @staticmethod
    def _make_stringimm(node: Any) -> Evaluate:
        text = str(node.value)
        return lambda machine: text

    def _make_var(self, node: Any) -> Evaluate:
        slot = self.known(node)
        return lambda machine: machine.slots[slot]

    # -- choices: what is not taken is not evaluated by those who do not take it

    def _chosen(self, condition: Evaluate, then: Evaluate, otherwise: Evaluate) -> Evaluate:
        def choose(machine: Machine) -> Values:
            holds = condition(machine)
            if holds.size == 1:
                return np.asarray(then(machine) if holds.item() else otherwise(machine))
            before = machine.mask
            machine.mask = machine.narrowed(holds)
            yes = then(machine)
            machine.mask = before
            machine.mask = machine.narrowed(~holds)
            no = otherwise(machine)
            machine.mask = before
            return _either(holds, yes, no)

        return choose

    def _make_and(self, node: Any) -> Evaluate:
        if harmless(node.b):
            return self._both(np.logical_and, node)
        false = np.zeros((1, 1), np.bool_)
        return self._chosen(self.make(node.a), self.make(node.b), lambda machine: false)

    def _make_or(self, node: Any) -> Evaluate:
        if harmless(node.b):
            return self._both(np.logical_or, node)
        true = np.ones((1, 1), np.bool_)
        return self._chosen(self.make(node.a), lambda machine: true, self.make(node.b))

    def _make_select(self, node: Any) -> Evaluate:
        parts = [self.make(n) for n in (node.condition, node.true_value, node.false_value)]

        def select(machine: Machine) -> Values:
            holds, yes, no = (part(machine) for part in parts)
            return _either(holds, yes, no)

        return select

    # -- types and vectors

    def _make_cast(self, node: Any) -> Evaluate:
        value, kind = self.make(node.value), lanes_of(node)[0]
        return lambda machine: cast(value(machine), kind)

    def _make_broadcast(self, node: Any) -> Evaluate:
        value = self.make(node.value)
        return lambda machine: value(machine)[..., None]

    def _make_ramp(self, node: Any) -> Evaluate:
        base, stride = self.make(node.base), self.make(node.stride)
        steps = np.arange(int(node.lanes)).astype(lanes_of(node)[0])
        return lambda machine: base(machine)[..., None] + stride(machine)[..., None] * steps

    def _make_shuffle(self, node: Any) -> Evaluate:
        parts = [(self.make(vector), lanes_of(vector)[1]) for vector in node.vectors]
        wanted = [int(index.value) for index in node.indices]

        def shuffle(machine: Machine) -> Values:
            lanes = []
            for part, count in parts:
                value = part(machine)
                value = value if value.ndim == 3 else value[..., None]
                lanes += [value[..., min(i, value.shape[2] - 1)] for i in range(count)]
            if len(wanted) == 1:
                return np.asarray(lanes[wanted[0]])
            return np.stack(np.broadcast_arrays(*(lanes[i] for i in wanted)), axis=-1)

        return shuffle

    def _make_let(self, node: Any) -> Evaluate:
        value = self.make(node.value)
        slot = self.slot(node.var)
        body = self.make(node.body)

        def let(machine: Machine) -> Any:
            machine.slots[slot] = owned(value(machine))
            return body(machine)

        return let

    # -- memory

    def _make_tensorload(self, node: Any) -> Evaluate:
        access = self.access(node.source, node.indices)

        def load(machine: Machine) -> Values:
            memory, index, kind, lanes = access(machine)
            got = memory.load(machine, index, kind, lanes)
            if memory is machine.shared:
                machine.reads(memory, index, kind.itemsize, lanes or 1)
            return got

        return load

    def access(
        self, buffer: Any, indices: Any
    ) -> Callable[[Machine], tuple[Memory, Values, np.dtype[Any], int | None]]:
        """What an access of a buffer touches: its memory, the first element, the type, the number if many."""
        if len(indices) != 1:
            raise InterpreterError(f"{buffer.name} has {len(indices)} axes: kernels index memory by one")
        slot, kind = self.known(buffer), numpy_type(str(buffer.dtype))
        index = indices[0]
        lanes: int | None = None
        if type(index).__name__ == "Ramp" and int(getattr(index.stride, "value", 0)) == 1:
            lanes = int(index.lanes)
            index = unrounded(index.base, lanes)
        at = self.make(index)
        return lambda machine: (machine.slots[slot], at(machine), kind, lanes)

    # -- calls

    def _make_call(self, node: Any) -> Evaluate:
        name = str(node.op.name).partition(".")[2]
        if name == "if_then_else":
            return self._chosen(*(self.make(a) for a in node.args))
        if name == "address_of":
            return self._address(node.args[0])
        if name == "reinterpret":
            return self._reinterpret(node)
        if name == "tvm_storage_sync":
            return self._barrier(node)
        if name == "cuda.func_call":
            return self._instruction(node)
        if name not in CALLS:
            raise InterpreterError(f"the interpreter does not know the call {node}")
        arguments, function = [self.make(a) for a in node.args], CALLS[name]
        return lambda machine: function(*(a(machine) for a in arguments))

    def _address(self, load: Any) -> Evaluate:
        access = self.access(load.source, load.indices)

        def address(machine: Machine) -> Pointer:
            memory, index, kind, _ = access(machine)
            return Pointer(machine, memory, index, kind)

        return address

    def _reinterpret(self, node: Any) -> Evaluate:
        value = self.make(node.args[0])
        (source, count), (kind, lanes) = lanes_of(node.args[0]), lanes_of(node)
        if source.itemsize * count != kind.itemsize * lanes:
            raise InterpreterError(f"{node} changes the number of bits")

        def reinterpret(machine: Machine) -> Values:
            got = value(machine)
            if source.itemsize == kind.itemsize:
                return np.ascontiguousarray(got).view(kind)
            whole = np.broadcast_to(got if count > 1 else got[..., None], (*got.shape[:2], count))
            seen = np.ascontiguousarray(whole).view(kind)
            return seen if lanes > 1 else seen[..., 0]

        return reinterpret

    @staticmethod
    def _barrier(node: Any) -> Evaluate:
        scope = str(node.args[0].value)
        if scope not in ("shared", "shared.dyn"):
            raise InterpreterError(f"TVM writes no code for a barrier of {scope}: call syncwarp")
        return lambda machine: machine.sync_block()

    def _instruction(self, node: Any) -> Evaluate:
        name = str(node.args[0].value)
        if name not in self.instructions:
            raise InterpreterError(f"no instruction {name} is known here: pass it in `instructions`")
        meaning, kind = self.instructions[name].meaning, lanes_of(node)[0] if str(node.ty) else None
        arguments = [self.make(a) for a in node.args[1:] if type(a).__name__ != "StringImm"]

        def call(machine: Machine) -> Any:
            given = [_spread(machine, argument(machine)) for argument in arguments]
            result = meaning(machine, *given)
            if kind is None:
                return result
            value = np.asarray(result)
            return value.astype(kind, copy=False) if value.ndim >= 2 else np.full((1, 1), value, kind)

        return call


def _spread(machine: Machine, value: Any) -> Any:
    """An argument as instructions get it: one value a thread, that no store changes."""
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return np.broadcast_to(owned(value), machine.shape)
    return owned(value)


def _either(holds: Values, yes: Values, no: Values) -> Values:
    """One of two scalars or vectors, where one condition counts for all lanes."""
    wide = max(yes.ndim, no.ndim) > holds.ndim
    return np.asarray(np.where(holds[..., None] if wide else holds, yes, no))

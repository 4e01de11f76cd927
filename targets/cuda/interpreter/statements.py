"""interpreter_statements: TIR statements as functions of a machine, made once and run again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsec.targets.cuda.interpreter.expressions import Expressions, owned
from sparsec.targets.cuda.interpreter.machine import Machine
from sparsec.targets.cuda.interpreter.memory import InterpreterError, numpy_type
from sparsec.targets.cuda.interpreter.nodes import lanes_of

Execute = Callable[[Machine], None]
#: a loop that long is taken for endless
_ENDLESS = 1 << 20


class Statements:
    """Makes functions of statements."""

    def __init__(self, expressions: Expressions) -> None:
        self.expressions = expressions
        self.register_bytes = 0

    def make(self, node: Any) -> Execute:
        kind = type(node).__name__
        maker = getattr(self, f"_make_{kind.lower()}", None)
        if maker is None:
            raise InterpreterError(f"the interpreter does not know the statement {kind}: {node}")
        made: Execute = maker(node)
        return made

    def _make_seqstmt(self, node: Any) -> Execute:
        steps = [self.make(step) for step in node.seq]

        def sequence(machine: Machine) -> None:
            for step in steps:
                step(machine)

        return sequence

    def _make_evaluate(self, node: Any) -> Execute:
        value = self.expressions.make(node.value)

        def evaluate(machine: Machine) -> None:
            value(machine)

        return evaluate

    def _make_attrstmt(self, node: Any) -> Execute:
        if str(node.attr_key) != "thread_extent":
            return self.make(node.body)
        tag, slot = str(node.node.thread_tag), self.expressions.slot(node.node.var)
        kind = lanes_of(node.node.var)[0]
        if tag not in ("blockIdx.x", "threadIdx.x"):
            raise InterpreterError(f"grids and blocks have one axis; this kernel asks for {tag}")
        body = self.make(node.body)

        def launched(machine: Machine) -> None:
            blocks, threads = machine.shape
            if tag == "blockIdx.x":
                machine.slots[slot] = np.arange(machine.first, machine.first + blocks).astype(kind)[:, None]
            else:
                machine.slots[slot] = np.arange(threads).astype(kind)[None, :]
            body(machine)

        return launched

    # -- memory

    def _make_allocbuffer(self, node: Any) -> Execute:
        buffer, slot = node.buffer, self.expressions.slot(node.buffer)
        scope = str(buffer.scope())
        if scope == "shared.dyn":

            def share(machine: Machine) -> None:
                machine.slots[slot] = machine.shared

            return share
        if scope != "local":
            raise InterpreterError(f"the interpreter does not know memory of scope {scope}")
        nbytes = int(np.prod([int(n) for n in buffer.shape])) * numpy_type(str(buffer.dtype)).itemsize
        self.register_bytes += -(-nbytes // 16) * 16

        def allocate(machine: Machine) -> None:
            machine.slots[slot] = machine.registers(slot, nbytes)

        return allocate

    def _make_declbuffer(self, node: Any) -> Execute:
        data = node.data
        source = data.args[0] if type(data).__name__ == "Call" else data
        self.expressions.alias(node.buffer, source)
        return lambda machine: None

    def _make_bufferstore(self, node: Any) -> Execute:
        value, access = self.expressions.make(node.value), self.expressions.access(node.buffer, node.indices)

        def store(machine: Machine) -> None:
            what = value(machine)
            memory, index, kind, lanes = access(machine)
            if what.dtype != kind:
                raise InterpreterError(
                    f"{memory.name}: a {what.dtype} is stored into elements of type {kind}"
                )
            memory.store(machine, index, what, lanes)
            if memory is machine.shared:
                machine.writes(memory, index, kind.itemsize, lanes or 1)

        return store

    def _make_bind(self, node: Any) -> Execute:
        value, slot = self.expressions.make(node.value), self.expressions.slot(node.var)

        def bind(machine: Machine) -> None:
            machine.slots[slot] = owned(value(machine))

        return bind

    # -- control flow

    def _make_ifthenelse(self, node: Any) -> Execute:
        condition, then = self.expressions.make(node.condition), self.make(node.then_case)
        otherwise = None if node.else_case is None else self.make(node.else_case)

        def choose(machine: Machine) -> None:
            holds = condition(machine)
            for case, taken in ((then, holds), (otherwise, None)):
                if case is not None:
                    with machine.only(~holds if taken is None else taken):
                        if machine.any_active():
                            case(machine)

        return choose

    def _make_for(self, node: Any) -> Execute:
        start, extent = self.expressions.make(node.min), self.expressions.make(node.extent)
        slot, kind = self.expressions.slot(node.loop_var), lanes_of(node.loop_var)[0]
        body = self.make(node.body)
        if int(getattr(node.step, "value", 1)) != 1:
            raise InterpreterError("loops step by one")

        def loop(machine: Machine) -> None:
            first, count = start(machine), extent(machine)
            if count.size > 1 and machine.mask is not None:
                count = np.where(machine.mask, count, 0)
            for step in range(max(0, int(count.max()))):
                machine.slots[slot] = (first + kind.type(step)).astype(kind, copy=False)
                with machine.only(count > step):
                    body(machine)

        return loop

    def _make_while(self, node: Any) -> Execute:
        condition, body = self.expressions.make(node.condition), self.make(node.body)

        def loop(machine: Machine) -> None:
            before = machine.mask
            try:
                for _ in range(_ENDLESS):
                    machine.mask = machine.narrowed(condition(machine))
                    if not machine.any_active():
                        return
                    body(machine)
                raise InterpreterError(f"a loop has not ended after {_ENDLESS} turns: while {node.condition}")
            finally:
                machine.mask = before

        return loop

"""retelling: statements of an operator carried as TIR, emitted again inside a kernel of ours.

Tensors become the kernel's pointers and get one index; blocks become their bodies; a reduction adds up in
registers.  Names stand for whatever they are bound to, so that nothing of the old function is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.ir.prim.expr import BinaryOpExpr, CmpExpr, LogicalExpr
from tvm.s_tir.stmt import SBlockRealize
from tvm.script.ir_builder import tirx as T

from sparsec.errors import Unsupported
from sparsec.targets.cuda.builder import Array, Kernel, int64
from sparsec.targets.cuda.instructions import Instruction
from sparsec.targets.cuda.leftover.nests import is_true, walk

#: elements a block may keep to itself, in its thread's local memory
_MOST_LOCAL = 4096

#: functions of C's library that TVM writes no CUDA for, or that operators call by name, and what they are
_LIBRARY: Mapping[str, Callable[..., Any]] = {
    "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan,
    "atan2": np.arctan2, "atanh": np.arctanh, "ceil": np.ceil, "cos": np.cos, "cosh": np.cosh,
    "exp": np.exp, "exp2": np.exp2, "floor": np.floor, "fmod": np.fmod, "hypot": np.hypot, "log": np.log,
    "log10": np.log10, "log1p": np.log1p, "log2": np.log2, "nearbyint": np.rint, "pow": np.power,
    "rint": np.rint, "sin": np.sin, "sinh": np.sinh, "sqrt": np.sqrt, "tan": np.tan, "tanh": np.tanh,
    "trunc": np.trunc,
}  # fmt: skip
_TWO = ("atan2", "fmod", "hypot", "pow")
#: of these TVM writes calls itself
_WRITTEN = (
    "ceil", "cos", "exp", "exp2", "floor", "log", "log10", "log2", "nearbyint", "pow", "sin", "sqrt", "tanh",
    "trunc",
)  # fmt: skip


#: dtype -> its name in C, and how functions of C's library for it end
_C_TYPES: Mapping[str, tuple[str, str]] = {"float32": ("float", "f"), "float64": ("double", "")}


class Retelling:
    """Emits statements into a kernel; ``arrays`` by buffer, ``values`` by name."""

    def __init__(self, k: Kernel, arrays: Mapping[Any, Array], values: Mapping[Any, Any]) -> None:
        self.k = k
        self._arrays = dict(arrays)
        self._values = dict(values)
        #: buffers of which the thread holds the one element it works on
        self._held: dict[Any, Array] = {}

    def name(self, var: Any, value: Any) -> None:
        """Let a name of the function stand for a value."""
        self._values[var] = value

    def nest(self, serial: Sequence[Any], body: Any) -> None:
        """Loops around a statement."""
        if _reduces(serial, body):
            self._reduction(serial, body)
            return
        with self.loops(serial):
            self.statement(body)

    @contextmanager
    def loops(self, loops: Sequence[Any]) -> Iterator[None]:
        """Loops inside each other."""
        with ExitStack() as opened:
            for loop in loops:
                extent = self.value(loop.extent)
                index = opened.enter_context(T.serial(tirx.IntImm(extent.ty.dtype, 0), extent))
                self.name(loop.loop_var, index + self.value(loop.min))
            yield

    def statement(self, s: Any) -> None:
        """A statement.

        Raises:
            Unsupported: it is of a kind no kernel is made of.
        """
        rule = _STATEMENTS.get(type(s).__name__)
        if rule is None:
            raise Unsupported(f"TIR's {type(s).__name__}")
        rule(self, s)

    def value(self, e: Any) -> Any:
        """An expression.

        Raises:
            Unsupported: it calls what a GPU has not.
        """
        if isinstance(e, tirx.Var):
            return self._values[e]
        if isinstance(e, TensorLoad):
            held = self._held.get(e.source)
            return held[0] if held else self._arrays[e.source][self._place(e.source, e.indices)]
        if isinstance(e, BinaryOpExpr | CmpExpr | LogicalExpr) and hasattr(e, "b"):
            return type(e)(self.value(e.a), self.value(e.b))
        if isinstance(e, tirx.Cast):
            return T.cast(self.value(e.value), e.ty.dtype)
        if isinstance(e, tirx.Select):
            return T.Select(self.value(e.condition), self.value(e.true_value), self.value(e.false_value))
        if isinstance(e, tirx.Not):
            return tirx.Not(self.value(e.a))
        return self._call(e) if isinstance(e, tvm.ir.Call) else e

    def _call(self, e: Any) -> Any:
        name, args = str(e.op.name).removeprefix("tirx."), [self.value(a) for a in e.args]
        dtype = str(e.ty.dtype)
        if name == "call_pure_extern" and (function := _in_library(str(args[0].value), dtype)):
            return self.k.value(library(function, dtype), *args[1:])
        if "packed" in name or "extern" in name:
            raise Unsupported(f"a call of {args[0] if args else name} by {name}, which no GPU has")
        if name in _LIBRARY and name not in _WRITTEN and dtype in _C_TYPES:
            return self.k.value(library(name, dtype), *args)
        return tvm.ir.Call(e.op, args, e.attrs, e.ty_args, ret_ty=e.ty)

    def _place(self, buffer: Any, indices: Any) -> Any:
        """Where an element is in the memory of a row-major tensor."""
        if len(buffer.strides):
            raise Unsupported("a tensor with distances of its own")
        at: Any = tirx.IntImm("int64", 0)
        for index, size in zip(indices, buffer.shape, strict=True):
            at = at * int64(self.value(size)) + int64(self.value(index))
        return at

    def store(self, s: Any) -> None:
        """``buffer[indices] = value``."""
        held = self._held.get(s.buffer)
        if held:
            held.put(0, self.value(s.value))
        else:
            self._arrays[s.buffer].put(self._place(s.buffer, s.indices), self.value(s.value))

    def branch(self, s: Any) -> None:
        """``if``, with or without ``else``."""
        with T.If(self.value(s.condition)):
            with T.Then():
                self.statement(s.then_case)
            if s.else_case is not None:
                with T.Else():
                    self.statement(s.else_case)

    def repeat(self, s: Any) -> None:
        """``while``."""
        with T.While(self.value(s.condition)):
            self.statement(s.body)

    def own(self, buffer: Any) -> None:
        """A tensor of the thread's own."""
        count = 1
        for size in buffer.shape:
            if not isinstance(size, tirx.IntImm):
                raise Unsupported("a tensor of a block's own with a size only known at run time")
            count *= int(size.value)
        if count > _MOST_LOCAL:
            raise Unsupported(f"{count} elements for a thread of its own")
        self._arrays[buffer] = self.k.registers(max(1, count), str(buffer.dtype))

    def block(self, s: Any) -> None:
        """A block: its iterators have values, its initialisation runs where its reductions begin."""
        block = s.block
        for iterator, value in zip(block.iter_vars, s.iter_values, strict=True):
            self.name(iterator.var, self.k.bind(self.value(value)))
        for buffer in block.alloc_buffers:
            self.own(buffer)
        with ExitStack() as opened:
            if not is_true(s.predicate):
                opened.enter_context(self.k.when(self.value(s.predicate)))
            if block.init is not None:
                begins = [self.value(i.var == i.dom.min) for i in block.iter_vars if _is_reduction(i)]
                with ExitStack() as first:
                    if begins:
                        first.enter_context(self.k.when(tirx.all(*begins)))
                    self.statement(block.init)
            self.statement(block.body)

    def _reduction(self, serial: Sequence[Any], realize: Any) -> None:
        block = realize.block
        pairs = list(zip(block.iter_vars, realize.iter_values, strict=True))
        for iterator, value in pairs:
            if not _is_reduction(iterator):
                self.name(iterator.var, self.k.bind(self.value(value)))
        results = _results(block)
        places = {buffer: self._place(buffer, indices) for buffer, indices in results.items()}
        for buffer in results:
            self._held[buffer] = self.k.registers(1, str(buffer.dtype))
        self.statement(block.init)
        with self.loops(serial):
            for iterator, value in pairs:
                if _is_reduction(iterator):
                    self.name(iterator.var, self.value(value))
            self.statement(block.body)
        for buffer, place in places.items():
            self._arrays[buffer].put(place, self._held.pop(buffer)[0])


def _in_library(function: str, dtype: str) -> str | None:
    """The name without float32's f of a function of C's library."""
    plain = function.removesuffix("f") if dtype == "float32" else function
    return plain if plain in _LIBRARY and dtype in _C_TYPES else None


@cache
def library(name: str, dtype: str) -> Instruction:
    """A function of C's library, which CUDA has for each of its threads."""
    kind, suffix = _C_TYPES[dtype]
    taken = (f"{kind} x", f"{kind} y")[: 2 if name in _TWO else 1]
    given = ", ".join(part[-1] for part in taken)
    called = f"sparsec_{name}_{kind}"
    source = (
        f"static __forceinline__ __device__ {kind} {called}({', '.join(taken)}) "
        f"{{ return {name}{suffix}({given}); }}"
    )
    return Instruction(called, source, lambda _, *values: _LIBRARY[name](*values), dtype)


def libraries() -> tuple[Instruction, ...]:
    """All functions that operators may call, for the interpreter."""
    return tuple(library(name, dtype) for name in _LIBRARY for dtype in _C_TYPES)


def _nothing(_: Retelling, s: Any) -> None:
    if type(s).__name__ == "Evaluate" and not isinstance(s.value, tirx.IntImm):
        called = s.value.args[0] if len(s.value.args) else ""
        raise Unsupported(f"a call of {called} by {s.value.op.name}, which no GPU has")


def _sequence(telling: Retelling, s: Any) -> None:
    for one in s.seq:
        telling.statement(one)


_STATEMENTS: Mapping[str, Callable[[Retelling, Any], None]] = {
    "SeqStmt": _sequence,
    "For": lambda telling, s: telling.nest((s,), s.body),
    "While": Retelling.repeat,
    "IfThenElse": Retelling.branch,
    "BufferStore": Retelling.store,
    "Bind": lambda telling, s: telling.name(s.var, telling.k.bind(telling.value(s.value))),
    "AttrStmt": lambda telling, s: telling.statement(s.body),
    "AllocBuffer": lambda telling, s: telling.own(s.buffer),
    "SBlockRealize": Retelling.block,
    "AssertStmt": _nothing,
    "Evaluate": _nothing,
}


def _is_reduction(iterator: Any) -> bool:
    return bool(iterator.iter_type == tirx.IterVar.CommReduce)


def _reduces(serial: Sequence[Any], body: Any) -> bool:
    """Whether the loops do nothing but combine values into elements that stay the same."""
    if not serial or not isinstance(body, SBlockRealize) or body.block.init is None:
        return False
    if not is_true(body.predicate) or len(body.block.alloc_buffers):
        return False
    inside = {loop.loop_var for loop in serial}
    fixed = [
        value
        for iterator, value in zip(body.block.iter_vars, body.iter_values, strict=True)
        if not _is_reduction(iterator)
    ]
    if any(isinstance(node, tirx.Var) and node in inside for node in walk(fixed)):
        return False
    return _stays(body.block)


def _stays(block: Any) -> bool:
    """Whether all that a block reads or writes of its results is one element of each."""
    results = _results(block)
    moving = {i.var for i in block.iter_vars if _is_reduction(i)}
    if any(isinstance(node, tirx.Var) and node in moving for node in walk(list(results.values()))):
        return False
    for node in walk([block.init, block.body]):
        if isinstance(node, tirx.BufferStore | TensorLoad):
            buffer = node.buffer if isinstance(node, tirx.BufferStore) else node.source
            if buffer in results and not _same(node.indices, results[buffer]):
                return False
    return True


def _results(block: Any) -> dict[Any, Any]:
    """The tensors a block writes, and where."""
    stores = [s for s in walk([block.init, block.body]) if isinstance(s, tirx.BufferStore)]
    return {s.buffer: s.indices for s in reversed(stores)}


def _same(a: Any, b: Any) -> bool:
    return all(tvm_ffi.structural_equal(x, y) for x, y in zip(a, b, strict=True))

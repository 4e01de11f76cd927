"""nests: an operator carried as TIR cut into loop nests, each of which a kernel can run.

TVM writes an operator as one function: loops over blocks whose iterators are *spatial* (iterations write
distinct elements) or reductions, and for what has no such form (scatter) plain loops, some of them marked
parallel.  The top-level statements become nests in order; a nest sees everything that earlier ones wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir.expr import TensorLoad
from tvm.ir.prim.expr import BinaryOpExpr, CmpExpr, LogicalExpr
from tvm.s_tir.stmt import SBlockRealize

from sparsec.errors import Unsupported
from sparsec.ir.dims import Size

#: what a node consists of, for every kind that kernels can be made of
_PARTS: Mapping[str, tuple[str, ...]] = {
    "SeqStmt": ("seq",), "For": ("min", "extent", "body"), "While": ("condition", "body"),
    "BufferStore": ("value", "indices"), "Bind": ("value",), "AttrStmt": ("body",),
    "IfThenElse": ("condition", "then_case", "else_case"), "AllocBuffer": (), "Evaluate": ("value",),
    "AssertStmt": (), "SBlockRealize": ("iter_values", "predicate", "block"), "SBlock": ("init", "body"),
    "TensorLoad": ("indices",), "Call": ("args",), "Cast": ("value",), "Not": ("a",),
    "Select": ("condition", "true_value", "false_value"),
    "Var": (), "IntImm": (), "FloatImm": (), "StringImm": (), "Op": (),
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Nest:
    """Part of an operator.

    ``loops`` have iterations that are independent of each other, and are shared out over the threads of
    a grid; ``serial`` are the loops inside them, around ``body``.  Without ``loops`` one block runs it:
    ``together`` is then a loop inside ``serial`` that its threads share, None where one thread does all.
    ``buffers`` are those that others see, what it writes last.
    """

    loops: tuple[Any, ...]
    serial: tuple[Any, ...]
    together: Any
    body: Any
    buffers: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """A function of tensors: ``params`` are buffers, arguments first; ``nests`` run one after another."""

    params: tuple[Any, ...]
    nests: tuple[Nest, ...]


@lru_cache(maxsize=256)
def operator(module: str) -> Operator:
    """What the TVM JSON of a module with one function holds.

    Raises:
        Unsupported: it is written with something that has no place in a kernel.
    """
    (function,) = (f for _, f in tvm.ir.load_json(module).functions_items())
    function = _inlined(function)
    params, root = tuple(function.params), function.body
    if isinstance(root, SBlockRealize) and not len(root.iter_values):
        params_and_made = (*params, *root.block.alloc_buffers)
        root = root.block.body
    else:
        params_and_made = params
    statements = list(_statements(root))
    seen = {*params_and_made, *(s.buffer for s in statements if isinstance(s, tirx.AllocBuffer))}
    nests = [_nest(s, seen) for s in _together(statements) if not isinstance(s, tirx.AllocBuffer)]
    return Operator(params, tuple(nests))


def walk(node: Any) -> Iterator[Any]:
    """A statement or expression and all it consists of, the whole first.

    Raises:
        Unsupported: some of it is of a kind no kernel is made of.
    """
    if node is None:
        return
    if isinstance(node, tuple | list | tvm.ir.Array):
        for part in node:
            yield from walk(part)
        return
    yield node
    for part in parts(node):
        yield from walk(part)


def parts(node: Any) -> list[Any]:
    """What a node consists of.

    Raises:
        Unsupported: it is of a kind no kernel is made of.
    """
    if isinstance(node, BinaryOpExpr | CmpExpr | LogicalExpr) and hasattr(node, "b"):
        return [node.a, node.b]
    found = _PARTS.get(type(node).__name__)
    if found is None:
        raise Unsupported(f"TIR's {type(node).__name__}")
    return [getattr(node, name) for name in found]


def size_of(expr: Any, known: Mapping[Any, Size]) -> Size | None:
    """An expression over sizes as a polynomial; None where it is none."""
    if isinstance(expr, int):
        return expr
    if isinstance(expr, tirx.IntImm):
        return int(expr.value)
    if isinstance(expr, tirx.Cast):
        return size_of(expr.value, known)
    if isinstance(expr, tirx.Add | tirx.Sub | tirx.Mul):
        a, b = size_of(expr.a, known), size_of(expr.b, known)
        if a is None or b is None:
            return None
        return a * b if isinstance(expr, tirx.Mul) else a + (b if isinstance(expr, tirx.Add) else b * -1)
    return known.get(expr)


def is_true(condition: Any) -> bool:
    """Whether a condition always holds."""
    return isinstance(condition, tirx.IntImm) and bool(condition.value)


def _inlined(function: Any) -> Any:
    """With whatever only computes elements one from another inside whoever reads them."""
    from tvm.s_tir.dlight import normalize_prim_func, try_inline

    plain = [s.block for s in walk(function.body) if isinstance(s, SBlockRealize)][1:]
    if any(not len(block.iter_vars) for block in plain):
        # what such a block reads is declared nowhere
        return function
    schedule = s_tir.Schedule(function)
    found = normalize_prim_func(schedule)
    if found is None:
        return function
    try_inline(schedule, found)
    return schedule.mod["main"]


def _statements(s: Any) -> Iterator[Any]:
    """The statements of a sequence, and of what is no more than a frame around one."""
    if isinstance(s, tirx.SeqStmt):
        for one in s.seq:
            yield from _statements(one)
    elif isinstance(s, tirx.AttrStmt):
        yield from _statements(s.body)
    elif isinstance(s, SBlockRealize) and _is_frame(s):
        yield from _statements(s.block.body)
    else:
        yield s


def _is_frame(s: Any) -> bool:
    block = s.block
    return not (len(block.iter_vars) or len(block.alloc_buffers) or block.init) and is_true(s.predicate)


def _together(statements: list[Any]) -> list[Any]:
    """What follows a name stays one statement with it, as no kernel sees another's names."""
    first = next((i for i, s in enumerate(statements) if isinstance(s, tirx.Bind)), len(statements))
    rest = statements[first:]
    return [*statements[:first], *([tirx.SeqStmt(rest)] if rest else [])]


def _nest(s: Any, seen: set[Any]) -> Nest:
    written = dict.fromkeys(node.buffer for node in walk(s) if isinstance(node, tirx.BufferStore))
    read = dict.fromkeys(node.source for node in walk(s) if isinstance(node, TensorLoad))
    buffers = tuple(b for b in (*(r for r in read if r not in written), *written) if b in seen)
    chain, inner = _chain(s)
    if isinstance(inner, SBlockRealize):
        loops = [loop for loop in chain if _is_spatial(loop.loop_var, inner)]
        serial = [loop for loop in chain if loop not in loops]
        if _is_known_inside(loops, serial):
            return Nest(tuple(loops), tuple(serial), None, inner, buffers)
    free = _independent(chain, inner)
    if free:
        return Nest(tuple(chain[:free]), (), None, _body_of(chain, free, inner), buffers)
    for i, loop in enumerate(chain):
        if loop.kind == tirx.ForKind.PARALLEL:
            return Nest((), tuple(chain[:i]), loop, loop.body, buffers)
    return Nest((), (), None, s, buffers)


def _body_of(chain: list[Any], count: int, inner: Any) -> Any:
    return chain[count - 1].body if count < len(chain) else inner


def _chain(s: Any) -> tuple[list[Any], Any]:
    """Loops that hold nothing but each other, and what the innermost does."""
    chain = []
    while isinstance(s, tirx.For):
        chain.append(s)
        s = s.body
    return chain, s


def _is_spatial(var: Any, realize: Any) -> bool:
    """Whether a loop's variable is the value of a spatial iterator and of nothing else."""
    users = [i for i, value in enumerate(realize.iter_values) if any(var.same_as(v) for v in _vars(value))]
    if len(users) != 1:
        return False
    (user,) = users
    direct = isinstance(realize.iter_values[user], tirx.Var)
    return direct and realize.block.iter_vars[user].iter_type == tirx.IterVar.DataPar


def _vars(expr: Any) -> list[Any]:
    return [node for node in walk(expr) if isinstance(node, tirx.Var)]


def _is_known_inside(loops: list[Any], serial: list[Any]) -> bool:
    """Whether no bound of the outer loops depends on the loops that are moved inside them."""
    inside = {loop.loop_var for loop in serial}
    return not any(v in inside for loop in loops for e in (loop.min, loop.extent) for v in _vars(e))


def _independent(chain: list[Any], inner: Any) -> int:
    """How many of the outermost loops have iterations that are independent of each other."""
    for i, loop in enumerate(chain):
        if loop.kind != tirx.ForKind.PARALLEL:
            return i or int(len(chain) == 1 and _copies(loop, inner))
    return len(chain)


def _copies(loop: Any, inner: Any) -> bool:
    """Whether a loop makes the elements of a tensor in order, from others."""
    if not isinstance(inner, tirx.BufferStore):
        return False
    if any(isinstance(node, TensorLoad) and node.source == inner.buffer for node in walk(inner.value)):
        return False
    at: Any = 0
    for index, size in zip(inner.indices, inner.buffer.shape, strict=True):
        at = at * size + index
    analyzer = tvm.sym.Analyzer()
    analyzer.bind(loop.loop_var, tvm.ir.Range(loop.min, loop.min + loop.extent))
    return bool(analyzer.can_prove_equal(at, loop.loop_var))

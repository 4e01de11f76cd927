"""leftover: operators without a CUDA kernel of their own, as plain kernels.

What is carried as TIR is cut into loop nests (:mod:`sparsec.targets.cuda.leftover.nests`).  A nest whose
outer iterations are independent of each other gives each a thread; one whose iterations follow each other
runs in one block, slowly.  What one nest makes for the next is a value of its own between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from sparsec.errors import Unsupported
from sparsec.ir.attributes import ReduceAttrs, ResizeAttrs, TirAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.expr import Expr
from sparsec.ir.graph import Node, Op
from sparsec.ir.types import Type
from sparsec.targets import operators
from sparsec.targets.calls import Call, Context, known, written
from sparsec.targets.cuda.builder import Kernel, device_function, int64, integer
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.leftover.nests import Nest, Operator, operator, size_of
from sparsec.targets.cuda.leftover.retelling import Retelling

#: threads of a block
THREADS = 256
#: blocks of a grid whose iterations nobody can count beforehand
_SOME_BLOCKS = 256


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The calls for a node that no other rule has a kernel for.

    Raises:
        Unsupported: it needs something that only a processor has.
    """
    x = context.type(n.args[0]) if n.args else n.type
    if n.op is Op.TIR:
        return carried(n, context, cast(TirAttrs, n.attrs))
    if n.op is Op.REDUCE:
        attrs = cast(ReduceAttrs, n.attrs)
        return carried(n, context, operators.reduce(x, attrs.kind, attrs.axes, attrs.keepdims, n.type))
    if n.op is Op.RESIZE:
        return carried(n, context, operators.resize(x, cast(ResizeAttrs, n.attrs), n.type))
    if n.op is Op.MATMUL:
        a, b = (context.type(name) for name in n.args[:2])
        if min(len(a.shape), len(b.shape)) > 1:
            return carried(n, context, operators.matmul(a, b, n.type))
    raise Unsupported(f"{n.name} ({n.op}): there is no CUDA kernel for it")


def elementwise(n: Node, context: Context, expr: Expr) -> tuple[Call, ...]:
    """The calls for an expression of other dtypes than floats."""
    attrs = operators.elementwise(expr, [context.type(a) for a in n.args], n.type)
    return carried(n, context, attrs)


def carried(n: Node, context: Context, attrs: TirAttrs) -> tuple[Call, ...]:
    """The calls that run a function of tensors.

    Raises:
        Unsupported: it needs something that only a processor has.
    """
    try:
        return _Carried(n, context, attrs, operator(attrs.module)).calls()
    except Unsupported as why:
        raise Unsupported(f"{n.name} ({n.op}): {attrs.source} needs {why}; it has no CUDA kernel") from why


@dataclass(frozen=True, slots=True, eq=False)
class _Carried:
    """A node's function, and what its parts are called in the plan."""

    n: Node
    context: Context
    attrs: TirAttrs
    operator: Operator

    def calls(self) -> tuple[Call, ...]:
        names = [*self.n.args, *(name for name, _ in written(self.context.nodes.values(), self.n))]
        types = [*map(self.context.type, self.n.args), *self.attrs.outputs]
        sizes: dict[Any, Size] = {}
        for buffer, kind in zip(self.operator.params, types, strict=True):
            sizes |= {v: s for v, s in zip(buffer.shape, kind.shape, strict=True) if isinstance(v, tirx.Var)}
        known_names = dict(zip(self.operator.params, names, strict=True))
        made = []
        for i, nest in enumerate(self.operator.nests):
            fresh = [b for b in nest.buffers if b not in known_names]
            known_names |= {b: f"{self.n.name}#tmp{len(known_names) + j}" for j, b in enumerate(fresh)}
            makes = tuple((known_names[b], _type(b, sizes)) for b in fresh)
            made.append(self._call(i, nest, known_names, sizes, makes))
        return tuple(made)

    def _call(
        self, index: int, nest: Nest, names: dict[Any, str], sizes: dict[Any, Size],
        makes: tuple[tuple[str, Type], ...],
    ) -> Call:  # fmt: skip
        count = _iterations(nest, sizes)
        of = self.context.sizes
        blocks = of.of(1)
        if nest.loops:
            blocks = of.of(_SOME_BLOCKS) if count is None else of.ceil_divide(of.of(count), THREADS)
        gpu = self.context.target.gpu
        assert gpu
        # a thread does all of the serial loops, a few cycles an iteration
        each = 40.0 * known(product([size_of(loop.extent, sizes) or 32 for loop in nest.serial]))
        lanes = gpu.multiprocessors * THREADS
        share = known(4096 if count is None else count, 4096) / lanes if nest.loops else 4096
        variables, reads = tuple(sizes), tuple(names[b] for b in nest.buffers)
        return device_call(
            self.context, self.attrs.source.rpartition(".")[2], (self.attrs.name, index),
            lambda name: emit(nest, variables, count is not None, name), reads,
            tuple(of.of(s) for s in sizes.values()), blocks, gpu.launch + each * max(1.0, share), makes,
        )  # fmt: skip


def _type(buffer: Any, sizes: dict[Any, Size]) -> Type:
    shape = [size_of(s, sizes) for s in buffer.shape]
    if any(s is None for s in shape):
        raise Unsupported(f"room for {buffer.shape} elements, whose number is no polynomial of its sizes")
    return Type(tuple(s for s in shape if s is not None), str(buffer.dtype))


def _iterations(nest: Nest, sizes: dict[Any, Size]) -> Size | None:
    """How many threads a nest has work for; None where only the kernel can tell."""
    found = [size_of(loop.extent, sizes) for loop in nest.loops]
    return None if any(f is None for f in found) else product(f for f in found if f is not None)


def emit(nest: Nest, variables: Sequence[Any], counted: bool, name: str) -> Any:
    """The TIR function of a nest: its buffers, then the sizes named by ``variables``.

    ``counted``: the grid has a thread for every iteration.
    """

    def body(k: Kernel) -> None:
        arrays = {b: k[f"p{i}"] for i, b in enumerate(nest.buffers)}
        telling = Retelling(k, arrays, {v: k.sizes[f"n{i}"] for i, v in enumerate(variables)})
        if nest.loops:
            _in_parallel(k, telling, nest, counted)
        elif nest.together is not None:
            _in_one_block(k, telling, nest)
        else:
            telling.nest(nest.serial, nest.body)

    pointers = [(f"p{i}", str(b.dtype)) for i, b in enumerate(nest.buffers)]
    threads = THREADS if nest.loops or nest.together is not None else 1
    return device_function(name, threads, pointers, [f"n{i}" for i in range(len(variables))], body)


def _in_parallel(k: Kernel, telling: Retelling, nest: Nest, counted: bool) -> None:
    """An iteration a thread; a thread does several where the grid is smaller than their number."""
    extents = [k.bind(int64(telling.value(loop.extent))) for loop in nest.loops]
    total: Any = integer(1)
    for extent in extents:
        total = total * extent
    at = k.bind(k.block * THREADS + int64(k.thread))

    def iteration(place: Any) -> None:
        for loop, extent in zip(reversed(nest.loops[1:]), reversed(extents[1:]), strict=True):
            _name(k, telling, loop, T.truncmod(place, extent))
            place = k.bind(T.truncdiv(place, extent))
        _name(k, telling, nest.loops[0], place)
        telling.nest(nest.serial, nest.body)

    if counted:
        with k.when(at < total):
            iteration(at)
        return
    step = _SOME_BLOCKS * THREADS
    with k.loop(k.bind(T.truncdiv(total - at + (step - 1), integer(step)))) as turn:
        iteration(k.bind(at + turn * step))


def _name(k: Kernel, telling: Retelling, loop: Any, place: Any) -> None:
    telling.name(loop.loop_var, k.bind(T.cast(place, str(loop.loop_var.ty.dtype)) + telling.value(loop.min)))


def _in_one_block(k: Kernel, telling: Retelling, nest: Nest) -> None:
    """Loops whose iterations follow each other, around one that the block's threads share."""
    loop = nest.together
    with telling.loops(nest.serial):
        extent = int64(telling.value(loop.extent))
        mine = k.bind(T.truncdiv(extent - int64(k.thread) + (THREADS - 1), integer(THREADS)))
        with k.loop(mine) as turn:
            _name(k, telling, loop, turn * THREADS + int64(k.thread))
            telling.statement(nest.body)
        k.sync()

"""A thin face over TVM's IRBuilder for kernels that follow the executor's calling convention.

Every kernel takes, in this order: ``scratch`` (a float32 tensor, this thread's scratch memory),
bare pointers, int64 sizes, and ``tile_begin, tile_end``.  Emitters are ordinary Python: a
Python loop unrolls, ``with k.loop(n) as i`` emits a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

#: buffers are declared without a bound: pointers carry no length, the planner sized them
_UNBOUNDED = 1 << 40

#: slots for values that must not be recomputed, two for each of the 64 functions an expression
#: may have (``sparsec.passes.algebra.MAX_DISTINCT``); LLVM drops the unused
_HELD = 128

_ALIGN = {"float32": 4, "int32": 4, "uint16": 2, "uint8": 1, "int64": 8}


class Kernel:
    """The body under construction: buffers, sizes, and small helpers around vectors."""

    def __init__(self, lanes: int, scratch: Any, buffers: dict[str, Any], sizes: dict[str, Any]) -> None:
        self.lanes = lanes
        self.scratch = scratch
        self.sizes = sizes
        self._buffers = buffers
        widths = [1 << i for i in range(lanes.bit_length())]
        self._held = {n: self.registers(_HELD, n) for n in widths}
        self.tile_begin = sizes["tile_begin"]
        self.tile_end = sizes["tile_end"]

    def __getitem__(self, name: str) -> Any:
        return self._buffers[name]

    def within(self, prefix: str) -> Kernel:
        """The same kernel, in which the buffer ``{prefix}_{name}`` goes by ``name``."""
        inside = copy(self)
        short = {n.removeprefix(f"{prefix}_"): b for n, b in self._buffers.items()}
        inside._buffers = {**short, **self._buffers}
        return inside

    @contextmanager
    def loop(self, start: Any, stop: Any | None = None, dtype: str = "int64") -> Iterator[Any]:
        """A serial loop; the index is int64 unless ``dtype`` says otherwise."""
        if stop is None:
            with T.serial(integer(0, dtype), integer(start, dtype)) as index:
                yield index
            return
        # from 0: TVM 0.27's CanonicalizeLoop forgets where an outer loop began in an inner one's bounds
        low, high = integer(start, dtype), integer(stop, dtype)
        with T.serial(integer(0, dtype), high - low) as index:
            yield self.bind(low + index)

    @contextmanager
    def tiles(self) -> Iterator[Any]:
        """The loop over this call's tiles."""
        with self.loop(self.tile_begin, self.tile_end) as tile:
            yield tile

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """``if condition``."""
        with T.If(condition), T.Then():
            yield

    def hold(self, value: Any, lanes: int, slot: int) -> Any:
        """Keep a value in a register under a slot number, so that it is never recomputed."""
        assert slot < _HELD, "a slot used twice would lose the value it holds"
        T.buffer_store(self._held[lanes], value, [slot])
        return self._held[lanes][slot]

    def bind(self, expression: Any) -> Any:
        """Name an expression, so that it is computed once."""
        return T.Bind(expression)

    def registers(self, count: int, lanes: int | None = None) -> Any:
        """``count`` vector accumulators that LLVM keeps in registers."""
        return T.alloc_buffer((count,), vector_type(lanes or self.lanes), scope="local")

    def vector(self, buffer: Any, offset: Any, lanes: int | None = None) -> Any:
        """Load ``lanes`` consecutive elements (one lane: a number)."""
        width = lanes or self.lanes
        return buffer[T.Ramp(offset, 1, width)] if width > 1 else buffer[offset]

    def put(self, buffer: Any, offset: Any, value: Any, lanes: int | None = None) -> None:
        """Store a vector (one lane: a number)."""
        width = lanes or self.lanes
        T.buffer_store(buffer, value, [T.Ramp(offset, 1, width) if width > 1 else offset])

    def assign(self, buffer: Any, index: Any, value: Any) -> None:
        """Store one element (a scalar, or one register of an accumulator array)."""
        T.buffer_store(buffer, value, [index])

    def splat(self, value: Any, lanes: int | None = None) -> Any:
        """One number in every lane (one lane: the number)."""
        number = T.float32(value) if isinstance(value, int | float) else value
        width = lanes or self.lanes
        return T.Broadcast(number, width) if width > 1 else number

    def constant(self, value: int) -> Any:
        """An int64 literal."""
        return tirx.IntImm("int64", value)

    def cast64(self, value: Any) -> Any:
        """An int64 index."""
        return T.cast(value, "int64")


def vector_type(lanes: int, dtype: str = "float32") -> str:
    """TVM's name of a vector type (the element's own name for one lane)."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def integer(value: Any, dtype: str = "int64") -> Any:
    """A constant of the dtype, or the expression itself."""
    return tirx.IntImm(dtype, value) if isinstance(value, int) else value


def prim_func(
    name: str,
    lanes: int,
    pointers: Sequence[tuple[str, str]],
    sizes: Sequence[str],
    body: Any,
) -> Any:
    """Build the function: ``pointers`` are (name, dtype); ``body(kernel)`` emits the code."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        length = tirx.Var("scratch_length", "int64")
        scratch = T.arg("scratch", T.buffer((length,), "float32"))
        raw = [(n, d, T.arg(f"{n}_pointer", T.handle(d, "global"))) for n, d in pointers]
        named = {n: T.arg(n, T.int64()) for n in (*sizes, "tile_begin", "tile_end")}
        buffers = {n: T.decl_buffer((_UNBOUNDED,), d, data=p, align=_ALIGN[d]) for n, d, p in raw}
        body(Kernel(lanes, scratch, buffers, named))
    return builder.get()

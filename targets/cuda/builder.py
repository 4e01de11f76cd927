"""A thin face over TVM's IRBuilder for CUDA kernels that follow the executor's calling convention.

A kernel takes bare pointers and then int64 sizes, and is launched on a grid of one axis: ``k.block`` says
which block it is (int64), ``k.thread`` which thread of it (int32).  All shared memory is one dynamic
allocation that :meth:`Kernel.shared` hands out.  Emitters are ordinary Python: a Python loop unrolls,
``with k.loop(n) as i`` emits a loop, ``with k.unrolled(n) as i`` one that the compiler unrolls (so that
registers may be indexed by it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda.instructions import Instruction
from sparsec.targets.cuda.tir import IR, T, tirx

#: buffers are declared without a bound: pointers carry no length, the planner sized them
_UNBOUNDED = 1 << 40
#: what every allocation starts at, and 128-bit accesses need
ALIGNMENT = 16
WARP = 32

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint32": 4, "int16": 2,
          "uint16": 2, "int8": 1, "uint8": 1, "bool": 1, "float64": 8, "uint64": 8}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Array:
    """A buffer and where in it the array begins, in elements (0 but for shared memory)."""

    buffer: Any
    start: int = 0

    def __getitem__(self, index: Any) -> Any:
        return self.buffer[self._at(index)]

    def _at(self, index: Any) -> Any:
        return index + self.start if self.start else index

    def _lanes(self, index: Any, lanes: int) -> Any:
        # a multiple of the lanes in so many words: else TVM reads the elements one by one
        at = self._at(index)
        return T.Ramp(at if isinstance(at, int) else at // lanes * lanes, 1, lanes)

    def vector(self, index: Any, lanes: int) -> Any:
        """``lanes`` consecutive elements; the address must be a multiple of their bytes."""
        return self.buffer[self._lanes(index, lanes)] if lanes > 1 else self[index]

    def put(self, index: Any, value: Any, lanes: int = 1) -> None:
        """Store an element, or a vector of them."""
        T.buffer_store(self.buffer, value, [self._lanes(index, lanes) if lanes > 1 else self._at(index)])

    def pointer(self, index: Any = 0) -> Any:
        """The address of an element, for instructions."""
        return T.address_of(self.buffer[self._at(index)])

    @property
    def dtype(self) -> str:
        """The type of its elements."""
        return str(self.buffer.dtype)


class Kernel:
    """The body under construction: buffers, sizes, threads, and small helpers."""

    def __init__(
        self, block: Any, thread: Any, threads: int, arrays: dict[str, Array], sizes: dict[str, Any], raw: Any
    ) -> None:
        self.block = block
        self.thread = thread
        self.threads = threads
        self.sizes = sizes
        self.shared_bytes = 0
        self._arrays = arrays
        self._raw = raw
        self._views: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    @property
    def lane(self) -> Any:
        """Which thread of its warp."""
        return self.thread % WARP

    @property
    def warp(self) -> Any:
        """Which warp of the block."""
        return self.thread // WARP

    def view(self, name: str, dtype: str) -> Array:
        """A parameter's memory as elements of another type (64-bit and 128-bit copies of halves)."""
        data = self._arrays[name].buffer.data
        return Array(T.decl_buffer((_UNBOUNDED,), dtype, data=data, align=ALIGNMENT))

    def words(self, array: Array) -> Array:
        """An array's memory as uint32; the array must begin at a word."""
        buffer, size = array.buffer, _BYTES[array.dtype]
        return Array(
            T.decl_buffer((_UNBOUNDED,), "uint32", data=buffer.data, align=ALIGNMENT, scope=buffer.scope()),
            array.start * size // 4,
        )

    def shared(self, count: int, dtype: str) -> Array:
        """``count`` elements of the block's shared memory; starts at a multiple of 16 bytes."""
        size = _BYTES[dtype]
        first = -(-self.shared_bytes // ALIGNMENT) * ALIGNMENT
        self.shared_bytes = first + count * size
        return self.shared_at(first, dtype)

    def shared_at(self, first: int, dtype: str) -> Array:
        """Shared memory from byte ``first`` on, as elements of a type: another view of what was given."""
        if dtype not in self._views:
            self._views[dtype] = T.decl_buffer(
                (_UNBOUNDED,), dtype, data=self._raw.data, align=ALIGNMENT, scope="shared.dyn"
            )
        return Array(self._views[dtype], first // _BYTES[dtype])

    def registers(self, count: int, dtype: str = "float32") -> Array:
        """``count`` elements of the thread's own, in registers if all indices are known after unrolling."""
        return Array(T.alloc_buffer((count,), dtype, scope="local"))

    @contextmanager
    def loop(self, start: Any, stop: Any | None = None, dtype: str = "int32") -> Iterator[Any]:
        """A serial loop."""
        low, high = (0, start) if stop is None else (start, stop)
        if stop is None:
            with T.serial(integer(0, dtype), integer(high, dtype)) as index:
                yield index
            return
        # from 0: TVM 0.27's CanonicalizeLoop forgets where an outer loop began in an inner one's bounds
        first, last = integer(low, dtype), integer(high, dtype)
        with T.serial(integer(0, dtype), last - first) as index:
            yield self.bind(first + index)

    @contextmanager
    def unrolled(self, count: int) -> Iterator[Any]:
        """A loop of known length that is written out."""
        with T.unroll(0, count) as index:
            yield index

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """``if condition``."""
        with T.If(condition), T.Then():
            yield

    @contextmanager
    def whenever(self, condition: Any) -> Iterator[None]:
        """``while condition``: of registers that the body changes."""
        with T.While(condition):
            yield

    def bind(self, expression: Any) -> Any:
        """Name an expression, so that it is computed once."""
        return T.Bind(expression)

    def call(self, instruction: Instruction, *args: Any) -> None:
        """An instruction that writes through pointers."""
        name, source = instruction.name, instruction.source
        T.evaluate(T.cuda.func_call(name, *args, source_code=source, return_type="void"))

    def value(self, instruction: Instruction, *args: Any) -> Any:
        """An instruction's result."""
        return T.cuda.func_call(
            instruction.name, *args, source_code=instruction.source, return_type=instruction.returns
        )

    def sync(self) -> None:
        """All threads of the block have come here, and see each other's shared memory."""
        T.evaluate(T.tvm_storage_sync("shared"))


def integer(value: Any, dtype: str = "int64") -> Any:
    """A constant of the dtype, or the expression itself."""
    return tirx.IntImm(dtype, value) if isinstance(value, int) else value


def vector_type(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type (the element's own name for one lane)."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def int64(value: Any) -> Any:
    """An index into memory."""
    return T.cast(value, "int64")


def device_function(
    name: str,
    threads: int,
    pointers: Sequence[tuple[str, str]],
    sizes: Sequence[str],
    body: Callable[[Kernel], None],
) -> Any:
    """Build the kernel: ``pointers`` are (name, dtype); ``body(kernel)`` emits the code.

    The function's attributes ``sparsec_threads`` and ``sparsec_shared`` are the threads of a block and the
    bytes of dynamic shared memory it is to be launched with.
    """
    with IR.IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({
            "global_symbol": name, "tirx.noalias": True, "calling_conv": 2, "tirx.is_global_func": True,
        })  # fmt: skip
        raw = [(n, d, T.arg(f"{n}_pointer", T.handle(d, "global"))) for n, d in pointers]
        named = {n: T.arg(n, T.int64()) for n in sizes}
        arrays = {n: Array(T.decl_buffer((_UNBOUNDED,), d, data=p, align=ALIGNMENT)) for n, d, p in raw}
        # code generation reads no more of the extent than that it is the grid's
        with (
            T.launch_thread("blockIdx.x", tirx.IntImm("int64", 1 << 31)) as block,
            T.launch_thread("threadIdx.x", threads) as thread,
        ):
            shared = T.alloc_buffer((16,), "uint8", scope="shared.dyn")
            kernel = Kernel(T.cast(block, "int64"), thread, threads, arrays, named, shared)
            body(kernel)
    function = builder.get()
    return function.with_attr({"sparsec_threads": threads, "sparsec_shared": kernel.shared_bytes})

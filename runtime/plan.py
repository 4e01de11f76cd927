"""The plan: what the executor runs, as plain frozen tables.

A plan is flat: expressions over named sizes, buffers, and steps.  ``sparsec.runtime.artifact``
writes it as fixed-size little-endian tables; the C executor reads nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Operator(IntEnum):
    """Operators of size expressions; ``a`` and ``b`` are earlier expressions unless noted."""

    CONSTANT = 0  # a: the value itself
    SYMBOL = 1  # a: index into Plan.symbols
    ADD = 2
    MULTIPLY = 3
    CEIL_DIVIDE = 4
    MAXIMUM = 5


@dataclass(frozen=True, slots=True)
class Expression:
    """One node of the size expressions; it may refer to earlier nodes only."""

    operator: Operator
    a: int
    b: int = 0


class BufferKind(IntEnum):
    """Where a buffer's memory comes from."""

    INPUT = 0  # index: which input
    OUTPUT = 1  # index: which output
    CONSTANT = 2  # index: byte offset into the weights section (multiple of 64)
    TEMPORARY = 3  # planned into the arena for steps first..last
    PART = 4  # inside the earlier buffer ``index``, from byte ``first`` (an expression index) on


@dataclass(frozen=True, slots=True)
class Buffer:
    """A block of memory; ``nbytes`` is an expression index."""

    kind: BufferKind
    index: int
    nbytes: int
    first: int = 0
    last: int = 0


class ArgumentKind(IntEnum):
    """What a kernel's argument is."""

    SCRATCH = 0  # DLTensor float32[scratch]: this thread's scratch memory
    POINTER = 1  # value: buffer index; bare pointer
    INTEGER = 2  # value: expression index; int64
    TENSOR = 3  # value: tensor index; DLTensor* (only for steps that carry TIR operators)
    TILE_BEGIN = 4
    TILE_END = 5


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a step."""

    kind: ArgumentKind
    value: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A typed view of a buffer; ``shape`` holds expression indices; row-major, contiguous."""

    buffer: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call.

    ``tiles`` (expression index): the executor hands out 0..tiles-1 to threads in contiguous
    ranges through TILE_BEGIN/TILE_END.  ``scratch`` (expression index): bytes a thread needs.
    ``serial`` steps run in one call on one thread (they may lack tile arguments).
    ``nanoseconds``: predicted time, so that tiny steps are not handed to threads.
    ``threads``: of a step on a GPU, the threads of a block; its ``tiles`` are the grid's blocks and
    its ``scratch`` a block's dynamic shared memory; its arguments are pointers and integers.  0 for a
    step on the host.  Code for a GPU has steps there only, code for a processor none.
    """

    kernel: str
    arguments: tuple[Argument, ...]
    tiles: int
    scratch: int
    serial: bool = False
    nanoseconds: int = 0
    node: str = ""
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the program; ``shape`` holds expression indices."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: int


@dataclass(frozen=True, slots=True)
class Isa:
    """A program's code for one instruction set.

    ``features``: names as in ``/proc/cpuinfo`` that a processor must have; ``steps``: the plan's
    steps as this code has them, which read and write the same buffers; ``code``: a shared object
    with every step's ``__tvm_ffi_<kernel>`` and ``csrc/shim.c``.  For a GPU, ``features`` is its kind
    alone, ``("sm_90a",)``, and ``code`` a cubin with every step's kernel.
    """

    name: str
    features: tuple[str, ...]
    steps: tuple[Step, ...]
    code: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole program; ``steps`` as the first instruction set has them (see :class:`Isa`)."""

    symbols: tuple[str, ...]
    expressions: tuple[Expression, ...]
    buffers: tuple[Buffer, ...]
    tensors: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

"""warpgroup: Hopper's asynchronous matrix instructions (``wgmma``), with all of the tensor cores' rate.

Four warps of a block, numbers 4 i to 4 i + 3, multiply 64 rows of A by up to 256 columns of B, warp w
making rows 16 w to 16 w + 15; a lane's accumulators are, for each 8 columns, the four of ``mma.m16n8``.
Operands in shared memory are lines of 128 bytes, swizzled as
:class:`sparsec.targets.cuda.parts.mma_tiles.Staged` does with 64 halves a line, that begin at a multiple of
1024 bytes; 16 or 32 of a line's elements are read, and the address says from which on.

Order: threads that wrote shared memory (by copies too) call ``fence_shared`` before the barrier that tells
others; ``fence`` orders registers written before; multiplications issued up to ``commit`` are a group, and
``wait(n)`` returns when all but the latest n groups are done.  Until then nobody may write what they read,
or read or write their accumulators.

In the interpreter, an instruction reads its operands when it is issued and again when it is waited for, and
raises if they differ; its accumulators are NaN in between.  The fences mean nothing there.

References: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"; Luo et al. 2024,
"Benchmarking and Dissecting the Nvidia Hopper GPU Architecture": rates of mma and wgmma, dense and sparse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda.instructions import Instruction
from sparsec.targets.cuda.interpreter import fragments
from sparsec.targets.cuda.interpreter.machine import WARP, Machine
from sparsec.targets.cuda.interpreter.meanings import FLOATS
from sparsec.targets.cuda.interpreter.memory import InterpreterError, Pointer

GROUP = 128
#: rows that a group of four warps multiplies at once, and halves of a line
ROWS, LINE = 64, 64
#: columns that there are instructions for here (the hardware has all multiples of 8)
COLUMNS = (64, 128, 192, 256)

_SHORT = {"float16": "f16", "bfloat16": "bf16"}
#: start address, lines of 8 in groups 1024 bytes apart, swizzled by 128 bytes (bits 62 and 63: 1)
_DESCRIPTOR = """  unsigned {name}_at = (unsigned)__cvta_generic_to_shared({pointer});
  unsigned long long {name} = (unsigned long long)(({name}_at & 0x3FFFFu) >> 4);
  {name} |= (1ull << 16) | (64ull << 32) | (1ull << 62);
"""


def _instruction(name: str, parameters: str, body: str, meaning: Callable[..., Any]) -> Instruction:
    text = f"static __forceinline__ __device__ void sparsec_{name}({parameters}) {{\n{body}\n}}\n"
    return Instruction(f"sparsec_{name}", text, meaning)


def _order(name: str, operation: str, meaning: Callable[..., Any]) -> Instruction:
    return _instruction(name, "", f'  asm volatile("{operation}" ::: "memory");', meaning)


def _nothing(machine: Machine) -> None:
    pass


#: ``()``: what the thread wrote to shared memory is seen by matrix instructions after the next barrier
fence_shared = _order("fence_shared", "fence.proxy.async.shared::cta;", _nothing)
#: ``()``: registers written before are seen by matrix instructions
fence = _order("wgmma_fence", "wgmma.fence.sync.aligned;", _nothing)
#: ``()``: what was issued since the last commit is a group
commit = _order("wgmma_commit", "wgmma.commit_group.sync.aligned;", lambda machine: _commit(machine))


def _waiting(pending: int) -> Instruction:
    operation = f"wgmma.wait_group.sync.aligned {pending};"
    return _order(f"wgmma_wait_{pending}", operation, lambda machine: _complete(machine, pending))


WAITS = tuple(_waiting(pending) for pending in range(2))


def wait(pending: int) -> Instruction:
    """``()``: all groups are done but the latest ``pending`` (0 or 1)."""
    return WAITS[pending]


def _accumulators(columns: int) -> tuple[str, str]:
    count = columns // 2
    numbered = ", ".join(f"%{i}" for i in range(count))
    return f"{{{numbered}}}", ", ".join(f'"+f"(d[{i}])' for i in range(count))


def _dense(dtype: str, columns: int) -> Instruction:
    kind, count = _SHORT[dtype], columns // 2
    registers, results = _accumulators(columns)
    body = (
        _DESCRIPTOR.format(name="left", pointer="a") + _DESCRIPTOR.format(name="right", pointer="b")
        + '  asm volatile("{\\n.reg .pred p;\\nsetp.ne.b32 p, 1, 0;\\n"\n'
        f'      "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {registers}, '
        f'%{count}, %{count + 1}, p, 1, 1, 0, 0;\\n}}"\n      : {results} : "l"(left), "l"(right));'
    )  # fmt: skip
    name = f"wgmma_m64n{columns}k16_{kind}"
    return _instruction(name, "float* d, const void* a, const void* b", body, _dense_meaning(dtype, columns))


def _sparse(dtype: str, columns: int, selector: int) -> Instruction:
    kind, count = _SHORT[dtype], columns // 2
    registers, results = _accumulators(columns)
    left = ", ".join(f"%{count + i}" for i in range(4))
    body = (
        _DESCRIPTOR.format(name="right", pointer="b")
        + '  asm volatile("{\\n.reg .pred p;\\nsetp.ne.b32 p, 1, 0;\\n"\n'
        f'      "wgmma.mma_async.sp.sync.aligned.m64n{columns}k32.f32.{kind}.{kind} {registers}, {{{left}}}, '
        f'%{count + 4}, %{count + 5}, {selector}, p, 1, 1, 0;\\n}}"\n'
        f'      : {results} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right), "r"(metadata));'
    )  # fmt: skip
    name = f"wgmma_sp_m64n{columns}k32_{kind}_{selector}"
    parameters = "float* d, const unsigned* a, const void* b, unsigned metadata"
    return _instruction(name, parameters, body, _sparse_meaning(dtype, columns, selector))


@dataclass(slots=True)
class _Issued:
    """A multiplication on its way: what it adds to which registers, and how to read its operands again."""

    d: Pointer
    before: NDArray[Any] | None
    product: NDArray[Any]
    operands: list[NDArray[Any]]
    again: Callable[[], list[NDArray[Any]]]
    group: int | None = None


def _dense_meaning(dtype: str, columns: int) -> Callable[..., None]:
    """d[64, columns] += a[64, 16] @ b[columns, 16]^T, both in shared memory."""

    def meaning(machine: Machine, d: Pointer, a: Pointer, b: Pointer) -> None:
        def operands() -> list[NDArray[Any]]:
            return [_lines(machine, a, ROWS, 16, dtype), _lines(machine, b, columns, 16, dtype)]

        left, right = operands()
        product = left.astype(np.float32) @ right.astype(np.float32).swapaxes(-1, -2)
        _issue(machine, d, product.reshape(*left.shape[:2], 4, 16, columns), [left, right], operands)

    return meaning


def _sparse_meaning(dtype: str, columns: int, selector: int) -> Callable[..., None]:
    """d[64, columns] += a[64, 32] @ b[columns, 32]^T, a in registers as of ``mma.sp.m16n8k32``."""

    def meaning(machine: Machine, d: Pointer, a: Pointer, b: Pointer, metadata: Any) -> None:
        words = machine.by_warp(metadata.astype(np.uint32))

        def operands() -> list[NDArray[Any]]:
            held = machine.by_warp(a.registers(4, np.uint32))
            return [held, _lines(machine, b, columns, 32, dtype)]

        held, right = operands()
        kept = fragments.a_of_halves(held, FLOATS[dtype])
        left = fragments.expanded(kept, fragments.sparse_indices(words, selector))
        by_group = left.reshape(left.shape[0], -1, 4, 16, 32)
        product = by_group @ right.astype(np.float32).swapaxes(-1, -2)[:, :, None]
        _issue(machine, d, product, [held, right], operands)

    return meaning


def _lines(machine: Machine, pointer: Pointer, lines: int, width: int, dtype: str) -> NDArray[Any]:
    """``[blocks, groups, lines, width]`` elements of swizzled lines of 128 bytes from shared memory."""
    if machine.mask is not None or machine.shape[1] % GROUP:
        raise InterpreterError("wgmma must be reached by all threads of whole groups of 128")
    if pointer.memory is not machine.shared:
        raise InterpreterError("wgmma reads shared memory")
    start = np.broadcast_to(pointer.byte(), machine.shape)
    groups = start.reshape(machine.shape[0], -1, GROUP)
    astray = (start % 1024 + 2 * width > 128) | (groups != groups[:, :, :1]).reshape(machine.shape)
    machine.refuse(astray, lambda where: f"wgmma reads a tile at {where(start)}, or its threads differ")
    chunks = width // 8
    number = np.arange(GROUP) + GROUP * np.arange(-(-lines * chunks // GROUP))[:, None]
    offset = number // chunks % lines * 128 + number % chunks * 16
    parts = []
    for one in offset:
        byte = start + np.tile(one, machine.shape[1] // GROUP)
        byte = byte ^ ((byte >> 7 & 7) << 4)
        got = Pointer(machine, pointer.memory, byte, np.dtype(np.uint8)).bytes(16, collective=True)
        parts.append(got.reshape(machine.shape[0], -1, GROUP, 16))
    read = np.ascontiguousarray(np.concatenate(parts, axis=2)[:, :, : lines * chunks])
    elements: NDArray[Any] = read.view(FLOATS[dtype])
    return elements.reshape(*read.shape[:2], lines, width)


def _issue(
    machine: Machine, d: Pointer, product: NDArray[Any], operands: list[NDArray[Any]],
    again: Callable[[], list[NDArray[Any]]],
) -> None:  # fmt: skip
    """Note a multiplication; ``product`` is [blocks, groups, warp, 16, columns]."""
    columns = product.shape[-1]
    # lane 4 g + t: [8 columns][row g, row g + 8][column 2 t, 2 t + 1]
    cut = product.reshape(*product.shape[:3], 2, 8, columns // 8, 4, 2)
    by_lane = cut.transpose(0, 1, 2, 4, 6, 5, 3, 7).reshape(product.shape[0], -1, WARP, columns // 2)
    mine = machine.by_thread(by_lane)
    chained = any(_same(one.d, d) for one in machine.in_flight)
    before = None if chained else d.registers(columns // 2, np.float32)
    machine.in_flight.append(_Issued(d, before, mine, operands, again))
    d.put_registers(np.full(mine.shape, np.nan, np.float32))


def _same(one: Pointer, other: Pointer) -> bool:
    return one.memory is other.memory and bool(np.array_equal(one.byte(), other.byte()))


def _commit(machine: Machine) -> None:
    number = 1 + max((one.group for one in machine.in_flight if one.group is not None), default=0)
    for one in machine.in_flight:
        one.group = number if one.group is None else one.group


def _complete(machine: Machine, pending: int) -> None:
    last = max((one.group for one in machine.in_flight if one.group is not None), default=0)
    while machine.in_flight and (machine.in_flight[0].group or last + 1) <= last - pending:
        one = machine.in_flight.pop(0)
        for then, now in zip(one.operands, one.again(), strict=True):
            if then.tobytes() != now.tobytes():
                raise InterpreterError(
                    "an operand of wgmma was written before the instruction was waited for"
                )
        total = one.before + one.product
        following = next((other for other in machine.in_flight if _same(other.d, one.d)), None)
        if following is None:
            one.d.put_registers(total)
        else:
            following.before = total


DENSE = {(dtype, n): _dense(dtype, n) for dtype in _SHORT for n in COLUMNS}
SPARSE = {(dtype, n, s): _sparse(dtype, n, s) for dtype in _SHORT for n in COLUMNS for s in (0, 1)}


def multiply(dtype: str, columns: int) -> Instruction:
    """``(float* d, const void* a, const void* b)``: d[64, columns] += a[64, 16] b[columns, 16]^T."""
    return DENSE[dtype, columns]


def multiply_sparse(dtype: str, columns: int, selector: int) -> Instruction:
    """``(float* d, const unsigned* a, const void* b, unsigned metadata)``.

    d[64, columns] += a[64, 32] b[columns, 32]^T; a and its metadata are in registers, each warp's
    16 rows as ``mma_sp_m16n8k32`` takes them.
    """
    return SPARSE[dtype, columns, selector]

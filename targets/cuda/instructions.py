"""Instructions of the GPU that TIR has no word for: their CUDA text, and what they mean.

The meaning is for :mod:`sparsec.targets.cuda.interpreter.run`, which runs kernels on the CPU: a function of
a :class:`~sparsec.targets.cuda.interpreter.machine.Machine` and of the arguments, each an array with one
value a thread or a :class:`~sparsec.targets.cuda.interpreter.memory.Pointer`.  Destinations come first.
Fragments of matrix instructions are laid out as in NVIDIA's PTX ISA manual;
:mod:`sparsec.targets.cuda.interpreter.fragments` has the layouts in words.

Instructions of a whole warp (ldmatrix, mma, shuffles, ballot, syncwarp) must be reached by all its threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.targets.cuda.interpreter import meanings


@dataclass(frozen=True, slots=True)
class Instruction:
    """One device function.

    ``name`` is that of the function in ``source``; ``returns`` TVM's name of its result's type, "void"
    for one that writes through pointers.  ``meaning(machine, *args)`` does the same to the interpreter's
    memory, or returns the results of all threads.
    """

    name: str
    source: str
    meaning: Callable[..., Any]
    returns: str = "void"


_TYPES = {"void": "void", "float32": "float", "uint32": "unsigned", "int32": "int"}
#: turns an address of shared memory into what instructions of shared memory take
_SHARED = '"r"((unsigned)__cvta_generic_to_shared({}))'


def _instruction(
    name: str, parameters: str, body: str, meaning: Callable[..., Any], returns: str = "void"
) -> Instruction:
    text = (
        f"static __forceinline__ __device__ {_TYPES[returns]} sparsec_{name}({parameters}) {{\n  {body}\n}}\n"
    )
    return Instruction(f"sparsec_{name}", text, meaning, returns)


def _list(values: Any) -> str:
    return ", ".join(values)


def _ldmatrix(count: int, transposed: bool) -> Instruction:
    """``(unsigned* to, const void* row)``: ``count`` matrices of 8 x 8 halves from shared memory.

    Lane 8 i + j gives the address of row j of matrix i, a multiple of 16; lane 4 g + q gets in ``to[i]``
    elements 2 q and 2 q + 1 of row g of matrix i, or, transposed, of column g.
    """
    registers = _list(f"%{i}" for i in range(count))
    results = _list(f'"=r"(to[{i}])' for i in range(count))
    trans = ".trans" if transposed else ""
    body = (
        f'asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%{count}];"\n'
        f'    : {results} : {_SHARED.format("row")} : "memory");'
    )
    name = f"ldmatrix_x{count}{'_trans' if transposed else ''}"
    return _instruction(
        name, "unsigned* to, const void* row", body, meanings.load_matrices(count, transposed)
    )


ldmatrix_x1, ldmatrix_x2, ldmatrix_x4 = (_ldmatrix(n, False) for n in (1, 2, 4))
ldmatrix_x1_trans, ldmatrix_x2_trans, ldmatrix_x4_trans = (_ldmatrix(n, True) for n in (1, 2, 4))


def _multiply(name: str, operation: str, inputs: tuple[int, int], more: str, meaning: Any) -> Instruction:
    """``(float* d, const unsigned* a, const unsigned* b)`` and with ``more`` the metadata: d += a b."""
    a, b = inputs
    places = [f"%{i}" for i in range(4 + a + b)]
    groups = [f"{{{_list(g)}}}" for g in (places[:4], places[4 : 4 + a], places[4 + a :], places[:4])]
    results = _list(f'"+f"(d[{i}])' for i in range(4))
    operands = [f'"r"(a[{i}])' for i in range(a)] + [f'"r"(b[{i}])' for i in range(b)]
    parameters = "float* d, const unsigned* a, const unsigned* b"
    if more:
        operands.append('"r"(metadata)')
        parameters += ", unsigned metadata"
        groups.append(f"%{4 + a + b}, {more}")
    body = f'asm volatile("{operation} {_list(groups)};"\n    : {results} : {_list(operands)});'
    return _instruction(name, parameters, body, meaning)


_SHORT = {"float16": "f16", "bfloat16": "bf16"}
_MMA = {
    kind: _multiply(f"mma_m16n8k16_{short}", f"mma.sync.aligned.m16n8k16.row.col.f32.{short}.{short}.f32",
                    (4, 2), "", meanings.multiply(kind))
    for kind, short in _SHORT.items()
}  # fmt: skip
_MMA_SP = {
    (kind, selector): _multiply(
        f"mma_sp_m16n8k32_{short}_{selector}",
        f"mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{short}.{short}.f32",
        (4, 4), f"0x{selector}", meanings.multiply_sparse(kind, selector))
    for kind, short in _SHORT.items() for selector in (0, 1)
}  # fmt: skip
#: ``(float* d, const unsigned* a, const unsigned* b)``: d[16, 8] += a[16, 8] b[8, 8], tf32
mma_m16n8k8_tf32 = _multiply(
    "mma_m16n8k8_tf32",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    (4, 2),
    "",
    meanings.multiply_tf32,
)
#: ``(float value) -> uint32``: rounded to tf32, ties away from zero
round_tf32 = _instruction(
    "round_tf32", "float value",
    'unsigned bits; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value)); return bits;',
    meanings.round_tf32, "uint32",
)  # fmt: skip


def mma_m16n8k16(dtype: str) -> Instruction:
    """``(float* d, const unsigned* a, const unsigned* b)``: d[16, 8] += a[16, 16] b[16, 8], of halves."""
    return _MMA[dtype]


def mma_sp_m16n8k32(dtype: str, selector: int) -> Instruction:
    """``(float* d, unsigned* a, unsigned* b, unsigned metadata)``: d[16, 8] += a[16, 32] b[32, 8], of halves.

    a's 16 x 16 stored elements are two of every four neighbours; the metadata register, made by
    :func:`~sparsec.targets.cuda.interpreter.fragments.sparse_metadata`, says which.  ``selector`` 0 takes
    it from threads with lane % 4 in {0, 1}, 1 from those in {2, 3}: two tiles' metadata fit one register of
    a warp.
    """
    return _MMA_SP[dtype, selector]


def _cp_async(nbytes: int) -> Instruction:
    """``(void* to, const void* from, int valid)``: bytes to shared memory; zeros where not valid."""
    cache = "cg" if nbytes == 16 else "ca"
    body = (
        f'asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes}, %2;"\n'
        f'    :: {_SHARED.format("to")}, "l"(__cvta_generic_to_global(from)), "r"(valid ? {nbytes} : 0)\n'
        '    : "memory");'
    )
    parameters = "void* to, const void* from, int valid"
    return _instruction(f"cp_async_{nbytes}", parameters, body, meanings.copy_later(nbytes))


cp_async_4, cp_async_8, cp_async_16 = (_cp_async(n) for n in (4, 8, 16))
#: ``()``: the thread's copies since the last commit are a group
cp_async_commit = _instruction(
    "cp_async_commit", "", 'asm volatile("cp.async.commit_group;" ::: "memory");', meanings.commit
)
_WAITS = tuple(
    _instruction(
        f"cp_async_wait_{n}", "", f'asm volatile("cp.async.wait_group {n};" ::: "memory");', meanings.wait(n)
    )
    for n in range(8)
)


def cp_async_wait(pending: int) -> Instruction:
    """``()``: all of the thread's groups have arrived but the latest ``pending`` (0 to 7)."""
    return _WAITS[pending]


#: ``()``: the warp's threads have come here, and see what each other wrote before
syncwarp = _instruction("syncwarp", "", "__syncwarp();", meanings.sync_warp)


def _shuffle(name: str, function: str, meaning: Any, kind: str) -> Instruction:
    suffix = "" if kind == "float32" else "_u32"
    return _instruction(f"{name}{suffix}", f"{_TYPES[kind]} value, int which",
                        f"return {function}(0xffffffffu, value, which);", meaning, kind)  # fmt: skip


#: ``(value, int distance) -> value`` of the lane so much further on; one's own where there is none
shuffle_down, shuffle_down_u32 = (
    _shuffle("shuffle_down", "__shfl_down_sync", meanings.shuffle_down, kind)
    for kind in ("float32", "uint32")
)
#: ``(value, int mask) -> value`` of lane ^ mask
shuffle_xor, shuffle_xor_u32 = (
    _shuffle("shuffle_xor", "__shfl_xor_sync", meanings.shuffle_xor, kind) for kind in ("float32", "uint32")
)
#: ``(value, int lane) -> value`` of that lane
shuffle_from, shuffle_from_u32 = (
    _shuffle("shuffle_from", "__shfl_sync", meanings.shuffle_from, kind) for kind in ("float32", "uint32")
)
#: ``(int predicate) -> uint32``: a bit for every lane
ballot = _instruction("ballot", "int predicate", "return __ballot_sync(0xffffffffu, predicate);",
                      meanings.ballot, "uint32")  # fmt: skip
#: ``(unsigned value) -> int32``: its bits that are set
popc = _instruction("popc", "unsigned value", "return __popc(value);", meanings.population, "int32")


def warp_sum(kernel: Any, value: Any) -> Any:
    """The sum of a float32 over a warp's threads, known to all of them."""
    for distance in (16, 8, 4, 2, 1):
        value = kernel.bind(value + kernel.value(shuffle_xor, value, distance))
    return value


def warp_max(kernel: Any, value: Any) -> Any:
    """The largest float32 of a warp's threads, known to all of them."""
    from tvm import tirx

    for distance in (16, 8, 4, 2, 1):
        value = kernel.bind(tirx.max(value, kernel.value(shuffle_xor, value, distance)))
    return value


_PACK = {
    kind: _instruction(f"pack_{short}", "float low, float high",
                       f'unsigned word;\n  asm("cvt.rn.{short}x2.f32 %0, %1, %2;"'
                       ' : "=r"(word) : "f"(high), "f"(low));\n  return word;', meanings.pack(kind), "uint32")
    for kind, short in _SHORT.items()
}  # fmt: skip
_UNPACK = {
    "float16": _instruction(
        "unpack_f16", "float* to, unsigned word",
        'asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"'
        ' : "=f"(to[0]), "=f"(to[1]) : "r"(word));', meanings.unpack("float16")),
    "bfloat16": _instruction(
        "unpack_bf16", "float* to, unsigned word",
        "to[0] = __uint_as_float(word << 16); to[1] = __uint_as_float(word & 0xffff0000u);",
        meanings.unpack("bfloat16")),
}  # fmt: skip


def pack(dtype: str) -> Instruction:
    """``(float low, float high) -> uint32`` of two float16 or bfloat16, rounded to nearest even."""
    return _PACK[dtype]


def unpack(dtype: str) -> Instruction:
    """``(float* to, unsigned word)``: the two float16 or bfloat16 of a register, the lower first."""
    return _UNPACK[dtype]


#: ``(unsigned* to, const void* from)``: 16 bytes of read-only global memory that will not be read again soon
load_once = _instruction(
    "load_once", "unsigned* to, const void* from",
    'asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"\n'
    '    : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(__cvta_generic_to_global(from)));',
    meanings.load_once,
)  # fmt: skip
#: ``(float* to, const float* from)``: four registers to 16 bytes of global memory, in one access: nvcc splits
#: such a store where the numbers are the results of long chains of arithmetic
store_quad = _instruction(
    "store_quad", "float* to, const float* from",
    'asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};"\n'
    '    :: "l"(__cvta_generic_to_global(to)), "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3])\n'
    '    : "memory");',
    meanings.store_quad,
)  # fmt: skip
#: ``(float* to, float value)``: added to global (or shared) memory, in any order of threads
atomic_add = _instruction(
    "atomic_add", "float* to, float value", "atomicAdd(to, value);", meanings.atomic_add
)


def _approximate(name: str, operation: str, function: Any) -> Instruction:
    body = f'float result; asm("{operation} %0, %1;" : "=f"(result) : "f"(value)); return result;'
    return _instruction(name, "float value", body, meanings.elementwise(function), "float32")


def _extreme(name: str, operation: str, function: Any) -> Instruction:
    body = f'float result; asm("{operation} %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b)); return result;'
    return _instruction(name, "float a, float b", body, meanings.elementwise(function), "float32")


#: ``(float, float) -> float``: the larger, the smaller; a NaN on either side wins, as in NumPy
maximum = _extreme("maximum", "max.NaN.f32", np.maximum)
minimum = _extreme("minimum", "min.NaN.f32", np.minimum)
#: ``(float) -> float``: 2 ** x, two units in the last place off at most
exp2 = _approximate("exp2", "ex2.approx.ftz.f32", np.exp2)
#: ``(float) -> float``: 1 / x, one unit in the last place off at most
reciprocal = _approximate("reciprocal", "rcp.approx.ftz.f32", np.reciprocal)
#: ``(float) -> float``: tanh, off by 2 ** -11 of its value at most
tanh = _approximate("tanh", "tanh.approx.f32", np.tanh)


#: ``(unsigned* to, const void* from, unsigned word, unsigned first)``: four halves, those whose bit of the
#: word is set (``first`` is the lowest's, a single bit) one after the other from shared memory, the others
#: zero; the half behind the last one taken may be read too
expand_halves = _instruction(
    "expand_halves", "unsigned* to, const void* from, unsigned word, unsigned first",
    'asm volatile("{.reg .pred p<4>; .reg .b32 h<4>, at; mov.b32 at, %2;"\n'
    + "".join(
        f'    "setp.ne.u32 p{i}, %{3 + i}, 0; ld.shared.u16 h{i}, [at];"\n'
        f'    "@p{i} add.u32 at, at, 2; selp.b32 h{i}, h{i}, 0, p{i};"\n'
        for i in range(4)
    )
    + '    "prmt.b32 %0, h0, h1, 0x5410; prmt.b32 %1, h2, h3, 0x5410;}"\n'
    + f'    : "=r"(to[0]), "=r"(to[1]) : {_SHARED.format("from")}, '
    + _list(f'"r"(word & (first << {i}))' for i in range(4)) + ' : "memory");',
    meanings.expand_halves,
)  # fmt: skip

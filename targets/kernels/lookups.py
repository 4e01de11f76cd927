"""lookups: elements of a few registers at positions read at run time, by one instruction a vector.

AVX2 permutes one register, AVX-512 one or two, SVE one; NEON's ``tbl`` looks bytes up in as many
as four, so its index is made of positions times four, one in each byte of a lane.  Beyond the
registers' end ARM's instructions answer 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.target import Target

_PERMUTE = {
    # (lanes, registers) -> LLVM intrinsic
    (8, 1): "llvm.x86.avx2.permps",
    (16, 1): "llvm.x86.avx512.permvar.sf.512",
    (16, 2): "llvm.x86.avx512.vpermi2var.ps.512",
}
#: cycles of NEON's tbl by registers (Neoverse N1 software optimization guide), and of SVE's
_TBL = {1: 0.5, 2: 0.5, 3: 1.0, 4: 1.5}
#: beyond any table
NOWHERE = 255


def is_neon(target: Target) -> bool:
    """Whether lookups are NEON's, of bytes."""
    return target.architecture == "aarch64" and target.lanes == 4


def is_sve(target: Target) -> bool:
    """Whether lookups are SVE's."""
    return target.architecture == "aarch64" and target.lanes > 4


def table_sizes(target: Target) -> tuple[int, ...]:
    """Registers that one instruction looks up in, the usual number first."""
    if is_neon(target):
        return (2, 4)
    if is_sve(target):
        return (1,)
    return (2, 1) if (target.lanes, 2) in _PERMUTE else (1,)


def slot_cycles(registers: int, columns: int, target: Target) -> float:
    """Cycles of a vector of nonzeros times ``columns`` vectors looked up."""
    if target.architecture == "aarch64":
        # by llvm-mca for Neoverse N1 and V1: two loads and, on NEON, two instructions that make an index
        index = 1.5 if is_neon(target) else 0.0
        return max(1.25, index + columns * (_TBL[registers] + 1 / target.fmas))
    # fitted on Zen 3: a slot waits for the shuffle ports
    return 0.4 + 1.55 * columns


def stored(positions: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
    """Positions as :func:`index` reads them."""
    return (positions * 4).astype(np.uint8) if is_neon(target) else positions


def stored_type(target: Target) -> str:
    """The dtype of the parameter that holds :func:`stored` positions."""
    return "int32" if is_neon(target) else "uint8"


def index(k: Kernel, positions: Any, at: Any, target: Target) -> Any:
    """The index of a vector whose positions, one a lane, begin at ``at`` (a multiple of the lanes)."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as T

    if not is_neon(target):
        return k.bind(T.cast(k.vector(positions, at), f"int32x{k.lanes}"))
    four = T.reinterpret("uint8x16", T.Broadcast(positions[T.truncdiv(at, k.constant(4))], 4))
    spread = T.Shuffle([four], [lane // 4 for lane in range(16)])
    bytes_of_lane = T.reinterpret("uint8x16", T.Broadcast(tirx.IntImm("int32", 0x03020100), 4))
    return k.bind(spread + bytes_of_lane)


def look_up(registers: Sequence[Any], index: Any, target: Target) -> Any:
    """The elements of the registers, joined, at the index; float32."""
    from tvm.script.ir_builder import tirx as T

    kind = f"float32x{target.lanes}"
    if is_neon(target):
        return in_bytes(registers, index)
    if is_sve(target):
        found = T.call_llvm_pure_intrin(
            "float32xvscalex4", "llvm.aarch64.sve.tbl",
            _scalable("float32", registers[0], T.float32(0)), _scalable("int32", index, T.int32(0)),
        )  # fmt: skip
        return T.call_llvm_pure_intrin(kind, "llvm.vector.extract", found, T.int64(0))
    operands = [registers[0], index, *registers[1:]]
    return T.call_llvm_pure_intrin(kind, _PERMUTE[target.lanes, len(registers)], *operands)


def in_bytes(registers: Sequence[Any], index: Any) -> Any:
    """NEON's lookup: float32x4 from the bytes of float32x4 at a uint8x16."""
    from tvm.script.ir_builder import tirx as T

    tables = [T.reinterpret("uint8x16", register) for register in registers]
    name = f"llvm.aarch64.neon.tbl{len(tables)}"
    return T.reinterpret("float32x4", T.call_llvm_pure_intrin("uint8x16", name, *tables, index))


def _scalable(element: str, value: Any, zero: Any) -> Any:
    """A vector as one of SVE's, which has the same length."""
    from tvm.script.ir_builder import tirx as T

    kind = f"{element}xvscalex4"
    empty = T.call_llvm_pure_intrin(kind, "llvm.aarch64.sve.dup.x", zero)
    return T.call_llvm_pure_intrin(kind, "llvm.vector.insert", empty, value, T.int64(0))

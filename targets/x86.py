"""x86 targets: the kernels, two portable levels, and the machine at hand."""

from __future__ import annotations

import platform
from dataclasses import replace

from sparsec.errors import ConfigError
from sparsec.targets.facts import with_facts
from sparsec.targets.kernels import (
    active_gemv,
    bitmask_gemv,
    bsr_conv,
    bsr_spmm,
    csr_conv,
    csr_gemv,
    csr_spmm,
    dense_conv,
    dense_gemm,
    dense_gemv,
    hybrid_spmm,
    lookup_gemv,
    nm_conv,
    nm_spmm,
)
from sparsec.targets.measured import facts_of
from sparsec.targets.processor import cpu_features
from sparsec.targets.target import Kernel, Target

#: dense first: where two kernels tie, nothing is gained by a sparse one
KERNELS: tuple[Kernel, ...] = (
    dense_gemm, bsr_spmm, nm_spmm, csr_spmm, hybrid_spmm, dense_gemv, lookup_gemv, csr_gemv, bitmask_gemv,
    active_gemv, dense_conv, bsr_conv, nm_conv, csr_conv,
)  # fmt: skip

_V3 = ("avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

AVX2 = Target(
    "x86-64-v3", "x86-64-v3", _V3, lanes=8, registers=16, l1=32 << 10, l2=512 << 10, l3=16 << 20,
    gigahertz=3.2, l2_bytes=28, l3_bytes=23, dram_bytes=6, kernels=KERNELS,
)  # fmt: skip
AVX512 = Target(
    "x86-64-v4", "x86-64-v4", _V4, lanes=16, registers=32, l1=48 << 10, l2=1 << 20, l3=32 << 20,
    gigahertz=4.2, l1_bytes=120, l2_bytes=56, l3_bytes=26, dram_bytes=10, kernels=KERNELS,
    # loops of single loads beat the microcode of gathers and scatters on most CPUs; and where LLVM
    # prefers 256 bits (v4, Intel), it stores our 512-bit accumulators in halves
    mattr=("+prefer-no-gather", "+prefer-no-scatter", "-prefer-256-bit"),
)  # fmt: skip

#: what LLVM may use when it generates for this very CPU
_KNOWN = (*_V4, "avx512_vnni", "avx512_vbmi", "avx512_vbmi2", "avx512_bitalg", "avx512_vpopcntdq",
          "avx512ifma", "avx512_bf16", "avx_vnni", "gfni", "vaes", "vpclmulqdq", "adx", "sha_ni")  # fmt: skip


def native() -> Target:
    """This machine: its vector level, its own instruction set, and what is known of its core.

    Raises:
        ConfigError: it lacks AVX2.
    """
    base = level()
    name = _llvm_name(base)
    used = replace(base, name=f"native ({name})", mcpu=name, features=_used(base, cpu_features()))
    return with_facts(used, facts_of(used))


def level() -> Target:
    """The widest of the portable levels that this machine runs.

    Raises:
        ConfigError: it runs none.
    """
    features = cpu_features()
    missing = [f for f in _V3 if f not in features]
    if platform.machine() not in ("x86_64", "AMD64") or missing:
        raise ConfigError(
            f"this machine ({platform.machine()}) lacks {', '.join(missing) or 'x86-64'}: "
            "sparsec needs AVX2; compile for another machine with target='x86-64-v3'"
        )
    return AVX512 if all(f in features for f in _V4) else AVX2


def _used(base: Target, features: frozenset[str]) -> tuple[str, ...]:
    return tuple(f for f in _KNOWN if f in features and (base is AVX512 or not f.startswith("avx512")))


def _llvm_name(base: Target) -> str:
    """LLVM's name of this CPU, unless the hypervisor hides part of what that name implies."""
    from tvm.target import codegen

    name = str(codegen.llvm_get_system_cpu())
    if base is AVX2 and name in ("znver4", "znver5", "skylake-avx512", "icelake-server", "sapphirerapids"):
        return base.mcpu
    return name if name and name != "generic" else base.mcpu

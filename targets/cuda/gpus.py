"""gpus: the CUDA targets, their figures, and which of them this machine's GPU is."""

from __future__ import annotations

from sparsec.errors import ConfigError
from sparsec.targets.cuda.driver import capability
from sparsec.targets.cuda.kernels import KERNELS
from sparsec.targets.target import Gpu, Target

_KB, _MB = 1 << 10, 1 << 20

#: what a program's values may be
DTYPES = ("float32", "float16", "bfloat16")

#: NVIDIA's data sheets and tuning guides; bytes a cycle are the sheet's rate over the boost clock
SM80 = Target(
    "sm_80", "sm_80", ("sm_80",), lanes=32, registers=255, l1=163 * _KB, l2=40 * _MB, l3=0, gigahertz=1.41,
    triple="cuda", kernels=KERNELS, dtypes=DTYPES,
    gpu=Gpu(multiprocessors=108, tensor_flops=2048, flops=128, l2_bytes=3000, dram_bytes=1100, launch=4200),
)  # fmt: skip
_HOPPER = Gpu(multiprocessors=132, tensor_flops=4096, flops=256, l2_bytes=3500, dram_bytes=2500, launch=5000)
SM90 = Target(
    "sm_90", "sm_90", ("sm_90",), lanes=32, registers=255, l1=227 * _KB, l2=50 * _MB, l3=0, gigahertz=1.83,
    triple="cuda", kernels=KERNELS, dtypes=DTYPES, gpu=_HOPPER,
)  # fmt: skip
SM90A = Target(
    "sm_90a", "sm_90a", ("sm_90a",), lanes=32, registers=255, l1=227 * _KB, l2=50 * _MB, l3=0,
    gigahertz=1.83, triple="cuda", kernels=KERNELS, dtypes=DTYPES, gpu=_HOPPER,
)  # fmt: skip

TARGETS = (SM80, SM90, SM90A)


def native() -> Target:
    """What the GPU of this machine is.

    Raises:
        ConfigError: there is none, or none that a target is for.
    """
    found = capability()
    if found is None:
        raise ConfigError(
            "target cuda is the GPU of this machine, and none was found; to compile for another machine's, "
            "name it: sm_80 or sm_90a"
        )
    for target in reversed(TARGETS):
        if _fits(target, found):
            return target
    raise ConfigError(
        f"this machine's GPU has compute capability {found[0]}.{found[1]}; there are targets for 8.x (sm_80) "
        "and 9.0 (sm_90a)"
    )


def runs_here(target: Target) -> bool:
    """Whether this machine's GPU runs code for a target."""
    found = capability()
    return found is not None and _fits(target, found)


def _fits(target: Target, capability: tuple[int, int]) -> bool:
    """Code runs on GPUs of the same major number and no lower minor one; what ends in a on one kind only."""
    major, minor = divmod(int(target.mcpu.removeprefix("sm_").rstrip("a")), 10)
    if target.mcpu.endswith("a"):
        return capability == (major, minor)
    return capability[0] == major and capability[1] >= minor

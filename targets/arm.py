"""ARM targets (aarch64): the kernels, two portable levels, three cores, and the machine at hand.

The figures are estimates for one core: clocks of common machines (Raspberry Pi 4 and 5, Graviton 2
and 3), caches, vector pipes and load widths as ARM's technical reference manuals and software
optimization guides give them; bytes a cycle of L2, L3 and memory are round figures.  Nothing was
timed: ``sparsec machine --measure`` does so on the machine itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sparsec.errors import ConfigError
from sparsec.targets.facts import with_facts
from sparsec.targets.measured import facts_of
from sparsec.targets.processor import Processor, this_processor
from sparsec.targets.target import Target
from sparsec.targets.x86 import KERNELS

TRIPLE = "aarch64-linux-gnu"

_NEON = ("asimd",)
_DOT = (*_NEON, "atomics", "asimdrdm", "asimddp")
_HALF = (*_DOT, "fphp", "asimdhp", "lrcpc")
#: sve256: scalable vectors that are 256 bits long on this machine
_SVE256 = (*_HALF, "fcma", "asimdfhm", "i8mm", "bf16", "sve", "sve256")

NEON = Target(
    "aarch64", "generic", _NEON, lanes=4, registers=32, l1=32 << 10, l2=1 << 20, l3=1 << 20,
    gigahertz=1.8, fmas=1, l1_bytes=16, l2_bytes=10, l3_bytes=8, dram_bytes=2.5, gathers=0.8, mispredict=15,
    triple=TRIPLE, kernels=KERNELS,
)  # fmt: skip
DOT = replace(
    NEON, name="armv8.2-a+dotprod", features=_DOT, mattr=("+v8.2a", "+dotprod"), l1=64 << 10, l2=512 << 10,
    l3=2 << 20, gigahertz=2.0, fmas=2, l1_bytes=32, l2_bytes=20, l3_bytes=10, dram_bytes=4, gathers=1.0,
    mispredict=12,
)  # fmt: skip
CORTEX_A76 = replace(
    DOT, name="cortex-a76", mcpu="cortex-a76", mattr=(), features=_HALF, gigahertz=2.4, l2_bytes=22,
    dram_bytes=4.5,
)  # fmt: skip
NEOVERSE_N1 = replace(
    CORTEX_A76, name="neoverse-n1", mcpu="neoverse-n1", l2=1 << 20, l3=32 << 20, gigahertz=2.5, dram_bytes=7,
)  # fmt: skip
# LLVM takes vectors of a known length into SVE registers only when told how long those are
NEOVERSE_V1 = replace(
    NEOVERSE_N1, name="neoverse-v1", mcpu="neoverse-v1", features=_SVE256, lanes=8, gigahertz=2.6,
    l1_bytes=64, l2_bytes=40, l3_bytes=16, dram_bytes=11, gathers=1.4,
    options=("-aarch64-sve-vector-bits-min:int=256", "-aarch64-sve-vector-bits-max:int=256"),
)  # fmt: skip

TARGETS = (NEON, DOT, CORTEX_A76, NEOVERSE_N1, NEOVERSE_V1)

#: part numbers of ARM's cores (/proc/cpuinfo) whose code is that of one of ours: Cortex-A76 to A78,
#: Neoverse N1 and its successors with vectors of 128 bits, N2, V2 and V3; Neoverse V1
_PARTS: Mapping[int, Target] = {
    0xD0B: CORTEX_A76, 0xD0D: CORTEX_A76, 0xD41: CORTEX_A76,
    0xD0C: NEOVERSE_N1, 0xD49: NEOVERSE_N1, 0xD4F: NEOVERSE_N1, 0xD84: NEOVERSE_N1, 0xD40: NEOVERSE_V1,
}  # fmt: skip
_ARM = "0x41"


def native() -> Target:
    """This machine: its own core where that is one of ours, else the best level it can run.

    Raises:
        ConfigError: it lacks NEON.
    """
    base = core_of(this_processor())
    return with_facts(replace(base, name=f"native ({base.name})"), facts_of(base))


def level() -> Target:
    """What :func:`native` starts from, with the figures that ship."""
    return core_of(this_processor())


def core_of(processor: Processor) -> Target:
    """The target for a processor: by its part number, as far as its features allow, else by those.

    Raises:
        ConfigError: it lacks NEON.
    """
    named = _PARTS.get(processor.model) if processor.vendor == _ARM else None
    for target in (named, NEOVERSE_N1 if named else None, DOT, NEON):
        if target is not None and set(target.features) <= processor.flags:
            return target
    raise ConfigError(
        "this machine (aarch64) lacks asimd, or /proc/cpuinfo does not say so: sparsec needs NEON; compile "
        f"for another machine with target={NEON.name!r}"
    )

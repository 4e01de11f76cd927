"""What one core of a machine can do, in figures, and the figures of processors we know.

Where they come from: Zen 3's were measured by ``sparsec machine --measure``; Zen 5's clock and bytes a
cycle on one server of the full-width kind.  Cache sizes, vector units and load ports of the others are
those their makers publish; their bytes a cycle of L2, L3 and memory, gathers and wrong guesses are
round estimates from that and from what is commonly measured, good enough to tell a cache from
memory: measure where it matters.  A clock is what one busy core of a common model holds under vector
code: it scales all predictions alike and decides nothing between kernels that stay in the caches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from sparsec.targets.processor import Processor
from sparsec.targets.target import Target

_KB, _MB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Facts:
    """One core of a machine; the names are those of :class:`Target`.

    Attributes:
        gigahertz: the clock under vector code: peak GFLOP/s over flops a cycle.
        fmas: vector multiply-adds a cycle, at the width the target uses.
        l1, l2, l3: bytes of the data caches.
        l1_bytes, l2_bytes, l3_bytes, dram_bytes: bytes a cycle that arithmetic reads from there, one
            operation a load.
        gathers: elements a cycle read at random places of L1 and put into vectors.
        mispredict: cycles lost at the end of a loop whose length nobody could guess.
    """

    gigahertz: float
    fmas: float
    l1: int
    l2: int
    l3: int
    l1_bytes: float
    l2_bytes: float
    l3_bytes: float
    dram_bytes: float
    gathers: float
    mispredict: float

    def gflops(self, lanes: int) -> float:
        """Peak of float32 multiply-adds in vectors of so many lanes."""
        return 2 * self.gigahertz * self.fmas * lanes


#: the names of the figures, in the order they are printed
NAMES = tuple(f.name for f in fields(Facts))


@dataclass(frozen=True, slots=True)
class Known:
    """Figures of a kind of processor: who made it, its families' models, the lanes they hold for."""

    name: str
    vendor: str
    family: int
    models: tuple[range, ...]
    lanes: int
    facts: Facts


def _models(*ends: tuple[int, int]) -> tuple[range, ...]:
    return tuple(range(first, last + 1) for first, last in ends)


_AMD, _INTEL = "AuthenticAMD", "GenuineIntel"

#: GHz, multiply-adds; L1, L2, L3; bytes a cycle from each and from memory; gathers, wrong guesses
SHIPPED: tuple[Known, ...] = (
    Known("Zen 2", _AMD, 0x17, _models((0x30, 0x3F), (0x60, 0x7F), (0x90, 0xAF)), 8,
          Facts(3.2, 2, 32 * _KB, 512 * _KB, 16 * _MB, 60, 28, 20, 6, 1.0, 20)),
    Known("Zen 3, server", _AMD, 0x19, _models((0x00, 0x0F)), 8,
          Facts(3.2, 2, 32 * _KB, 512 * _KB, 32 * _MB, 60, 28, 23, 6, 1.2, 18)),
    Known("Zen 3, desktop and mobile", _AMD, 0x19, _models((0x20, 0x2F), (0x40, 0x5F)), 8,
          Facts(4.4, 2, 32 * _KB, 512 * _KB, 32 * _MB, 60, 28, 23, 7, 1.2, 18)),
    # 512-bit instructions take both halves of a 256-bit core in turn
    Known("Zen 4, server", _AMD, 0x19, _models((0x10, 0x1F), (0xA0, 0xAF)), 16,
          Facts(3.6, 1, 32 * _KB, 1 * _MB, 32 * _MB, 62, 29, 23, 8, 1.2, 18)),
    Known("Zen 4, desktop and mobile", _AMD, 0x19, _models((0x60, 0x7F)), 16,
          Facts(4.9, 1, 32 * _KB, 1 * _MB, 32 * _MB, 62, 29, 23, 9, 1.2, 18)),
    Known("Zen 5, full width", _AMD, 0x1A, _models((0x00, 0x1F), (0x40, 0x4F), (0x70, 0x7F)), 16,
          Facts(4.5, 2, 48 * _KB, 1 * _MB, 32 * _MB, 126, 54, 24, 10, 1.2, 18)),
    Known("Zen 5, half width", _AMD, 0x1A, _models((0x20, 0x3F), (0x60, 0x6F)), 16,
          Facts(4.6, 1, 48 * _KB, 1 * _MB, 16 * _MB, 63, 29, 22, 9, 1.2, 18)),
    Known("Skylake-X, Cascade Lake", _INTEL, 6, _models((0x55, 0x55)), 16,
          Facts(2.9, 2, 32 * _KB, 1 * _MB, 24 * _MB, 115, 46, 10, 4.5, 1.0, 19)),
    Known("Ice Lake-SP", _INTEL, 6, _models((0x6A, 0x6A), (0x6C, 0x6C)), 16,
          Facts(3.1, 2, 48 * _KB, 1280 * _KB, 48 * _MB, 115, 46, 10, 4.5, 1.0, 19)),
    Known("Sapphire Rapids, Emerald Rapids", _INTEL, 6, _models((0x8F, 0x8F), (0xCF, 0xCF)), 16,
          Facts(3.2, 2, 48 * _KB, 2 * _MB, 96 * _MB, 115, 46, 10, 4.5, 1.0, 19)),
    Known("Alder Lake, Raptor Lake", _INTEL, 6,
          _models((0x97, 0x97), (0x9A, 0x9A), (0xB7, 0xB7), (0xBA, 0xBA), (0xBF, 0xBF)), 8,
          Facts(4.8, 2, 48 * _KB, 1280 * _KB, 24 * _MB, 62, 44, 16, 8, 1.0, 19)),
)  # fmt: skip


def known_as(processor: Processor) -> Known | None:
    """The kind of processor it is; None if we have no figures of it."""
    for known in SHIPPED:
        same = (known.vendor, known.family) == (processor.vendor, processor.family)
        if same and any(processor.model in models for models in known.models):
            return known
    return None


def of_target(target: Target) -> Facts:
    """The figures the target itself carries."""
    return Facts(**{name: getattr(target, name) for name in NAMES})


def with_facts(target: Target, facts: Facts) -> Target:
    """The target with these figures."""
    return replace(target, **{name: getattr(facts, name) for name in NAMES})


def shipped(processor: Processor, target: Target) -> Facts:
    """The figures that ship for a processor, or those of the target if it is of no kind we know."""
    known = known_as(processor)
    if known is None:
        return of_target(target)
    return known.facts if target.lanes >= known.lanes else _narrowed(known.facts)


def _narrowed(facts: Facts) -> Facts:
    """With 256-bit vectors, where a hypervisor hides AVX-512: two loads and two sums a cycle at most."""
    return replace(facts, fmas=2.0, l1_bytes=min(facts.l1_bytes, 62.0))

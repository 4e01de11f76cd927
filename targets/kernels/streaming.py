"""streaming: where weights that are read once a run come from, and how fast."""

from __future__ import annotations

from typing import Any

from sparsec.targets.target import Target

#: floats ahead of the stream that a prefetch asks for: the hardware's own stop at the end of a page
AHEAD = 512
_LINE = 16
#: shares of L3: weights of fewer bytes stay there between runs, of more come from memory
KEPT = (0.3, 0.9)
#: share of the shorter of computing and reading that does not overlap with the longer
STALLED = 0.1


def stream_cycles(nbytes: float, target: Target) -> float:
    """Cycles one core takes to read a packed weight once, from the level that holds it between runs.

    ``target.l3`` is what the weight finds of L3 beside a program's other weights.  Other cores want
    some of it too: above :data:`KEPT` of it a growing share comes from memory.
    """
    if nbytes < target.l2 / 2:
        return nbytes / target.l2_bytes
    low, high = KEPT
    share = min(1.0, max(0.0, (nbytes / target.l3 - low) / (high - low)))
    return nbytes * (share / target.dram_bytes + (1 - share) / target.l3_bytes)


def prefetch(buffer: Any, offset: Any, lines: int = 1) -> None:
    """Ask for the cache lines from an element on, which need not exist."""
    from tvm.script.ir_builder import tirx as T

    for line in range(lines):
        address = T.address_of(buffer[offset + line * _LINE])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))

"""streaming: asking for weights that are read once a run before they are needed."""

from __future__ import annotations

from typing import Any

#: floats ahead of the stream that a prefetch asks for: the hardware's own stop at the end of a page
AHEAD = 512
_LINE = 16


def prefetch(buffer: Any, offset: Any, lines: int = 1) -> None:
    """Ask for the cache lines from an element on, which need not exist."""
    from tvm.script.ir_builder import tirx as T

    for line in range(lines):
        address = T.address_of(buffer[offset + line * _LINE])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))

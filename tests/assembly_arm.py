"""Reads the ARM assembly LLVM prints: innermost loops and what is in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L\w+):")
_JUMP = re.compile(r"^\s+(?:b\.\w+|b|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s+(\.L\w+)$")
_FMA = re.compile(r"^\s+(?:fmla|fmls|fmad|fnmad)\s+([vz])\d+\.(?:4s|s)\b")
#: a vector moved to or from the stack
_SPILL = re.compile(r"^\s+(?:ldr|str|ldp|stp|ld1\w|st1\w)\s+\{?\s*[qvz]\d+.*\[sp\b")


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of one innermost loop, in order."""

    lines: tuple[str, ...]

    @property
    def registers(self) -> list[str]:
        """The kind of register of each vector multiply-add: v for NEON's, z for SVE's."""
        return [m[1] for m in map(_FMA.match, self.lines) if m]

    @property
    def spills(self) -> list[str]:
        """Vector moves to and from the stack: not enough registers."""
        return [line.strip() for line in self.lines if _SPILL.match(line)]

    def count(self, mnemonic: str) -> int:
        """Instructions whose name matches the regular expression."""
        return sum(bool(re.match(rf"\s+(?:{mnemonic})\s", line)) for line in self.lines)


def innermost_loops(text: str) -> list[Loop]:
    """Every stretch from a label to a jump back to it that holds no other such stretch."""
    lines = [line.split("//")[0].rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line and not re.match(r"^\s*\.(?!L)|^\.Ltmp", line)]
    labels = {m[1]: i for i, line in enumerate(lines) if (m := _LABEL.match(line))}
    jumps = [(labels.get(m[1], i + 1), i) for i, line in enumerate(lines) if (m := _JUMP.match(line))]
    spans = [(start, end) for start, end in jumps if start <= end]
    inner = [
        one for one in spans
        if not any(other != one and one[0] <= other[0] and other[1] <= one[1] for other in spans)
    ]  # fmt: skip
    return [Loop(tuple(lines[start : end + 1])) for start, end in inner]


def hottest(text: str) -> Loop:
    """The innermost loop with most multiply-adds."""
    return max(innermost_loops(text), key=lambda loop: len(loop.registers))

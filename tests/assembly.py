"""Reads the assembly LLVM prints (AT&T syntax): innermost loops and what is in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L\w+):")
_JUMP = re.compile(r"^\s+j\w+\s+(\.L\w+)")
_FMA = re.compile(r"^\s+vf(?:n?m)(?:add|sub)\d+[ps]s\s+(.*)$")
#: a vector moved to or from memory whose address begins with this register
_MOVE = re.compile(r"^\s+vmov\w*\s.*\((%r[sb]p)\b")
#: the register that holds the frame's address, in functions that have such a register
_FRAME = re.compile(r"^\s+movq\s+%rsp, (%rbp)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of one innermost loop, in order; ``stack``: what registers address the stack."""

    lines: tuple[str, ...]
    stack: frozenset[str] = frozenset({"%rsp"})

    @property
    def operands(self) -> list[str]:
        """The operands of its fused multiply-adds."""
        return [m[1] for m in map(_FMA.match, self.lines) if m]

    @property
    def multiply_adds(self) -> int:
        """Fused multiply-adds of any kind."""
        return len(self.operands)

    @property
    def from_memory(self) -> int:
        """Fused multiply-adds that read an operand from memory, not from the stack."""
        return sum("(" in o and "%rsp" not in o for o in self.operands)

    @property
    def spills(self) -> list[str]:
        """Vector moves to and from the stack: not enough registers."""
        return [line.strip() for line in self.lines if (m := _MOVE.match(line)) and m[1] in self.stack]

    def count(self, mnemonic: str) -> int:
        """Instructions whose name matches the regular expression."""
        return sum(bool(re.match(rf"\s+(?:{mnemonic})\s", line)) for line in self.lines)

    def registers(self) -> set[str]:
        """Kinds of vector register its multiply-adds use: xmm, ymm, zmm."""
        return {kind for o in self.operands for kind in re.findall(r"%([xyz]mm)", o)}


def innermost_loops(text: str) -> list[Loop]:
    """Every stretch from a label to a jump back to it that holds no other such stretch."""
    stack = frozenset({"%rsp", *_FRAME.findall(text)})
    lines = [line.split("#")[0].rstrip() for line in text.splitlines()]
    labels = {m[1]: i for i, line in enumerate(lines) if (m := _LABEL.match(line))}
    spans = []
    for i, line in enumerate(lines):
        jump = _JUMP.match(line)
        if jump and labels.get(jump[1], i) < i:
            spans.append((labels[jump[1]], i))
    inner = [s for s in spans if not any(s[0] <= o[0] and o[1] <= s[1] and o != s for o in spans)]
    return [Loop(tuple(lines[low : high + 1]), stack) for low, high in inner]


def hottest_loop(text: str) -> Loop:
    """The innermost loop with the most multiply-adds."""
    return max(innermost_loops(text), key=lambda loop: loop.multiply_adds)

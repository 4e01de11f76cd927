"""The instructions an ARM kernel executes: it runs under qemu-user, which lists what it ran.

Needs Debian's ``gcc-aarch64-linux-gnu``, ``qemu-user`` and ``llvm-22`` (for llvm-objdump).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import qemu_arm
from every_kernel import record, sources
from kernel_harness import Case

from sparsec.targets.build import module_of

_ROOT = Path(__file__).resolve().parents[1]
_RUNTIME = _ROOT / "runtime" / "csrc"
#: the function that TVM makes of a kernel's body
_BODY = "k0_compute_"
_PAGE = 4096
_SILENT: Mapping[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(.*?)\s*(?://.*)?$")
_TRACED = re.compile(r"^Trace .*?\[[0-9a-f]+/([0-9a-f]+)/")
_ADDRESS = re.compile(r"0x([0-9a-f]+) <[^>]*>")
#: instructions after which another than the next may run; the first group may go either way
_CONDITIONAL = re.compile(r"^(?:b\.\w+|cbn?z|tbn?z)\s")
_BRANCH = re.compile(r"^(?:b|bl|br|blr|ret)(?:\s|$)")
_FMA = re.compile(r"^(?:fml[as]|fm(?:add|sub)|fnm(?:add|sub)|fmad|fmsb)\s+([vzs])\d+(?:\.(\d*)([a-z]))?")


def missing(objdump: str) -> str | None:
    """Which tools are not here, or None."""
    if shutil.which(objdump) is None:
        return f"no {objdump}: install Debian's llvm-22"
    return qemu_arm.missing()


def lanes_of(instruction: str, scalable: int = 8) -> int:
    """Float32 multiply-adds that an instruction does; a scalable vector holds so many."""
    found = _FMA.match(instruction)
    if not found:
        return 0
    kind, count, _ = found.groups()
    return {"v": int(count or 1), "z": scalable, "s": 1}[kind]


@dataclass(frozen=True)
class Trace:
    """What one call executed: ``text`` of instructions by address, and the ``entered`` blocks.

    A block begins where the emulator began to translate, and ends with a branch, at the end of a
    page, or where the next one begins without being jumped to.
    """

    text: Mapping[int, str]
    entered: Sequence[int]

    @cached_property
    def blocks(self) -> Mapping[int, tuple[int, ...]]:
        """The addresses of each block's instructions."""
        targets = {int(a, 16) for text in self.text.values() for a in _ADDRESS.findall(text)}
        following: dict[int, set[int]] = {block: set() for block in self.entered}
        for block, after in pairwise(self.entered):
            following[block].add(after)
        return {block: tuple(self._block(block, after - targets)) for block, after in following.items()}

    def _block(self, start: int, split: set[int]) -> Iterator[int]:
        at = start
        while at in self.text:
            yield at
            ends = _CONDITIONAL.match(self.text[at]) or _BRANCH.match(self.text[at])
            at += 4
            if ends or at % _PAGE == 0 or at in split:
                return

    @cached_property
    def counts(self) -> Counter[int]:
        """How often each block was entered."""
        return Counter(self.entered)

    @property
    def instructions(self) -> int:
        """Instructions executed."""
        return sum(n * len(self.blocks[b]) for b, n in self.counts.items())

    @property
    def multiply_adds(self) -> int:
        """Float32 multiply-adds executed, each lane of a vector one."""
        return sum(n * self._lanes(b) for b, n in self.counts.items())

    @property
    def vector_multiply_adds(self) -> int:
        """Multiply-add instructions executed."""
        return sum(n * sum(lanes_of(t) > 0 for t in self.lines(b)) for b, n in self.counts.items())

    def lines(self, block: int) -> list[str]:
        """The instructions of a block."""
        return [self.text[a] for a in self.blocks[block]]

    def _lanes(self, block: int) -> int:
        return sum(map(lanes_of, self.lines(block)))

    @property
    def hot(self) -> list[str]:
        """The block that does the most multiply-adds: the body of the hot loop."""
        return self.lines(max(self.counts, key=lambda b: self.counts[b] * self._lanes(b)))

    @cached_property
    def unforeseen(self) -> int:
        """Conditional branches guessed wrong by a predictor that expects each run to be as long as the last.

        A run is how often in a row a branch goes one way.  So the end of a loop is foreseen where
        its trip count repeats, and of an alternating branch too.
        """
        state: dict[int, list[int]] = {}
        wrong = 0
        for block, following in pairwise(self.entered):
            last = self.blocks[block][-1]
            if not _CONDITIONAL.match(self.text[last]):
                continue
            taken = int(following != last + 4)
            # way of the current run, its length, lengths of the last run not taken and taken
            now = state.setdefault(last, [taken, 0, -1, -1])
            if taken == now[0]:
                wrong += now[1] == now[2 + taken]
                now[1] += 1
            else:
                wrong += now[1] != now[2 + now[0]]
                now[2 + now[0]], now[0], now[1] = now[1], taken, 1
        return wrong

    def stretches(self, count: int, size: int) -> list[list[str]]:
        """So many stretches of about ``size`` instructions from all over; everything if that is not more.

        One begins at a random place of every ``count``-th part, since loops repeat at even distances.
        """
        if self.instructions <= count * size:
            return [[text for block in self.entered for text in self.lines(block)]]
        ends = np.cumsum([len(self.blocks[b]) for b in self.entered])
        begins = (np.arange(count) + np.random.default_rng(0).random(count)) * ((ends[-1] - size) / count)
        places = zip(np.searchsorted(ends, begins), np.searchsorted(ends, begins + size), strict=True)
        return [[t for b in self.entered[low:high] for t in self.lines(b)] for low, high in places]


def traced(case: Case, tiles: tuple[int, int], folder: Path, objdump: str) -> Trace:
    """What a kernel executes for the tiles [first, last) of a case."""
    program = _program(case, tiles, folder)
    only = f"--disassemble-symbols={_BODY}"
    text = disassembled(_output(objdump, "-d", "--no-show-raw-insn", only, program))
    log = folder / "trace.txt"
    span = f"{min(text):#x}..{max(text):#x}"
    processor = qemu_arm.processor_of(case.target)
    logged = ("-d", "exec,nochain", "-dfilter", span, "-D", str(log))
    subprocess.run(("qemu-aarch64", "-cpu", processor, *logged, program), cwd=folder, check=True, **_SILENT)
    with log.open() as lines:
        return Trace(text, entered(lines))


def disassembled(listing: str) -> dict[int, str]:
    """Instructions by address, from what llvm-objdump prints."""
    found = {}
    for line in listing.splitlines():
        if (m := _LINE.match(line)) and "\t" in line:
            found[int(m[1], 16)] = " ".join(m[2].split())
    return found


def entered(lines: Iterable[str]) -> list[int]:
    """Addresses of the blocks, from the emulator's log."""
    return [int(m[1], 16) for m in map(_TRACED.match, lines) if m]


def _program(case: Case, tiles: tuple[int, int], folder: Path) -> str:
    """A program that runs the kernel on these tiles of the case, in a folder of its own."""
    module, [kernel] = sources([case], folder)
    module_of(module, case.target).mod.write_to_file(str(folder / "kernel.o"), "o")
    (folder / "cases.bin").write_bytes(record(case, kernel, [tiles]))
    harness = _ROOT / "tests" / "emulator" / "kernels.c"
    parts = (harness, _RUNTIME / "shim.c", folder / "table.c", folder / "kernel.o")
    return str(qemu_arm.build(folder / "program", parts, "-static", "-no-pie", f"-I{_RUNTIME}"))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

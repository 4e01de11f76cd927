"""What a CUDA kernel's machine code is made of: instructions, registers, local memory."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.build import kernel_cubin, link
from sparsec.targets.cuda.toolkit import find
from sparsec.targets.target import Target

#: compiling needs NVIDIA's compiler, looking at the result its disassembler
needs_nvcc = pytest.mark.skipif(find("nvcc") is None, reason="no nvcc: CUDA kernels are not compiled")
needs_sass = pytest.mark.skipif(
    find("nvcc") is None or find("nvdisasm") is None, reason="no nvcc or nvdisasm: SASS is not checked"
)
TARGETS = (gpus.SM80, gpus.SM90A)


@dataclass(frozen=True, slots=True)
class Sass:
    """A kernel's code: ``instructions`` are opcodes with their modifiers, in order; ``text`` all of it."""

    instructions: tuple[str, ...]
    registers: int
    text: str

    def count(self, pattern: str) -> int:
        """How many opcodes begin with a pattern (a regular expression)."""
        return sum(bool(re.match(pattern, one)) for one in self.instructions)

    @property
    def local_accesses(self) -> int:
        """Loads and stores of local memory: spilled registers, or arrays with indices unknown."""
        return self.count(r"(LDL|STL)\b")


def sass(function: Any, target: Target) -> Sass:
    """The code of a kernel made by ``device_function``, for a target."""
    cubin = link([kernel_cubin(function, target)], target)
    return _disassembled(cubin)


@cache
def _disassembled(cubin: bytes) -> Sass:
    nvdisasm = find("nvdisasm")
    assert nvdisasm is not None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "code.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([nvdisasm, "-c", path], capture_output=True, text=True, check=True)
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", done.stdout)
    registers = re.findall(r"\bR(\d+)\b", done.stdout)
    return Sass(tuple(found), 1 + max(map(int, registers), default=0), done.stdout)

"""llvm-mca: how many cycles a core takes for a stretch of ARM instructions, by LLVM's tables.

Every load hits L1, every branch is foreseen, and loads do not wait for stores elsewhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence

from sparsec.errors import ConfigError

NAMES = ("llvm-mca-22", "llvm-mca")

_TOTAL = re.compile(r"^Total Cycles:\s+(\d+)", re.MULTILINE)
_VERSION = re.compile(r"LLVM version ([\d.]+)")
#: addresses, which llvm-mca would take for distances
_PLACE = re.compile(r"0x[0-9a-f]+ <[^>]*>")
#: what it has no table for: calls, and what follows them
_LEFT_OUT = re.compile(r"^(?:blr?|br|ret|udf|brk)\b")
_ITERATIONS = 100


def find(asked: str | None = None) -> str:
    """The path of llvm-mca: the one asked for, or the first of :data:`NAMES` that is here.

    Raises:
        ConfigError: there is none.
    """
    for name in (asked,) if asked else NAMES:
        if path := shutil.which(name):
            return path
    wanted = asked or " or ".join(NAMES)
    raise ConfigError(f"no {wanted}: install Debian's llvm-22, or name one with --llvm-mca")


def version(mca: str) -> str:
    """Which LLVM it belongs to."""
    said = subprocess.run((mca, "--version"), check=True, capture_output=True, text=True).stdout
    found = _VERSION.search(said)
    return found[1] if found else "unknown"


def loop_cycles(body: Sequence[str], core: str, mca: str) -> float:
    """Cycles of one turn of a loop that runs long."""
    few, many = (_total([body], core, mca, n)[0] for n in (_ITERATIONS, 2 * _ITERATIONS))
    return (many - few) / _ITERATIONS


def stretch_cycles(stretches: Sequence[Sequence[str]], core: str, mca: str) -> int:
    """Cycles of all stretches, each run once from an idle core."""
    return sum(_total(stretches, core, mca, 1))


def _total(regions: Sequence[Sequence[str]], core: str, mca: str, iterations: int) -> list[int]:
    parts = []
    for i, region in enumerate(regions):
        parts += [f"# LLVM-MCA-BEGIN r{i}", *filter(None, map(_assembled, region)), "# LLVM-MCA-END"]
    command = (
        mca, "-mtriple=aarch64", f"-mcpu={core}", "-mattr=+sve,+v8.2a", f"-iterations={iterations}",
        "-all-views=false", "-summary-view",
    )  # fmt: skip
    text = "\n".join(parts) + "\n"
    done = subprocess.run(command, input=text, check=False, capture_output=True, text=True)
    totals = [int(n) for n in _TOTAL.findall(done.stdout)]
    if done.returncode or len(totals) != len(regions):
        raise ConfigError(f"{mca} cannot read what was compiled for {core}:\n{done.stderr[:2000]}")
    return totals


def _assembled(instruction: str) -> str | None:
    """An instruction of a disassembly, as an assembler takes it; None where llvm-mca knows no cycles."""
    return None if _LEFT_OUT.match(instruction) else _PLACE.sub("elsewhere", instruction)

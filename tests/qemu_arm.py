"""Programs for ARM: cross-compiled, and run by qemu's user-mode emulation."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsec.targets.target import Target

_LIBRARIES = Path("/usr/aarch64-linux-gnu")
_COMPILER, _QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"
#: qemu's processor for each target; its first version with Neoverse V1 is 9.0
_PROCESSORS = {
    "aarch64": "cortex-a53", "armv8.2-a+dotprod": "max,sve=off", "cortex-a76": "cortex-a76",
    "neoverse-n1": "neoverse-n1", "neoverse-v1": "max,sve-max-vq=2",
}  # fmt: skip


def missing() -> str | None:
    """Say in one sentence what there is not, or None when programs can be built and run."""
    absent = [tool for tool in (_COMPILER, _QEMU) if shutil.which(tool) is None]
    if not absent and (_LIBRARIES / "lib" / "libc.so.6").exists():
        return None
    return (
        f"no {', '.join(absent) or 'C library for ARM'}: install the Debian packages gcc-aarch64-linux-gnu "
        "libc6-dev-arm64-cross qemu-user"
    )


def build(program: Path, sources: Sequence[Path], *options: str) -> Path:
    """Compile C and objects for ARM."""
    command = [_COMPILER, "-O2", "-Wall", "-Wextra", "-Werror", *options]
    subprocess.run([*command, "-o", str(program), *map(str, sources), "-lm", "-ldl", "-pthread"], check=True)
    return program


def processor_of(target: Target) -> str:
    """What qemu's option ``-cpu`` takes to be the target's processor, or one that has all of it."""
    return _PROCESSORS[target.name]


def start(program: Path, processor: str, folder: Path) -> subprocess.Popen[bytes]:
    """Run in a folder; its output is bytes."""
    command = [_QEMU, "-L", str(_LIBRARIES), "-cpu", processor, str(program)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> bytes:
    """What it wrote, after it has ended well."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, f"exit {process.returncode}: {errors[-2000:].decode(errors='replace')}"
    return output


def run(program: Path, processor: str, folder: Path) -> bytes:
    """Output of a program that ended well."""
    return finish(start(program, processor, folder))

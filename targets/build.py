"""TIR to machine code: objects cached by content, linked into one shared library."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparsec.config import settings
from sparsec.errors import BuildError
from sparsec.runtime.files import FOLDER_PREFIX, remove_stale_folders
from sparsec.targets.cache import cached, tidy
from sparsec.targets.target import Target

#: Part of every cache key: change it when code generation changes but TIR's text does not.
GENERATION = 2

#: LLVM does this work better, and on deeply nested names these passes take exponential time.
#: FlattenBuffer has nothing to do, our buffers have one axis, but writes a vector's place so that the
#: code generator no longer sees that its elements are neighbours.
_SKIPPED_PASSES = [
    "s_tir.HoistIfThenElse", "s_tir.InjectPermutedLayout", "s_tir.InjectVirtualThread",
    "s_tir.RenormalizeSplitPattern", "s_tir.StmtSimplify", "tirx.CommonSubexprElim", "tirx.RemoveNoOp",
    "tirx.StmtSimplify", "tirx.FlattenBuffer",
]  # fmt: skip


def module_of(function: Any, target: Target) -> Any:
    """A TVM runtime module with one of our kernels (no cache)."""
    import tvm

    try:
        with tvm.transform.PassContext(disabled_pass=_SKIPPED_PASSES):
            return tvm.compile(function, target=target.tvm_target)
    except Exception as failure:
        raise BuildError(f"TVM cannot compile a kernel for {target.name}: {failure}") from failure


def kernel_object(key: str, emit: Callable[[], Any], target: Target) -> bytes:
    """The object file of a kernel; ``key`` names everything its text depends on."""
    if settings().debug >= 4:
        _show(emit(), target)
    return cached(f"kernel|{key}|{_machine(target)}", lambda: _object_bytes(module_of(emit(), target)))


def _show(function: Any, target: Target) -> None:
    """SPARSEC_DEBUG=4 prints a kernel's TIR, 5 also its assembly, whether or not it is cached."""
    print(function.script(), file=sys.stderr)
    if settings().debug >= 5:
        print(module_of(function, target).mod.inspect_source("s"), file=sys.stderr)


def operator_object(module: str, target: Target) -> bytes:
    """The object file of an operator carried as TIR (TVM JSON of its IRModule)."""
    return cached(f"operator|{module}|{_machine(target)}", lambda: _operator(module, target))


def _operator(module: str, target: Target) -> bytes:
    import tvm

    try:
        loaded = tvm.ir.load_json(module)
        return _object_bytes(tvm.compile(loaded, target=tvm.target.Target(target.tvm_target)))
    except Exception as failure:
        raise BuildError(f"TVM cannot compile a legalised operator for {target.name}: {failure}") from failure


def _object_bytes(executable: Any) -> bytes:
    # LLVM ends the process when it cannot write a file, as on a full disk; memory has room
    with open(os.memfd_create("kernel.o"), "w+b") as file:
        executable.mod.write_to_file(f"/proc/self/fd/{file.fileno()}", "o")
        file.seek(0)
        return file.read()


def link(objects: Sequence[bytes], target: Target) -> bytes:
    """One shared library from kernel objects and the runtime's shim; same inputs, same bytes.

    Raises:
        BuildError: no C compiler was found, or linking failed.
    """
    parts = hashlib.sha256()
    for part in objects:
        parts.update(hashlib.sha256(part).digest())
    return cached(f"link|{parts.hexdigest()}|{_machine(target)}", lambda: _link(objects, target))


def _link(objects: Sequence[bytes], target: Target) -> bytes:
    tidy()
    shim = files("sparsec.runtime") / "csrc" / "shim.c"
    with _workspace() as folder:
        names = []
        for i, part in enumerate(objects):
            names.append(f"k{i}.o")
            (folder / names[-1]).write_bytes(part)
        (folder / "shim.c").write_bytes(shim.read_bytes())
        command = [
            compiler_of(target), "-shared", "-fPIC", "-O2", "-g0", "-Wl,--build-id=none", "-Wl,--strip-debug",
            "-o", "code.so", *names, "shim.c", "-lm",
        ]  # fmt: skip
        _run(command, folder, target)
        return (folder / "code.so").read_bytes()


def compiler_of(target: Target) -> str:
    """The C compiler that links for a target.

    Raises:
        BuildError: nobody told one for an architecture that is neither this machine's nor ARM.
    """
    if target.architecture == platform.machine():
        return settings().cc
    if target.architecture == "aarch64":
        return settings().aarch64_cc
    raise BuildError(f"{target.name}: linking for {target.architecture} needs a machine of that kind")


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for what compilers and linkers write.

    Raises:
        BuildError: it cannot be made or written to.
    """
    base = Path(tempfile.gettempdir())
    remove_stale_folders(base)
    try:
        with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=base) as folder:
            yield Path(folder)
    except OSError as error:
        raise BuildError(
            f"{base}: temporary files cannot be written: {error.strerror or error}; make room, or name "
            "another folder in TMPDIR"
        ) from error


def _run(command: Sequence[str], folder: Path, target: Target) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        native = target.architecture == platform.machine()
        package, variable = (
            ("gcc", "SPARSEC_CC") if native else ("gcc-aarch64-linux-gnu", "SPARSEC_AARCH64_CC")
        )
        raise BuildError(
            f"no C compiler {command[0]!r} to link kernels for {target.name} with: install one (Debian: "
            f"apt-get install {package}) or set {variable}"
        ) from None
    if done.returncode:
        raise BuildError(f"linking kernels with {command[0]} failed:\n{done.stderr.strip()}")


def _machine(target: Target) -> str:
    described: Mapping[str, Any] = target.tvm_target
    return f"{GENERATION}|{sorted(described.items())}|{target.lanes}"

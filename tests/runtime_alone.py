"""An environment that holds the runtime and NumPy and nothing else, made from the wheel once per test run."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from sparsec.runtime import Program

    from .runtime_models import Array

ROOT = Path(__file__).resolve().parents[1]
ALLOCATIONS = ROOT / "tests" / "c_runtime" / "allocations.c"

#: loads a model, runs it on the arrays of a file and writes the outputs; refuses to if the compiler is near
RUN = """
import importlib.util, sys
import numpy as np
import sparsec
heavy = [name for name in ("tvm", "tvm_ffi", "onnx", "torch", "scipy", "networkx", "sparsec.compiler")
         if importlib.util.find_spec(name)]
assert not heavy, heavy
program = sparsec.load(sys.argv[1], threads=2)
given = np.load(sys.argv[2])
np.savez(sys.argv[3], *program.run(None, {p.name: given[f"arr_{i}"] for i, p in enumerate(program.inputs)}))
"""


@dataclass(frozen=True)
class RuntimeAlone:
    """Where things are: the folder of the wheel and its source, and the environment's Python."""

    dist: Path
    python: Path

    @property
    def allocations(self) -> Path:
        """The program that counts what runs allocate."""
        return self.dist / "allocations"

    def run(self, *arguments: str | Path, cwd: Path) -> str:
        """What the environment's Python prints."""
        return run(self.python, "-I", *arguments, cwd=cwd)

    def check(self, program: Program, inputs: dict[str, Array], folder: Path) -> None:
        """Saved and run by the runtime alone, a program gives the same bits; its runs allocate nothing."""
        saved, given, made = folder / "model.sparsec", folder / "inputs.npz", folder / "outputs.npz"
        program.save(saved)
        np.savez(given, *(inputs[p.name] for p in program.inputs))
        self.run("-c", RUN, saved, given, made, cwd=folder)
        expected = program.run(None, inputs)
        with np.load(made) as found:
            assert len(found.files) == len(expected)
            for i, y in enumerate(expected):
                got = found[f"arr_{i}"]
                assert (got.dtype, got.shape) == (y.dtype, y.shape) and got.tobytes() == y.tobytes()
        if platform.libc_ver()[0] == "glibc":
            assert run(self.allocations, "2", "1", "3", saved, cwd=folder) == "0\n"


def run(*command: str | Path, cwd: Path) -> str:
    """A command's output; its errors are shown when it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def runtime_alone(folder: Path) -> RuntimeAlone:
    """The environment in this folder, made by the first of several processes that ask."""
    pytest.importorskip("build", reason="the package `build` is not installed")
    found = RuntimeAlone(folder / "dist", folder / "environment" / "bin" / "python")
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.allocations.exists():
            _make(folder, found)
    return found


def _make(folder: Path, wanted: RuntimeAlone) -> None:
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", wanted.dist)
    run(*build, ROOT / "runtime", cwd=folder)
    (wheel,) = wanted.dist.glob("*.whl")
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", wanted.python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = (folder / "environment").glob("lib/python*/site-packages")
    for name in ("numpy", "numpy.libs"):
        lent = Path(sysconfig.get_path("purelib"), name)
        if lent.is_dir():
            (site / name).symlink_to(lent)
    flags = run(wanted.python, "-I", "-m", "sparsec.runtime", "--cflags", "--libs", cwd=folder).split()
    run("cc", "-std=c11", "-O1", "-rdynamic", ALLOCATIONS, *flags, "-o", wanted.allocations, cwd=folder)

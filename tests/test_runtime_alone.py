"""The distribution sparsec-runtime: built from a clone, installed beside NumPy, running compiled models."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from runtime_alone import ROOT, RuntimeAlone

import sparsec
from sparsec.runtime import Program

from .runtime_models import compile_code, softmax_model

BIAS = np.random.default_rng(1).standard_normal(37).astype("float32")
X = np.random.default_rng(2).standard_normal((11, 37)).astype("float32")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program.from_bytes(softmax_model(BIAS).build(compile_code(tmp_path), report={}))


def test_the_wheel_holds_the_runtime_and_asks_for_numpy(runtime_alone: RuntimeAlone) -> None:
    (wheel,) = runtime_alone.dist.glob("*.whl")
    assert wheel.name.startswith("sparsec_runtime-") and "-cp311-abi3-linux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(n).decode() for n in names if n.endswith("METADATA"))
    modules = {n for n in names if n.endswith(".py") and not n.startswith("sparsec/runtime/")}
    assert modules == {f"sparsec/{name}.py" for name in ("__init__", "config", "errors", "feeds")}
    runtime = {f"sparsec/runtime/{p.name}" for p in (ROOT / "runtime").glob("*.py")}
    assert runtime <= names and "sparsec/py.typed" in names
    c_library = {
        "include/sparsec.h", "lib/libsparsec.so", "lib/pkgconfig/sparsec.pc", "example.c",
        "lib/cmake/sparsec/sparsecConfig.cmake", "lib/cmake/sparsec/sparsecConfigVersion.cmake",
    }  # fmt: skip
    assert {f"sparsec/runtime/{name}" for name in c_library} <= names
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in needed if "extra ==" not in line] == ["Requires-Dist: numpy>=2.0"]
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_sdist_holds_its_sources_and_no_more(runtime_alone: RuntimeAlone) -> None:
    (sdist,) = runtime_alone.dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    sources = {f"runtime/csrc/{p.name}" for p in (ROOT / "runtime" / "csrc").glob("*.[ch]")}
    assert sources | {"setup.py", "LICENSE", "engine/__init__.py", "runtime/cmake/sparsec.pc.in"} <= names
    assert "engine/compiler.py" not in names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_runs_without_the_compiler(runtime_alone: RuntimeAlone, program: Program, tmp_path: Path) -> None:
    runtime_alone.check(program, {"x": X}, tmp_path)


def test_compiling_says_what_to_install(runtime_alone: RuntimeAlone, tmp_path: Path) -> None:
    for name in ("compile", "analyze", "tune"):
        script = f"import sparsec\ntry: sparsec.{name}\nexcept ImportError as error: print(error)"
        said = runtime_alone.run("-c", script, cwd=tmp_path)
        assert said.startswith(f"sparsec.{name} needs the compiler") and "pip install sparsec" in said


def test_the_command_describes_and_times_a_model(
    runtime_alone: RuntimeAlone, program: Program, tmp_path: Path
) -> None:
    program.save(tmp_path / "m.sparsec")
    np.savez(tmp_path / "x.npz", x=X)
    files = ("m.sparsec", "--input", "x.npz", "--output", "y.npz", "--repeats", "3")
    said = runtime_alone.run("-m", "sparsec.runtime", "run", *files, cwd=tmp_path)
    assert "in   x: float32[n, 37]" in said and "median of 3" in said and "y: float32[11, 37]  min" in said
    with np.load(tmp_path / "y.npz") as found:
        assert np.array_equal(found["y"], program(X))
    command = runtime_alone.python.with_name("sparsec-run")
    for arguments, text in (
        (("absent.sparsec",), "sparsec-run: absent.sparsec: no such file\n"),
        (
            ("m.sparsec", "--size", "k=3"),
            "sparsec-run: no input has a dimension called k: x: float32[n, 37]\n",
        ),
    ):
        done = subprocess.run(
            [command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, text)


@pytest.mark.slow
def test_digits_run_without_the_compiler(runtime_alone: RuntimeAlone, tmp_path: Path) -> None:
    """The network of `make demo`, for machines that have no shared data."""
    pytest.importorskip("tvm")
    pixels = np.random.default_rng(0).random((7, 64), np.float32)
    compiled = sparsec.compile(ROOT / "benchmarks" / "models" / "digits.onnx")
    runtime_alone.check(compiled, {"pixels": pixels}, tmp_path)

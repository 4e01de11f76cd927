"""What is published: an sdist with everything, and a wheel that works away from the repository."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from runtime_alone import run

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "benchmarks" / "models" / "digits.onnx"
FOLDERS = ("engine", "passes", "runtime", "targets", "tests", "benchmarks")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "Makefile", "requirements.lock")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of a copy of the repository, and a wheel made from that sdist."""
    pytest.importorskip("build", reason="the package `build` is not installed")
    copy = tmp_path_factory.mktemp("source") / "sparsec"
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.o", ".*_cache", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    for file in FILES:
        shutil.copy(ROOT / file, copy)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", copy / "dist", ".", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it; what it depends on is lent by this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (wheel,) = built.glob("*.whl")
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # a path file inside a path that a path file adds is not read: an editable install stays out
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_wheel_serves_later_pythons_and_holds_everything(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert "-cp311-abi3-linux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(n).decode() for n in names if n.endswith("METADATA"))
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"sparsec"}
    assert {"sparsec/py.typed", "sparsec/runtime/_executor.abi3.so", "sparsec/runtime/csrc/shim.c"} <= names
    assert "sparsec/explain/html/template.html" in names
    for name in ("include/sparsec.h", "lib/libsparsec.so", "lib/pkgconfig/sparsec.pc", "example.c"):
        assert f"sparsec/runtime/{name}" in names
    sources = {f"sparsec/runtime/csrc/{p.name}" for p in (ROOT / "runtime" / "csrc").glob("*.[ch]")}
    assert sources <= names
    assert "Requires-Python: >=3.11" in metadata and "License-Expression: Apache-2.0" in metadata
    for pinned in ("apache-tvm==0.27.0.post1", "apache-tvm-ffi==0.1.14.post0"):
        assert f"Requires-Dist: {pinned}" in metadata


def test_sdist_holds_tests_and_benchmarks(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("*.py")}
    wanted |= {"benchmarks/models/digits.onnx", "benchmarks/run.py", "runtime/csrc/shim.c", *FILES}
    wanted |= {"runtime/CMakeLists.txt", "runtime/cmake/sparsec.pc.in", "runtime/packaging/assemble.py"}
    assert wanted <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_compiles_and_runs_from_anywhere(environment: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((7, 64), np.float32)
    np.savez(tmp_path / "x.npz", pixels=pixels)
    command = environment / "bin" / "sparsec"
    run(command, "compile", DIGITS, "-o", "m.sparsec", "--quiet", cwd=tmp_path)
    run(command, "run", "m.sparsec", "--input", "x.npz", "--output", "y.npz", cwd=tmp_path)
    session = onnxruntime.InferenceSession(DIGITS, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"pixels": pixels})[0]
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_allclose(found["scores"], expected, atol=1e-4 * np.abs(expected).max())


def test_wheel_is_what_was_imported(environment: Path, tmp_path: Path) -> None:
    said = run(
        environment / "bin" / "python",
        "-c",
        "import sparsec.runtime as r; print(r._executor.__file__)",
        cwd=tmp_path,
    )
    assert Path(said.strip()).is_relative_to(environment)

"""The C library as its users have it: found by three tools, driven by C programs, compared with Python."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sparsec.runtime
from sparsec.runtime import Program
from sparsec.runtime.__main__ import PLACES

from .runtime_models import Array, compile_code, softmax_model, twice_model

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "tests" / "c_runtime"
RUNTIME = ROOT / "runtime"
FOLDER = Path(sparsec.runtime.__file__).parent
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
BIAS = np.random.default_rng(1).standard_normal(37).astype("float32")

needs_cmake = pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
needs_pkg_config = pytest.mark.skipif(not shutil.which("pkg-config"), reason="needs pkg-config")
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")


def output(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """What a command prints; it must end with this status."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def asked(*options: str) -> list[str]:
    """What the module says of itself."""
    return output(sys.executable, "-m", "sparsec.runtime", *options, cwd=ROOT).split()


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_code(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def model(code: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x[n, 37] -> y[n, 37], worth several threads."""
    path = tmp_path_factory.mktemp("model") / "model.sparsec"
    path.write_bytes(softmax_model(BIAS, nanoseconds=10**9).build(code))
    return path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A program built with the flags the module gives."""
    folder = tmp_path_factory.mktemp("programs")

    def build(source: Path) -> Path:
        program = folder / source.stem
        if not program.exists():
            flags = [*STRICT, "-pthread", "-rdynamic", *asked("--cflags", "--libs")]
            output("cc", source, "-o", program, *flags, cwd=folder)
        return program

    return build


def by_cc(folder: Path, found_in: Path | None = None) -> Path:
    """Plain cc with the module's flags."""
    assert found_in is None
    output("cc", FOLDER / "example.c", *asked("--cflags", "--libs"), "-o", folder / "example", cwd=folder)
    return folder / "example"


def by_pkg_config(folder: Path, found_in: Path | None = None) -> Path:
    """cc with pkg-config's flags."""
    find = ("env", f"PKG_CONFIG_PATH={found_in or asked('--pkgconfigdir')[0]}", "pkg-config")
    assert output(*find, "--modversion", "sparsec", cwd=folder).strip() == header_version()
    flags = output(*find, "--cflags", "--libs", "sparsec", cwd=folder).split()
    output("cc", FOLDER / "example.c", *flags, "-o", folder / "example", cwd=folder)
    return folder / "example"


def by_cmake(folder: Path, found_in: Path | None = None) -> Path:
    """A project that finds the package."""
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(user C)\n"
        f"find_package(sparsec {header_version()} REQUIRED)\n"
        f"add_executable(example {FOLDER / 'example.c'})\ntarget_link_libraries(example sparsec::sparsec)\n"
    )
    where = found_in or asked("--cmakedir")[0]
    output("cmake", "-S", ".", "-B", "build", f"-Dsparsec_DIR={where}", cwd=folder)
    output("cmake", "--build", "build", cwd=folder)
    return folder / "build" / "example"


WAYS = (
    pytest.param(by_cc, id="cc"),
    pytest.param(by_pkg_config, id="pkg-config", marks=needs_pkg_config),
    pytest.param(by_cmake, id="cmake", marks=needs_cmake),
)


def header_version() -> str:
    found = re.search(r'SPARSEC_VERSION "(.*)"', (FOLDER / "include" / "sparsec.h").read_text())
    assert found is not None
    return found[1]


def check_example(program: Path, model: Path) -> None:
    """The example's inputs are multiples of 1/7; it prints a shape and the first values."""
    printed = output(program, model, cwd=program.parent)
    shape, *values = printed.removeprefix("y: ").split(", ")
    x = (np.arange(2 * 37) % 7).astype(np.float32).reshape(2, 37) / np.float32(7)
    assert shape == "2 37"
    assert [np.float32(v) for v in values] == Program.load(model)(x).ravel()[:4].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_the_example_is_found_and_runs(way: Callable[[Path], Path], model: Path, tmp_path: Path) -> None:
    check_example(way(tmp_path), model)


@needs_cmake
def test_the_runtime_builds_and_installs_alone(model: Path, tmp_path: Path) -> None:
    """Debian's folders, lib/<machine>, are the hard case for files that name each other."""
    prefix, lib = tmp_path / "prefix", "lib/machine"
    options = ("-DCMAKE_C_FLAGS=-Werror", "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_INSTALL_LIBDIR={lib}")
    output("cmake", "-S", RUNTIME, "-B", "build", *options, cwd=tmp_path)
    output("cmake", "--build", "build", "--target", "all", "sparsec_example", cwd=tmp_path)
    check_example(tmp_path / "build" / "sparsec_example", model)
    output("cmake", "--install", "build", "--prefix", prefix, cwd=tmp_path)
    installed = {p.relative_to(prefix).as_posix() for p in prefix.rglob("*") if p.is_file()}
    names = ("libsparsec.so", "pkgconfig/sparsec.pc", "cmake/sparsec/sparsecConfig.cmake",
             "cmake/sparsec/sparsecConfigVersion.cmake")  # fmt: skip
    assert installed == {"include/sparsec.h", *(f"{lib}/{name}" for name in names)}
    (tmp_path / "user").mkdir()
    check_example(by_cmake(tmp_path / "user", prefix / lib / "cmake" / "sparsec"), model)
    if shutil.which("pkg-config"):
        check_example(by_pkg_config(tmp_path / "user", prefix / lib / "pkgconfig"), model)


def test_places_exist() -> None:
    for name in ("includedir", "libdir", "cmakedir", "pkgconfigdir", "example"):
        assert Path(PLACES[name][0]).exists(), name
    assert asked("--includedir", "--libdir") == [str(FOLDER / "include"), str(FOLDER / "lib")]
    assert "--cmakedir" in output(sys.executable, "-m", "sparsec.runtime", cwd=ROOT, status=2)


def test_the_library_shows_what_the_header_declares_and_needs_the_c_library() -> None:
    library, header = FOLDER / "lib" / "libsparsec.so", (FOLDER / "include" / "sparsec.h").read_text()
    declared = set(re.findall(r"^SPARSEC_API[^;(]*?(\w+)\(", header, re.MULTILINE))
    symbols = output("nm", "-D", "--defined-only", library, cwd=ROOT)
    shown = {line.split()[-1] for line in symbols.splitlines()}
    assert shown == declared and all(name.startswith("sparsec_") for name in shown) and len(shown) > 20
    needed = set(re.findall(r"NEEDED.*\[([a-z-]*)", output("readelf", "-d", library, cwd=ROOT)))
    assert "libc" in needed and needed <= {"libc", "libm", "libpthread", "libdl", "ld-linux-x"}


def test_the_header_stands_alone(tmp_path: Path) -> None:
    for language, flags in (("c", STRICT), ("c++", ("-std=c++11", *STRICT[1:]))):
        if language == "c++" and not shutil.which("c++"):
            pytest.skip("no C++ compiler")
        main = tmp_path / f"main.{language}"
        main.write_text("#include <sparsec.h>\nint main() { return sparsec_version()[0] == 0; }\n")
        compiler = {"c": "cc", "c++": "c++"}[language]
        output(compiler, *flags, main, *asked("--cflags", "--libs"), "-o", tmp_path / "main", cwd=tmp_path)
        output(tmp_path / "main", cwd=tmp_path)


def test_versions_agree() -> None:
    import tomllib

    projects = [ROOT / "pyproject.toml", ROOT / "runtime" / "pyproject.toml"]
    versions = {tomllib.loads(p.read_text())["project"]["version"] for p in projects}
    header = (FOLDER / "include" / "sparsec.h").read_text()
    parts = [re.search(rf"SPARSEC_VERSION_{part} (\d+)", header) for part in ("MAJOR", "MINOR", "PATCH")]
    assert versions == {header_version()} == {".".join(p[1] for p in parts if p)}


def test_c_and_python_agree_on_random_inputs(
    compiled: Callable[[Path], Path], code: bytes, tmp_path: Path
) -> None:
    """To the bit: two models, several shapes, one and three threads."""
    models = [softmax_model(BIAS, 10**9).build(code), twice_model(nanoseconds=10**9).build(code)]
    for i, data in enumerate(models):
        (tmp_path / f"model{i}.sparsec").write_bytes(data)
    rng = np.random.default_rng(3)
    shapes = ((1, 37), (50, 37), (0, 37)), ((1,), (1000,), (64,))
    cases: list[tuple[int, int, Array]] = [
        (i, threads, rng.standard_normal(shape).astype("float32"))
        for i in (0, 1)
        for shape in shapes[i]
        for threads in (1, 3)
    ]
    written = [np.array([i, t, *x.shape], np.int64).tobytes() + x.tobytes() for i, t, x in cases]
    (tmp_path / "cases.bin").write_bytes(b"".join(written))
    program = compiled(ROOT / "tests" / "emulator" / "artifact.c")
    done = subprocess.run([str(program)], cwd=tmp_path, capture_output=True, check=True)
    programs = [Program.from_bytes(data) for data in models]
    outputs = [programs[i](x) for i, _, x in cases]
    assert done.stdout == b"".join(np.array(y.shape, np.int64).tobytes() + y.tobytes() for y in outputs)


@needs_glibc
@pytest.mark.parametrize("threads", [1, 4])
def test_runs_allocate_nothing(
    compiled: Callable[[Path], Path], code: bytes, model: Path, tmp_path: Path, threads: int
) -> None:
    """From the first run on; three bindings of one session in turns; arrays in place and copied."""
    twice = tmp_path / "twice.sparsec"
    twice.write_bytes(twice_model(nanoseconds=10**9).build(code))
    program = compiled(PROGRAMS / "allocations.c")
    counts = output(program, str(threads), "20", "3,500,40", model, twice, cwd=tmp_path)
    assert counts.split() == ["0", "0"]


def test_sessions_of_many_threads_share_a_model(
    compiled: Callable[[Path], Path], model: Path, tmp_path: Path
) -> None:
    said = output(compiled(PROGRAMS / "threads.c"), "8", "60", model, cwd=tmp_path)
    assert said == "0 differences\n"


ERRORS = r"""
absent: 1 no such file
damaged: 1 the file is truncated: .*
unread: 1
bytes: 1
threads: 2 2 1
axes: 2 2 2
port: x float32 2 -1 37 n
bind shape: 2 input 'x' axis 1 must have length 37, got 36 \(expected shape \[n, 37\], got \[4, 36\]\)
bind rank: 2 input 'x' must have 2 axes \(shape \[n, 37\]\), got 1 \(shape \[4\]\); reshape it
bind dtype: 2 input 'x' must be float32, got float64; pass x.astype\('float32'\)
bind negative: 2 input 'x' axis 0 must have length a sane size, got -4 \(.*\)
run: 0
run input shape: 2 input 'x' must be float32 of shape \[4, 37\], as was bound, got float32 of shape \[3, 37\]
run input data: 2 input 'x' has no data
run output dtype: 2 output 'y' must be float32 of shape \[4, 37\], as was bound, got int32 of shape \[4, 37\]
run output shape: 2 output 'y' must be float32 of shape \[4, 37\], as was bound, got .* of shape \[5, 37\]
unread: 2
run again: 0
profile: 2 repeats must be at least 1, not 0
"""


def test_errors_are_codes_with_text(compiled: Callable[[Path], Path], model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(model.read_bytes()[:1000])
    said = output(compiled(PROGRAMS / "errors.c"), model, tmp_path / "absent", damaged, cwd=tmp_path)
    for line, pattern in zip(said.splitlines(), ERRORS.strip().splitlines(), strict=True):
        assert re.fullmatch(pattern, line.rstrip()), f"{line!r} is not {pattern!r}"


def test_the_example_names_what_is_wrong(compiled: Callable[[Path], Path], tmp_path: Path) -> None:
    program = compiled(FOLDER / "example.c")
    assert output(program, tmp_path / "absent", cwd=tmp_path, status=1) == "no such file\n"

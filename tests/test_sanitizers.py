"""The C runtime under ThreadSanitizer, and under AddressSanitizer with UBSan: eight threads, one model.

Kernels made here are instrumented like the runtime, so what one thread writes and another reads is
seen; those of a compiled model are not.  Nothing is suppressed.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from .artifact_runs import executor_sources
from .runtime_fuzz import repair, sections
from .runtime_models import CSRC, compile_code, softmax_model

PROGRAM = Path(__file__).parent / "c_runtime" / "threads.c"
BIAS = np.random.default_rng(1).standard_normal(37).astype("float32")
FLAGS = ("-std=c11", "-g", "-O0")
THREAD = ("-fsanitize=thread",)
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
STEPS, STEP_BYTES, NANOSECONDS = 13, 40, 32

OPTIONS = {"TSAN_OPTIONS": "exitcode=66", "ASAN_OPTIONS": "detect_leaks=1"}


@dataclass(frozen=True)
class Tool:
    """A compiler, its flags, and how the programs it makes are started."""

    compiler: str
    flags: tuple[str, ...]
    start: tuple[str, ...]

    def build(self, folder: Path, changed: Mapping[str, str]) -> Path:
        """threads.c with the runtime, some of whose sources have other texts."""
        for name, text in changed.items():
            (folder / name).write_text(text, encoding="utf-8")
        files = [folder / p.name if p.name in changed else p for p in executor_sources()]
        command = [self.compiler, *FLAGS, *self.flags, f"-I{CSRC}", *files, PROGRAM, "-o", folder / "threads"]
        subprocess.run([*command, "-rdynamic", "-pthread", "-ldl", "-lm"], check=True)
        return folder / "threads"

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["env", *(f"{k}={v}" for k, v in OPTIONS.items()), *self.start, *command],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip


def tool(folder: Path, flags: tuple[str, ...]) -> Tool | None:
    """The first that works; ThreadSanitizer may stop where addresses are drawn from a wide range."""
    source, program = folder / "main.c", folder / "main"
    source.write_text("int main(void) { return 0; }\n")
    for compiler in filter(shutil.which, ("cc", "clang")):
        command = [compiler, *flags, str(source), "-o", str(program)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            continue
        for start in (("setarch", "-R"), ()):
            found = Tool(compiler, flags, start)
            if found.run(program).returncode == 0:
                return found
    return None


def sanitizer(flags: tuple[str, ...], factory: pytest.TempPathFactory) -> Tool:
    found = tool(factory.mktemp("tool"), flags)
    if found is None:
        pytest.skip(f"no compiler here makes programs with {flags[0]} that start")
    return found


@pytest.fixture(scope="module")
def by_thread(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    return sanitizer(THREAD, tmp_path_factory)


@pytest.fixture(scope="module")
def by_address(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    return sanitizer(ADDRESS, tmp_path_factory)


def shared_out(data: bytes) -> bytes:
    """The model, every step of which is worth all threads."""
    changed = bytearray(data)
    start, size = next((offset, size) for kind, offset, size in sections(data) if kind == STEPS)
    for at in range(start, start + size, STEP_BYTES):
        struct.pack_into("<Q", changed, at + NANOSECONDS, 10**9)
    repair(changed)
    return bytes(changed)


def instrumented(tool: Tool, folder: Path) -> Path:
    """A model of three steps with kernels that the tool watches."""
    folder.mkdir()
    code = compile_code(folder, "-g", *tool.flags, compiler=tool.compiler)
    (folder / "model.sparsec").write_bytes(softmax_model(BIAS, nanoseconds=10**9).build(code))
    return folder / "model.sparsec"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned perceptron as sparsec compiles it."""
    pytest.importorskip("tvm")
    pytest.importorskip("onnx")
    from onnx_models import mlp

    import sparsec

    path = tmp_path_factory.mktemp("compiled") / "model.sparsec"
    sparsec.compile(mlp("n")).save(path)
    path.write_bytes(shared_out(path.read_bytes()))
    return path


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tool], Path]:
    """threads.c, built once for each tool."""
    built: dict[Tool, Path] = {}

    def program(tool: Tool) -> Path:
        if tool not in built:
            built[tool] = tool.build(tmp_path_factory.mktemp("program"), {})
        return built[tool]

    return program


def passes(tool: Tool, program: Path, model: Path, rounds: int) -> None:
    done = tool.run(program, "8", str(rounds), model)
    assert done.returncode == 0 and "Sanitizer" not in done.stderr, done.stderr[-6000:]
    assert done.stdout == "0 differences\n"


def test_threads_race_for_nothing(by_thread: Tool, programs: Callable[[Tool], Path], tmp_path: Path) -> None:
    passes(by_thread, programs(by_thread), instrumented(by_thread, tmp_path / "model"), 60)


def test_threads_race_for_nothing_in_a_compiled_model(
    by_thread: Tool, programs: Callable[[Tool], Path], compiled: Path
) -> None:
    passes(by_thread, programs(by_thread), compiled, 60)


def test_threads_stay_in_their_memory(
    by_address: Tool, programs: Callable[[Tool], Path], tmp_path: Path
) -> None:
    passes(by_address, programs(by_address), instrumented(by_address, tmp_path / "model"), 60)


def test_threads_stay_in_their_memory_in_a_compiled_model(
    by_address: Tool, programs: Callable[[Tool], Path], compiled: Path
) -> None:
    passes(by_address, programs(by_address), compiled, 60)


@pytest.mark.parametrize(
    ("source", "ordering", "without"),
    [
        ("session.c", "if (session) model->idle = session->next;\n    pthread_mutex_unlock(&model->lock);",
         "pthread_mutex_unlock(&model->lock);\n    if (session) model->idle = session->next;"),
        ("pool.c", "atomic_fetch_sub(&pool->gate, 1);",
         "atomic_fetch_sub_explicit(&pool->gate, 1, memory_order_relaxed);"),
    ],
    ids=["session", "pool"],
)  # fmt: skip
def test_an_ordering_left_out_is_found(
    by_thread: Tool, tmp_path: Path, source: str, ordering: str, without: str
) -> None:
    """A session taken twice; a helper's results read before they are known to be there."""
    text = (CSRC / source).read_text(encoding="utf-8")
    assert text.count(ordering) == 1
    program = by_thread.build(tmp_path, {source: text.replace(ordering, without)})
    done = by_thread.run(program, "8", "60", instrumented(by_thread, tmp_path / "model"))
    assert done.returncode != 0 and "WARNING: ThreadSanitizer: data race" in done.stderr, done.stderr[-2000:]

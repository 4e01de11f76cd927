"""Weights are mapped: what loading reads, what processes share, and what a run adds to memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_models import BEGIN, END, PlanBuilder, compile_code, pointer

from sparsec.runtime import artifact

MEGABYTE = 1 << 20
LARGE = 400 * MEGABYTE

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists() or not Path("/proc/self/io").exists(),
    reason="the kernel does not tell what memory is mapped and what was read",
)

#: what the scripts below share: bytes read, kilobytes of a mapping by kind, kilobytes resident
HEADER = f"""
import json, sys
import numpy as np
sys.path.append({str(Path(__file__).parent)!r})
from own_memory import bytes_read as read, mapping
from sparsec.runtime import Program

def resident():
    return sum(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(("RssAnon", "RssShmem")))

path = sys.argv[1]
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_code(tmp_path_factory.mktemp("kernels"))


def room_for(folder: Path, nbytes: int) -> None:
    """Skips where the disk has less room than that, and some to spare."""
    if shutil.disk_usage(folder).free < 2 * nbytes:
        pytest.skip(f"{folder} has no room for a file of {nbytes // MEGABYTE} MB")


@pytest.fixture(scope="module")
def large(code: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 400 MB: values and positions of a sparse weight."""
    folder = tmp_path_factory.mktemp("large")
    room_for(folder, LARGE)
    rng = np.random.default_rng(0)
    block = rng.standard_normal(MEGABYTE, dtype=np.float32), rng.integers(0, 256, MEGABYTE, np.uint8)
    count = LARGE // 5 // MEGABYTE
    b = PlanBuilder()
    x, y = b.input("x", ("n", 64)), b.output("y", ("n", 64))
    row = b.constant(np.tile(block[0], count))
    b.constant(np.tile(block[1], count))
    b.step("add_row", pointer(x), pointer(row), pointer(y), b.integer(64), BEGIN, END, tiles="n")
    path = folder / "large.sparsec"
    artifact.write(path, b.plan(), code, b.weights, {"target": "test"})
    assert path.stat().st_size > LARGE - MEGABYTE
    return path


def said(script: str, *arguments: str | Path) -> Any:
    """What a script in a process of its own prints, JSON."""
    done = subprocess.run(
        [sys.executable, "-c", HEADER + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_loading_reads_no_weights(large: Path) -> None:
    """400 MB are mapped; of them a few pages are touched, and nothing is read into memory of our own."""
    found = said(
        """
before, started = read(), resident()
program = Program.load(path)
loaded = {"read": read() - before, "own": resident() - started, "mapped": mapping(path)}
y = program(np.ones((3, 64), "f4"))
print(json.dumps(loaded | {"after": mapping(path), "first": float(y[0, 0])}))
""",
        large,
    )
    assert found["read"] < MEGABYTE and found["own"] < 4096
    assert found["mapped"]["Size"] > LARGE // 1024 - 1024
    assert found["mapped"]["Rss"] < 4096 and found["after"]["Rss"] < 8192
    assert found["mapped"]["Private_Dirty"] == 0


def test_verifying_reads_all_and_keeps_no_copy(large: Path) -> None:
    found = said(
        """
started = resident()
program = Program.load(path, verify=True)
print(json.dumps({"own": resident() - started, "mapped": mapping(path)}))
""",
        large,
    )
    assert found["own"] < 4096 and found["mapped"]["Private_Dirty"] == 0


_SHARER = """
program = Program.load(path)
pages = int(np.frombuffer(program._model, np.uint8)[::4096].sum())
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(mapping(path)), flush=True)
sys.stdin.readline()
"""


def test_two_processes_share_the_pages(large: Path) -> None:
    """Both have all of the file in memory, which has it once: the proportional size is half."""
    command = [sys.executable, "-c", HEADER + _SHARER, str(large)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        for one in processes:
            assert one.stdout is not None and one.stdout.readline().strip() == "ready"
        found = []
        for one in processes:
            assert one.stdin is not None and one.stdout is not None
            one.stdin.write("\n")
            one.stdin.flush()
            found.append(json.loads(one.stdout.readline()))
    finally:
        for one in processes:
            one.communicate("\n")
    for kinds in found:
        resident = kinds["Rss"]
        assert resident > 0.5 * LARGE / 1024, "the machine took the pages away while the test ran"
        assert kinds["Shared_Clean"] > 0.95 * resident and kinds["Private_Dirty"] == 0
        assert kinds["Pss"] < 0.55 * resident


def test_a_run_adds_the_weights_and_the_arena(code: bytes, tmp_path: Path) -> None:
    """32 MB of weights and an arena of two values of 64 MB: a run makes no more than that resident."""
    columns = 8 * MEGABYTE
    room_for(tmp_path, 4 * columns)
    b = PlanBuilder()
    x, y = b.input("x", ("n", columns)), b.output("y", ("n", 1))
    row = b.constant(np.random.default_rng(0).random(columns, dtype=np.float32))
    one, two = b.temporary(("n", columns), 0, 1), b.temporary(("n", columns), 1, 2)
    for source, to in ((x, one), (one, two)):
        b.step(
            "add_row", pointer(source), pointer(row), pointer(to), b.integer(columns), BEGIN, END, tiles="n"
        )
    b.step("check", pointer(two), pointer(y), serial=True)
    path = tmp_path / "model.sparsec"
    artifact.write(path, b.plan(), code, b.weights)
    found = said(
        """
x = np.frombuffer(bytearray(2 * 4 * (8 << 20) + 64), np.uint8)
start = -x.ctypes.data % 64
x = x[start:start + 2 * 4 * (8 << 20)].view(np.float32).reshape(2, -1)
x[:] = 1
started = resident()
program = Program.load(path)
for _ in range(3):
    y = program.run(None, {"x": x})
print(json.dumps({"own": resident() - started, "mapped": mapping(path)["Rss"]}))
""",
        path,
    )
    arena, weights = 2 * 64 * 1024, 32 * 1024
    assert 0.9 * (arena + weights) < found["own"] + found["mapped"] < 1.1 * (arena + weights)

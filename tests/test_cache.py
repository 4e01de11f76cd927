"""The kernel cache under all that happens to files: whatever it holds, results are right."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec.runtime.files import FOLDER_PREFIX, PREFIX, STALE, remove_stale_folders, whole
from sparsec.targets.cache import cached, tidy

BODY = bytes(range(256)) * 8


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never() -> bytes:
    raise AssertionError("built again")


def record(folder: Path) -> Path:
    """The only file there is."""
    (path,) = folder.iterdir()
    return path


def test_what_was_built_once_is_not_built_again(folder: Path) -> None:
    assert cached("a", lambda: BODY) == BODY == cached("a", never)
    assert cached("b", lambda: b"") == b"" == cached("b", never)
    assert len(list(folder.iterdir())) == 2 and oct(record_mode(folder)) == oct(0o666 & ~umask())


def record_mode(folder: Path) -> int:
    return next(folder.iterdir()).stat().st_mode & 0o777


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _another_keys(path: Path) -> None:
    os.environ["SPARSEC_CACHE"] += "-other"
    cached("another", lambda: b"other")
    os.replace(record(Path(os.environ["SPARSEC_CACHE"])), path)
    os.environ["SPARSEC_CACHE"] = str(path.parent)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: _cut(path, 0),
    "half a digest": lambda path: _cut(path, 16),
    "digest alone": lambda path: _cut(path, 32),
    "last byte gone": lambda path: _cut(path, 32 + len(BODY) - 1),
    "byte too many": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "bit of the digest": lambda path: _flip(path, 17),
    "bit of the body": lambda path: _flip(path, 8 * (32 + 1000) + 3),
    "zeros": lambda path: path.write_bytes(bytes(32 + len(BODY))),
    "another key's": _another_keys,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_built_again_and_replaced(folder: Path, damage: str) -> None:
    cached("a", lambda: BODY)
    undamaged = record(folder).read_bytes()
    DAMAGE[damage](record(folder))
    assert cached("a", lambda: BODY) == BODY
    assert record(folder).read_bytes() == undamaged and cached("a", never) == BODY


def test_a_record_that_cannot_be_replaced_costs_only_time(folder: Path) -> None:
    cached("a", lambda: BODY)
    _replace_by_folder(record(folder))
    assert cached("a", lambda: BODY) == BODY == cached("a", lambda: BODY)
    assert record(folder).is_dir()


def test_a_cache_that_is_a_file_costs_only_time(folder: Path) -> None:
    folder.write_text("no folder")
    assert cached("a", lambda: BODY) == BODY
    tidy()
    assert folder.read_text() == "no folder"


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; its wait status."""
    return os.waitpid(forked(work), 0)[1]


def forked(work: Callable[[], None]) -> int:
    """Start in a forked process; its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


def test_a_read_only_cache_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp(prefix="sparsec-test-"))  # pytest's own folders are for one user
    monkeypatch.setenv("SPARSEC_CACHE", str(folder))
    cached("a", lambda: BODY)
    folder.chmod(0o555)

    def work() -> None:
        if os.getuid() == 0:
            os.setuid(65534)  # root may write anywhere
        assert cached("a", never) == BODY
        assert cached("b", lambda: b"new") == b"new"
        tidy()
        assert [p.name for p in folder.iterdir()] == [record(folder).name]

    try:
        assert in_child(work) == 0
        folder.chmod(0o755)
        assert cached("a", never) == BODY
    finally:
        shutil.rmtree(folder)


def test_a_full_disk_leaves_nothing_behind(folder: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        assert cached("large", lambda: BODY) == BODY
        assert list(folder.iterdir()) == []
        assert cached("small", lambda: b"x") == b"x" == cached("small", never)

    assert in_child(work) == 0
    assert len(list(folder.iterdir())) == 1


def test_a_run_killed_while_it_stores_leaves_what_is_removed_later(folder: Path) -> None:
    cached("kept", lambda: BODY)

    def work() -> None:
        with whole(folder / "0123.bin", durable=False) as file:
            file.write(BODY[:100])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL
    (left,) = [path for path in folder.iterdir() if path.name.startswith(PREFIX)]
    tidy()
    assert left.exists()  # another process may still write it
    old = time.time() - STALE - 1
    os.utime(left, (old, old))
    tidy()
    assert not left.exists() and cached("kept", never) == BODY


def test_folders_of_killed_compilers_are_removed(tmp_path: Path) -> None:
    old = time.time() - STALE - 1
    names = (f"{FOLDER_PREFIX}old", f"{FOLDER_PREFIX}new", "sparsec-results", ".sparsec")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "k0.o").write_bytes(BODY)
        os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / names[1])
    remove_stale_folders(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])


def test_the_least_recently_used_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = "abcde"
    for age, key in enumerate(keys):
        before = set(folder.iterdir()) if folder.is_dir() else set()
        cached(key, lambda: BODY)
        (path,) = set(folder.iterdir()) - before
        os.utime(path, (1e9 + age, 1e9 + age))
    (folder / "notes.txt").write_text("not ours")
    cached("a", never)  # used now
    monkeypatch.setenv("SPARSEC_CACHE_BYTES", str(2 * (32 + len(BODY))))
    tidy()
    assert len(list(folder.iterdir())) == 3 and (folder / "notes.txt").exists()
    assert cached("a", never) == cached("e", never) == BODY
    monkeypatch.setenv("SPARSEC_CACHE_BYTES", "0")
    tidy()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def body_of(key: str) -> bytes:
    return key.encode() * 500


def test_several_processes_share_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_BYTES", "20000")  # so that they also remove each other's records

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in random.integers(0, 30, 300):
            key = f"key {number}"
            assert cached(key, lambda key=key: body_of(key)) == body_of(key)
            if random.random() < 0.05:
                tidy()

    children = [forked(partial(work, seed)) for seed in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert not [path for path in folder.iterdir() if path.name.startswith(PREFIX)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer with an activation."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((24, 40)).astype(np.float32) * (random.random((24, 40)) < 0.2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 40])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def right(path: Path, model: Path) -> bool:
    """Whether a compiled model computes what it should."""
    x = np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)
    weight = numpy_helper.to_array(onnx.load(model).graph.initializer[0])
    return np.allclose(sparsec.load(path)(x), np.maximum(x @ weight, 0), atol=1e-5)


def compiling(model: Path, output: Path) -> subprocess.Popen[str]:
    """``sparsec compile`` in a process of its own."""
    command = [sys.executable, "-m", "sparsec", "compile", str(model), "-o", str(output), "-q"]
    variables = {**os.environ, "SPARSEC_DEBUG": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_compiler_and_the_next_one(model: Path, tmp_path: Path, folder: Path) -> None:
    first = compiling(model, tmp_path / "a.sparsec")
    deadline = time.monotonic() + 60
    while first.poll() is None and not (folder.is_dir() and any(folder.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    first.kill()
    first.communicate()
    second = compiling(model, tmp_path / "b.sparsec")
    assert second.communicate()[1] == "" and second.returncode == 0
    assert right(tmp_path / "b.sparsec", model) and list(tmp_path.glob("b*")) == [tmp_path / "b.sparsec"]


def test_a_full_disk_and_a_full_cache(model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = f"mount -t tmpfs -o size=16k none {disk} && "
    if subprocess.run(["unshare", "-rm", "sh", "-c", inside + "true"], check=False).returncode:
        pytest.skip("no file systems can be mounted here")
    compile_ = f"{sys.executable} -m sparsec compile {model} -q -o"
    script = (
        f"TMPDIR={disk} SPARSEC_CACHE= {compile_} {tmp_path}/a.sparsec; echo $?; ls -A {disk}; "
        f"SPARSEC_CACHE={disk} {compile_} {tmp_path}/b.sparsec; echo $?; ls -A {disk} | grep -v bin"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inside + script], env={**os.environ, "SPARSEC_DEBUG": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "2\n0\n", done.stdout + done.stderr
    assert done.stderr.startswith("sparsec: ") and "No space left on device" in done.stderr
    assert not (tmp_path / "a.sparsec").exists() and right(tmp_path / "b.sparsec", model)

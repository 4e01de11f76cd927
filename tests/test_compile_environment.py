"""compile() in the world: processes, caches, compilers that are missing, dumps, saved files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

from onnx_models import assert_close, encoder, mlp, onnxruntime_run

import sparsec
from sparsec.errors import BuildError, ConfigError

COMPILE = """
import hashlib, sys, sparsec
program = sparsec.compile(sys.argv[1], target="x86-64-v3")
program.save(sys.argv[2])
"""

RUN = """
import sys
import numpy as np, sparsec
program = sparsec.load(sys.argv[1])
np.save(sys.argv[3], program(np.load(sys.argv[2])))
heavy = {"tvm", "onnx", "torch", "scipy", "networkx", "sparsec.compiler"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of kernels."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPARSEC_CACHE", str(folder))
    return folder


def saved(proto: object, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())  # type: ignore[attr-defined]
    return path


def start(code: str, *arguments: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    chosen = {**os.environ, **(env or {})}
    return subprocess.Popen(command, env=chosen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_two_processes_with_cold_caches_make_the_same_bytes(tmp_path: Path) -> None:
    path = saved(encoder("b", "s"), tmp_path / "model.onnx")
    for seed in ("1", "2"):  # hashing of strings differs too
        env = {"SPARSEC_CACHE": str(tmp_path / f"cache{seed}"), "PYTHONHASHSEED": seed}
        finish(start(COMPILE, path, tmp_path / f"{seed}.sparsec", env=env))
    first, second = ((tmp_path / f"{seed}.sparsec").read_bytes() for seed in "12")
    assert first == second


def test_two_processes_share_one_cache_at_once(tmp_path: Path) -> None:
    path = saved(mlp(8), tmp_path / "model.onnx")
    env = {"SPARSEC_CACHE": str(tmp_path / "cache")}
    running = [start(COMPILE, path, tmp_path / f"{i}.sparsec", env=env) for i in range(2)]
    for process in running:
        finish(process)
    assert (tmp_path / "0.sparsec").read_bytes() == (tmp_path / "1.sparsec").read_bytes()
    assert {p.suffix for p in (tmp_path / "cache").iterdir()} == {".bin"}


def test_a_saved_program_runs_without_the_compiler(cache: Path, tmp_path: Path) -> None:
    proto = encoder("b", "s")
    sparsec.compile(proto).save(tmp_path / "model.sparsec")
    x = np.random.default_rng(1).standard_normal((2, 5, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    finish(start(RUN, tmp_path / "model.sparsec", tmp_path / "x.npy", tmp_path / "y.npy"))
    assert_close(np.load(tmp_path / "y.npy"), onnxruntime_run(proto, {"x": x})[0])


def test_no_c_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CC", "/nonexistent")
    with pytest.raises(BuildError, match=r"no C compiler '/nonexistent'.*SPARSEC_CC"):
        sparsec.compile(mlp(8))


def test_a_c_compiler_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CC", "false")
    with pytest.raises(BuildError, match="linking kernels with false failed"):
        sparsec.compile(mlp(8))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "file" / "cache"))
    x = np.ones((8, 64), np.float32)
    assert_close(sparsec.compile(mlp(8))(x), onnxruntime_run(mlp(8), {"x": x})[0])


def test_a_read_only_cache(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o555)
    x = np.ones((8, 64), np.float32)
    assert_close(sparsec.compile(mlp(8))(x), onnxruntime_run(mlp(8), {"x": x})[0])
    cache.chmod(0o755)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"?" + b[41:]])
def test_a_damaged_cache_entry_is_built_again(cache: Path, damage: object) -> None:
    x = np.ones((8, 64), np.float32)
    want = sparsec.compile(mlp(8))(x)
    whole = {p: p.read_bytes() for p in cache.iterdir()}
    assert whole
    for path, content in whole.items():
        path.write_bytes(damage(content))  # type: ignore[operator]
    np.testing.assert_array_equal(sparsec.compile(mlp(8))(x), want)
    assert {p: p.read_bytes() for p in cache.iterdir()} == whole


def test_a_warm_cache_needs_no_code_generation(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sparsec.compile(mlp(8))
    monkeypatch.setenv("SPARSEC_DEBUG", "3")
    monkeypatch.setenv("SPARSEC_CC", "/nonexistent")
    sparsec.compile(mlp(8))
    assert "build " not in capsys.readouterr().err


def test_dump_holds_the_graph_after_every_pass(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEC_DUMP", str(tmp_path / "dump"))
    sparsec.compile(mlp(64))
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert names[0] == "000_imported.txt" and names[-1].endswith("_pack.txt")
    assert [int(n[:3]) for n in names] == list(range(len(names)))
    last = (tmp_path / "dump" / names[-1]).read_text(encoding="utf-8")
    assert "panels(" in last and "relayout" in last and "% zero" in last
    assert "return y=%" in last


@pytest.mark.parametrize("level", [1, 2])
def test_debug_levels(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: int
) -> None:
    monkeypatch.setenv("SPARSEC_DEBUG", str(level))
    sparsec.compile(mlp(64))
    printed = capsys.readouterr().err
    for name in ("simplify", "fuse_elementwise", "assign_layouts", "choose_format", "pack"):
        assert re.search(rf"^{name} +\d+\.\d\d ms  \d+ -> \d+ nodes", printed, re.MULTILINE)
    assert (re.search(r"^\+%.* = relayout\(", printed, re.MULTILINE) is not None) == (level == 2)


def test_a_debug_level_that_is_no_number(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_DEBUG", "much")
    with pytest.raises(ConfigError, match="SPARSEC_DEBUG='much'"):
        sparsec.compile(mlp(8))


def test_an_unknown_target() -> None:
    with pytest.raises(ConfigError, match="choose one of native, cuda, x86-64-v3"):
        sparsec.compile(mlp(8), target="pdp-11")


def test_saving_where_nothing_can_be_written(cache: Path, tmp_path: Path) -> None:
    program = sparsec.compile(mlp(8))
    with pytest.raises(sparsec.ArtifactError, match="cannot be written"):
        program.save(tmp_path / "missing" / "model.sparsec")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]

"""Whole commands that tune and compile with one cache: at the same time, killed, with nowhere to write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

import sparsec

PATIENCE = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two linear layers of different shapes, 90 % pruned, sixteen columns."""
    random = np.random.default_rng(11)
    weights = {
        name: (random.standard_normal(shape) * (random.random(shape) < 0.1)).astype(np.float32)
        for name, shape in {"first": (96, 160), "second": (160, 48)}.items()
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]), helper.make_node("MatMul", ["h", "second"], ["y"]),
    ]  # fmt: skip
    sizes = {"x": 96, "y": 48}
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [16, size]) for n, size in sizes.items()]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    path = tmp_path_factory.mktemp("together") / "model.onnx"
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def start(cache: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """A ``sparsec`` command on a cache."""
    return subprocess.Popen(
        [sys.executable, "-m", "sparsec", *map(str, arguments)], start_new_session=True, text=True,
        env={**os.environ, "SPARSEC_CACHE": str(cache)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What they printed, all having ended well."""
    found = []
    for process in processes:
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
        found.append(out)
    return found


def agrees(artifact: Path, model: Path) -> bool:
    """Whether a compiled model computes what onnxruntime does, on fresh inputs."""
    x: NDArray[np.float32] = np.random.default_rng().standard_normal((16, 96)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    [wanted] = session.run(None, {"x": x})
    return bool(np.allclose(sparsec.load(artifact)(x), wanted, rtol=1e-4, atol=1e-4))


def tried(records: Path) -> list[dict[str, object]]:
    """Every record, all lines being whole."""
    return [json.loads(line) for line in records.read_text().splitlines()]


def test_tuning_and_compiling_at_the_same_time(model: Path, tmp_path: Path) -> None:
    cache, artifacts = tmp_path / "cache", [tmp_path / "one.sparsec", tmp_path / "two.sparsec"]
    tuning = [start(cache, "tune", model, "--trials", "5", "--json") for _ in range(2)]
    compiling = [start(cache, "compile", model, "-o", artifact) for artifact in artifacts]
    outcomes = [json.loads(out) for out in ended(tuning)]
    ended(compiling)
    assert len(tried(cache / "records.jsonl")) == sum(o["trials"] for o in outcomes) >= 6
    assert all(agrees(artifact, model) for artifact in artifacts)
    [told] = ended([start(cache, "explain", model, "--json")])
    assert "measured" in json.dumps(json.loads(told))


def test_a_killed_run_loses_nothing(model: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    killed = start(tmp_path, "tune", model, "--minutes", "5")
    end = time.monotonic() + PATIENCE
    while not (records.is_file() and records.read_bytes().count(b"\n") >= 2) and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = records.read_bytes()
    assert before.count(b"\n") >= 2
    [out] = ended([start(tmp_path, "tune", model, "--trials", "2", "--json")])
    assert records.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert json.loads(out)["layers"][0]["untuned"], "what the killed run measured is known"


def test_nowhere_to_write_records(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = start(tmp_path / "file", "tune", model, "--trials", "1")
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and "Traceback" not in error and str(tmp_path / "file") in error

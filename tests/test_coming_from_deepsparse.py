"""The page for users of DeepSparse says what is so: its blocks of code run, its commands are understood."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import sparsec
from sparsec.cli import app
from sparsec.errors import Unsupported

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "coming_from_deepsparse.md").read_text(
    encoding="utf-8"
)
#: language, what follows it on the fence's line, and the text of every block
BLOCKS = re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str, about: str = "") -> list[str]:
    return [text for of, mark, text in BLOCKS if of == language and mark == about]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder, with the page's model in it."""
    random = np.random.default_rng(0)
    first = random.standard_normal((784, 64)).astype(np.float32) * (random.random((784, 64)) < 0.1)
    second = random.standard_normal((64, 10)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["scores"], "second"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(first, "v"), numpy_helper.from_array(second, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "page-kernels"))
    return tmp_path


@pytest.fixture
def all_cores() -> Iterator[None]:
    """A command may pin its process, which here is the tests' own."""
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


def test_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for text in blocks("python"):
        exec(compile(text, "coming_from_deepsparse.md", "exec"), names)
    assert (folder / "model.sparsec").is_file() and set(names["outputs"]) == {"scores"}
    assert names["y"].shape == (32, 10) and "csr" in capsys.readouterr().out


def test_torch(folder: Path) -> None:
    pytest.importorskip("torch")
    names: dict[str, Any] = {"sparsec": sparsec}
    for text in blocks("python", "torch"):
        exec(compile(text, "coming_from_deepsparse.md", "exec"), names)
    assert names["program"](np.zeros((32, 784), np.float32)).shape == (32, 10)


def test_commands(folder: Path, all_cores: None) -> None:
    pytest.importorskip("onnxruntime")
    lines = [line for text in blocks("sh") for line in text.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert program == "sparsec" and result.exit_code == 0 and result.stdout, line


def test_commands_in_the_text_are_understood() -> None:
    commands = re.findall(r"`sparsec ([^`]+)`", PROSE)
    assert {"bench", "explain", "machine"} <= set(commands)
    main = typer.main.get_command(app)
    for text in commands:
        name, *arguments = shlex.split(text)
        known = main.commands[name]  # type: ignore[attr-defined]
        if arguments:
            known.make_context(name, arguments)


def test_names_in_the_text_exist() -> None:
    for name in set(re.findall(r"`sparsec\.(\w+)`", PROSE)):
        assert hasattr(sparsec, name), name
    program = sparsec.Program
    for name in set(re.findall(r"`program\.(\w+)", PROSE)):
        assert hasattr(program, name), name


def test_integer_operators_are_refused_by_name() -> None:
    scale, zero = np.float32(0.1), np.uint8(3)
    weight = np.ones((8, 4), np.uint8)
    names = ["x", "scale", "zero", "w", "scale", "zero", "scale", "zero"]
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", names, ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [2, 4])],
        [numpy_helper.from_array(a, n) for n, a in (("scale", scale), ("zero", zero), ("w", weight))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(Unsupported, match="QLinearMatMul"):
        sparsec.analyze(model)

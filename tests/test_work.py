"""What a report says of every step's work, and that a compiled encoder moves nothing on its way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import networks  # noqa: E402
from pruning import Sparsity  # noqa: E402

import sparsec  # noqa: E402

TOKENS, WIDTH, INNER, HEADS, LAYERS = 40, 64, 128, 4, 2


@pytest.mark.slow
@pytest.mark.parametrize("percent", [0, 80])
def test_an_encoder_changes_layouts_at_its_borders_only(tmp_path: Path, percent: int) -> None:
    module = networks.made(lambda: networks.encoder(LAYERS, WIDTH, INNER, HEADS), Sparsity(percent))
    path = networks.exported(module, {"x": (1, TOKENS, WIDTH)}, tmp_path / "encoder.onnx")
    written = [node.op_type for node in onnx.load(path).graph.node]
    assert written.count("Transpose") >= 4 * LAYERS and {"Div", "Erf", "Softmax"} <= set(written)
    program = sparsec.compile(path)
    first, *inside, last = program.report["steps"]
    assert first["op"] == last["op"] == "relayout"
    assert {step["op"] for step in inside} == {"matmul", "attention", "layer_norm"}
    whole = 2 * TOKENS * WIDTH * 4
    assert [step.get("layout_bytes") for step in (first, *inside, last)] == [
        whole,
        *[None] * len(inside),
        whole,
    ]
    x = np.random.default_rng(0).standard_normal((1, TOKENS, WIDTH)).astype(np.float32)
    [y] = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.abs(program(x) - y).max() < 1e-4 * np.abs(y).max()


def test_work_of_products_is_counted_without_zeros(tmp_path: Path) -> None:
    module = networks.made(lambda: networks.encoder(1, WIDTH, INNER, HEADS), Sparsity(75))
    path = networks.exported(module, {"x": (1, TOKENS, WIDTH)}, tmp_path / "encoder.onnx")
    steps = sparsec.compile(path).report["steps"]
    linear = [s["operations"] for s in steps if s["op"] == "matmul"]
    assert linear == [2 * n // 4 * TOKENS for n in (*[WIDTH**2] * 4, *[WIDTH * INNER] * 2)]
    [attention] = [s for s in steps if s["op"] == "attention"]
    assert attention["operations"] == 2 * 2 * TOKENS * TOKENS * WIDTH
    assert attention["bytes"] == 4 * TOKENS * WIDTH * 4


def test_open_sizes_stay_in_the_report_and_are_bound_when_timed() -> None:
    program = sparsec.compile(Path(__file__).parents[1] / "benchmarks" / "models" / "digits.onnx")
    first = program.report["steps"][0]
    assert first["bytes"].startswith("8448*batch + ") and first["operations"] == "18432*batch"
    step = program.profile(np.zeros((5, 64), np.float32), repeats=1)[0]
    assert step.operations == 5 * 18432 and step.bytes == 5 * 8448 + int(first["bytes"].split(" + ")[1])

"""Random ONNX graphs, compiled for two targets and compared with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tvm")

from onnx_graphs import Array, Model, random_model  # noqa: E402

import sparsec  # noqa: E402

SEEDS = range(56)


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cold cache of kernels for the whole file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "fuzz-kernels"))
        yield


def wanted(proto: Any, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


def failure(model: Model, target: str, seed: int) -> str:
    """What is wrong with a model, or nothing."""
    proto = model.proto()
    try:
        program = sparsec.compile(proto, target=target)
        for tokens in model.tokens:
            feeds = model.feeds(seed, tokens)
            for port, got, want in zip(
                program.outputs, program.run(None, feeds), wanted(proto, feeds), strict=True
            ):
                text = difference(got, want)
                if text:
                    return f"{port.name}, {tokens} tokens: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def difference(got: Array, want: Array) -> str:
    """How two arrays differ by more than rounding, or nothing."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{got.shape}, expected {want.dtype}{want.shape}"
    scale = max(float(np.abs(want).max(initial=0)), 1e-3)
    error = float(np.abs(got.astype(np.float64) - want).max(initial=0))
    return "" if error <= 3e-5 * scale else f"off by {error:g} where values reach {scale:g}"


def smallest(model: Model, target: str, seed: int) -> tuple[Model, str]:
    """The shortest beginning of a failing model that still fails, and how."""
    text = failure(model, target, seed)
    while len(model.nodes) > 1:
        shorter = model.without_last()
        found = failure(shorter, target, seed)
        if not found:
            break
        model, text = shorter, found
    return model, text


@pytest.mark.parametrize("seed", SEEDS)
def test_random_model(seed: int) -> None:
    # most seeds on the portable level; where this machine's own level differs, some run on it too
    for target in ("x86-64-v3", "native") if seed % 8 == 0 else ("x86-64-v3",):
        if failure(random_model(seed), target, seed):
            model, text = smallest(random_model(seed), target, seed)
            pytest.fail(f"seed {seed}, {target}: {text}\n{model}", pytrace=False)


def test_a_failure_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shrinker keeps the node that fails and drops what follows it."""
    monkeypatch.setitem(globals(), "failure", lambda model, *_: "wrong" if len(model.nodes) > 2 else "")
    shrunk, text = smallest(random_model(3), "x86-64-v3", 3)
    assert shrunk.nodes == random_model(3).nodes[:3] and text == "wrong"

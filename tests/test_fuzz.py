"""Random ONNX graphs, compiled for two targets, against onnxruntime and float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tvm")

from convolutional_graphs import random_network  # noqa: E402
from onnx_graphs import Array, Model, random_model  # noqa: E402

import sparsec  # noqa: E402
from sparsec.frontends.from_onnx import from_onnx  # noqa: E402
from sparsec.ir.graph import Graph, Op  # noqa: E402
from sparsec.reference.evaluate import evaluate  # noqa: E402

SEEDS = range(56)
NETWORK_SEEDS = range(40)


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


def exact(graph: Graph, feeds: dict[str, Array]) -> list[Array]:
    """The answer in double precision; nothing for a graph with operators it has no word for."""
    if any(n.op is Op.TIR for n in graph.nodes):
        return []
    found = evaluate(graph, feeds, dtype=np.float64).values()
    return [a.astype(np.float32) if a.dtype == np.float64 else a for a in found]


def failure(model: Model, target: str, seed: int) -> str:
    """What is wrong with a model, or nothing."""
    proto = model.proto()
    try:
        program, graph = sparsec.compile(proto, target=target), from_onnx(proto)
        for tokens in model.tokens:
            feeds = model.feeds(seed, tokens)
            found = program.run(None, feeds)
            for oracle in (wanted(proto, feeds), exact(graph, feeds)):
                for port, got, want in zip(program.outputs, found, oracle, strict=bool(oracle)):
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


def check(model: Model, seed: int, native: bool) -> None:
    """Compiled for the portable level, and perhaps for this machine's own, which may differ."""
    for target in ("x86-64-v3", "native") if native else ("x86-64-v3",):
        if failure(model, target, seed):
            small, text = smallest(model, target, seed)
            pytest.fail(f"seed {seed}, {target}: {text}\n{small}", pytrace=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_model(seed: int) -> None:
    check(random_model(seed), seed, seed % 8 == 0)


@pytest.mark.parametrize("seed", NETWORK_SEEDS)
def test_random_network(seed: int) -> None:
    check(random_network(seed), seed, seed % 8 == 0)


def test_a_failure_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shrinker keeps the node that fails and drops what follows it."""
    monkeypatch.setitem(globals(), "failure", lambda model, *_: "wrong" if len(model.nodes) > 2 else "")
    shrunk, text = smallest(random_model(3), "x86-64-v3", 3)
    assert shrunk.nodes == random_model(3).nodes[:3] and text == "wrong"

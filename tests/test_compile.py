"""What a compiled program computes, whatever its sizes, threads, outputs and inputs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

import corpus
import graph_build
from kernel_cases import uneven
from onnx import helper
from onnx_models import Array, assert_close, encoder, mlp, model, onnxruntime_run, pruned
from scipy import sparse

import sparsec
from sparsec.compiler import artifact
from sparsec.errors import ArtifactError, ConfigError, ModelError, Unsupported
from sparsec.reference.evaluate import evaluate
from sparsec.runtime import Program
from sparsec.targets.x86 import AVX2, AVX512, cpu_features

RNG = np.random.default_rng(17)


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "kernels"))
        yield


def normal(*shape: int) -> Array:
    drawn: Array = RNG.standard_normal(shape).astype(np.float32)
    return drawn


@pytest.mark.parametrize("make", corpus.CORPUS, ids=lambda f: f.__name__)
def test_every_graph_of_the_corpus(make: Any) -> None:
    """Planner, lowering and kernels against the reference in double precision."""
    graph = make()
    program = Program.from_bytes(artifact(graph, AVX2))
    for batch, length in ((3, 5), (1, 1), (37, 9)):
        inputs = graph_build.random_inputs(graph, batch, {"batch": batch, "length": length})
        want = evaluate(graph, inputs, dtype=np.float64)
        for name, got in zip(graph.output_names, program.run(None, inputs), strict=True):
            assert_close(got, want[name].astype(got.dtype), 2e-5)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 31, 32, 33, 64, 100])
def test_any_number_of_tokens(symbolic_mlp: Program, tokens: int) -> None:
    x = normal(tokens, 64)
    assert_close(symbolic_mlp(x), onnxruntime_run(mlp("n"), {"x": x})[0])


@pytest.fixture(scope="module")
def symbolic_mlp(kernel_cache: None) -> Program:
    return sparsec.compile(mlp("n"))


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 33])
def test_a_known_number_of_tokens(tokens: int) -> None:
    x = normal(tokens, 64)
    assert_close(sparsec.compile(mlp(tokens))(x), onnxruntime_run(mlp(tokens), {"x": x})[0])


def test_no_tokens(symbolic_mlp: Program) -> None:
    assert symbolic_mlp(normal(0, 64)).shape == (0, 48)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 16), (2, 7), (3, 33)])
def test_an_encoder(batch: int, length: int) -> None:
    x = normal(batch, length, 32)
    want = onnxruntime_run(encoder("b", "s"), {"x": x})[0]
    assert_close(sparsec.compile(encoder("b", "s"))(x), want)
    assert_close(sparsec.compile(encoder("b", "s"), shapes={"x": x.shape})(x), want)


@pytest.mark.parametrize(
    "make", [lambda: mlp(128, (256, 512, 128)), lambda: encoder(2, 128)], ids=["mlp", "encoder"]
)
def test_threads_change_no_bit(make: Any) -> None:
    program = sparsec.compile(make(), threads=1)
    x = normal(*(int(s) for s in program.inputs[0].shape))
    alone = program(x)
    program.threads = 2
    for _ in range(3):
        np.testing.assert_array_equal(program(x), alone)


def test_threads_share_a_single_token() -> None:
    """A program is made for the threads it is to run on, and computes the same as one made for others."""
    model, x = mlp(1, (512, 1024, 768), zeros=0.8), normal(1, 512)
    alone, shared = (sparsec.compile(model, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(shared(x), alone(x))
    assert all(step.tiles % 2 == 0 for step in shared.profile(x, repeats=1))


@pytest.mark.parametrize("threads", [0, -1, 257, 1.5, "2"])
def test_numbers_of_threads_that_nothing_runs_on(threads: Any) -> None:
    with pytest.raises(ConfigError, match="from 1 to 256"):
        sparsec.compile(mlp(1, (8, 8)), threads=threads)


def test_a_token_of_nan_stays_alone() -> None:
    """NaN and infinity in one row of the batch leave all other rows as they are, to the bit."""
    program = sparsec.compile(mlp("n", zeros=0.6))
    x = normal(37, 64)
    clean = program(x)
    for row, value in ((5, np.nan), (33, np.inf), (36, -np.inf)):
        dirty = x.copy()
        dirty[row] = value
        got = program(dirty)
        others = np.arange(37) != row
        np.testing.assert_array_equal(got[others], clean[others])
        assert not np.isfinite(got[row]).all()


def test_nan_in_one_sequence_leaves_the_other() -> None:
    program = sparsec.compile(encoder("b", "s"))
    x = normal(2, 9, 32)
    clean = program(x)
    x[1, 3] = np.nan
    got = program(x)
    np.testing.assert_array_equal(got[0], clean[0])
    assert np.isnan(got[1]).all()


def test_nan_comes_through_activations() -> None:
    """max(NaN, 0) is NaN, as in onnxruntime."""
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (4, 24)}, {"y": (4, 24)}, {})
    x = normal(4, 24)
    x[2, 3] = np.nan
    np.testing.assert_array_equal(sparsec.compile(proto)(x), onnxruntime_run(proto, {"x": x})[0])


def test_outputs_that_are_inputs_constants_or_twice_the_same() -> None:
    w = pruned(RNG, 16, 8)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Identity", ["y"], ["again"]),
        helper.make_node("Identity", ["x"], ["input"]),
        helper.make_node("Identity", ["k"], ["constant"]),
        helper.make_node("Reshape", ["y", "flat"], ["view"]),
    ]
    outputs = {"y": ("n", 8), "again": ("n", 8), "input": ("n", 16), "constant": (3,), "view": ("m",)}
    weights = {"w": w, "k": np.arange(3, dtype=np.float32), "flat": np.array([-1], np.int64)}
    program = sparsec.compile(model(nodes, {"x": ("n", 16)}, outputs, weights))
    x = normal(5, 16)
    y, again, same, constant, view = program(x)
    assert_close(y, x @ w)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(constant, [0, 1, 2])
    np.testing.assert_array_equal(view, y.reshape(-1))


def test_an_output_nobody_reads() -> None:
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b", "c"], axis=1),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = {"sizes": np.array([2, 3, 4], np.int64)}
    program = sparsec.compile(model(nodes, {"x": ("n", 9)}, {"y": ("n", 4), "a": ("n", 2)}, weights))
    x = normal(7, 9)
    y, a = program(x)
    np.testing.assert_array_equal(y, np.maximum(x[:, 5:], 0))
    np.testing.assert_array_equal(a, x[:, :2])


def test_a_program_of_no_steps() -> None:
    proto = model([helper.make_node("Identity", ["x"], ["y"])], {"x": ("n", 3)}, {"y": ("n", 3)}, {})
    x = normal(4, 3)
    np.testing.assert_array_equal(sparsec.compile(proto)(x), x)


def test_inputs_of_any_strides(symbolic_mlp: Program) -> None:
    x = normal(40, 64)
    want = symbolic_mlp(x)
    np.testing.assert_array_equal(symbolic_mlp(np.asfortranarray(x)), want)
    np.testing.assert_array_equal(symbolic_mlp(np.repeat(x, 2, axis=1)[:, ::2]), want)
    np.testing.assert_array_equal(symbolic_mlp(x[::-1])[::-1], want)
    unaligned = np.frombuffer(b"\0" * 4 + x.tobytes(), np.float32, offset=4).reshape(x.shape)
    np.testing.assert_array_equal(symbolic_mlp(unaligned), want)


def test_equal_layers_share_one_kernel() -> None:
    proto = mlp(128, (64, 64, 64, 64), zeros=0.0)
    steps = [s["kernel"] for s in sparsec.compile(proto).report["steps"]]
    layers = [k for k in steps if k.startswith("dense")]
    assert len(layers) == 3 and len(set(layers)) == 2  # the last has no ReLU


def test_the_report_names_every_layer() -> None:
    weights = {"sparse": pruned(RNG, 256, 256, 0.95), "dense": normal(256, 64)}
    nodes = [
        helper.make_node("MatMul", ["x", "sparse"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "dense"], ["y"], name="second"),
    ]
    program = sparsec.compile(model(nodes, {"x": (64, 256)}, {"y": (64, 64)}, weights))
    first, second = program.report["layers"]
    assert [first["origin"], second["origin"]] == ["first", "second"]
    assert first["shape"] == [256, 256] and second["shape"] == [64, 256]
    assert "95." in first["found"] and 0.94 < first["sparsity"] < 0.96
    assert first["format"] != "dense" and second["format"] == "dense"
    assert "faster" in first["reason"] or "x" in first["reason"]
    assert second["reason"].startswith("dense")
    assert first["bytes"] < first["dense_bytes"] / 4 and second["bytes"] >= second["dense_bytes"]
    for layer in (first, second):
        times = [c["microseconds"] for c in layer["candidates"]]
        assert times == sorted(times) and layer["candidates"][0]["kernel"] == layer["kernel"]
        assert any(c["format"] == "dense" for c in layer["candidates"])
    assert [s["node"] for s in program.report["steps"] if "spmm" in s["kernel"]] == ["first"]


def test_an_uneven_weight_runs_part_by_part_and_the_report_says_so() -> None:
    weight = uneven(256, 512)
    weight[:, 300:] = 0
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    program = sparsec.compile(model(nodes, {"x": ("n", 512)}, {"y": ("n", 256)}, {"w": weight.T.copy()}))
    (layer,) = program.report["layers"]
    assert (layer["kernel"], layer["format"]) == ("hybrid_spmm", "hybrid")
    said = r"are skipped, with 100 dense columns and \d+ short rows apart and 212 unused inputs left out$"
    assert re.search(said, layer["reason"]), layer["reason"]
    for tokens in (1, 32, 100):
        x = normal(tokens, 512)
        assert_close(program(x), (x.astype(np.float64) @ weight.T).astype(np.float32))


def test_analyze_generates_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same layers as a compiled program's report, without steps and without a C compiler."""
    monkeypatch.setenv("SPARSEC_CACHE", "")
    monkeypatch.setenv("SPARSEC_CC", "/nonexistent")
    found = sparsec.analyze(mlp(64))
    monkeypatch.undo()
    compiled = sparsec.compile(mlp(64)).report
    keys = ("node", "origin", "found", "format", "kernel", "reason", "candidates", "dense_bytes")
    assert [[a[k] for k in keys] for a in found["layers"]] == [
        [b[k] for k in keys] for b in compiled["layers"]
    ]
    assert found["steps"] == []


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8])
def test_a_matrix(kind: str, dtype: Any) -> None:
    weight = sparse.random(40, 24, 0.2, kind, np.float64, random_state=RNG) * 9
    weight = weight.astype(dtype)
    x = normal(6, 24)
    assert_close(sparsec.compile(weight)(x), (weight.toarray().astype(np.float32) @ x.T).T)


def test_a_stack_of_matrices() -> None:
    first, second, bias = pruned(RNG, 32, 16), normal(8, 32), normal(32)
    program = sparsec.compile([(sparse.csr_array(first), bias, "relu"), (second, None, None)])
    x = normal(9, 16)
    assert_close(program(x), np.maximum(x @ first.T + bias, 0) @ second.T)


def test_bad_models_are_refused(tmp_path: Path) -> None:
    whole = mlp("n").SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("missing.onnx", "cut.onnx", "text.onnx", "empty.onnx", "."):
        with pytest.raises(ModelError, match=name.removesuffix(".onnx")) as refused:
            sparsec.compile(tmp_path / name)
        assert len(str(refused.value)) < 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.onnx", "empty.onnx", "text.onnx"]


def test_unsupported_operators_come_all_at_once() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Det", ["x"], ["b"], name="second"),
    ]
    proto = model(nodes, {"x": (3, 3)}, {"a": (), "b": ()}, {})
    with pytest.raises(Unsupported) as refused:
        sparsec.compile(proto)
    assert refused.value.operators == (("Det", "first"), ("Det", "second"))


@pytest.mark.skipif("avx512f" in cpu_features(), reason="this processor has AVX-512")
def test_another_processors_program_refuses_to_load(tmp_path: Path) -> None:
    from sparsec.frontends import import_model

    data = artifact(import_model(mlp(64)), AVX512)
    path = tmp_path / "other.sparsec"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="avx512f"):
        sparsec.load(path)
    assert os.listdir(tmp_path) == ["other.sparsec"]

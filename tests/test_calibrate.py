"""Compiling with samples: what is measured, what is refused, and that results stay right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

import corpus
import graph_build
import onnx
from onnx_models import Array, assert_close, encoder, mlp, onnxruntime_run
from test_cli import refusal
from test_cli import sparsec as command

import sparsec
from sparsec.calibrate import active_share
from sparsec.compiler import artifact
from sparsec.errors import InputError
from sparsec.frontends import import_model
from sparsec.reference.evaluate import evaluate
from sparsec.runtime import Program
from sparsec.targets.x86 import AVX2, AVX512

#: widths of an MLP whose hidden layers are large enough for skipping to pay
WIDTHS = (64, 512, 512, 16)


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "kernels"))
        yield


def quiet_mlp(batch: int | str = 1, shift: float = -2.5) -> onnx.ModelProto:
    """An MLP whose biases keep most of its hidden features at zero."""
    proto = mlp(batch, WIDTHS, zeros=0.5)
    for weight in proto.graph.initializer:
        if weight.name in ("b0", "b1"):
            array = np.full(512, shift, np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    return proto


def normal(*shape: int, seed: int = 0) -> Array:
    drawn: Array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return drawn


def hidden(x: Array, proto: onnx.ModelProto) -> list[Array]:
    """The inputs of all three layers, in float64."""
    weights = {w.name: onnx.numpy_helper.to_array(w).astype(np.float64) for w in proto.graph.initializer}
    found = [x.astype(np.float64)]
    for i in range(2):
        found.append(np.maximum(found[-1] @ weights[f"w{i}"] + weights[f"b{i}"], 0))
    return found


def zeros_of(report: dict[str, Any]) -> list[float]:
    return [layer["activation_zeros"] for layer in report["layers"]]


@pytest.mark.parametrize("batch", [1, 3])
def test_zeros_are_those_of_the_samples(batch: int) -> None:
    proto, samples = quiet_mlp(batch), [{"x": normal(batch, 64, seed=s)} for s in range(5)]
    program = sparsec.compile(proto, calibrate=samples)
    shares = np.array([[1 - (h != 0).any(axis=0).mean() for h in hidden(s["x"], proto)] for s in samples])
    assert zeros_of(program.report) == pytest.approx(shares.mean(axis=0), abs=0.003)
    layer = program.report["layers"][1]
    assert layer["kernel"] == "active_gemv" and layer["format"] == "csc"
    said = f"{100 * layer['activation_zeros']:.1f} % of its inputs were zero in the calibration samples"
    assert said in layer["reason"]


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_results_are_right_for_other_inputs_too(tokens: int) -> None:
    proto = quiet_mlp(tokens)
    program = sparsec.compile(proto, calibrate={"x": normal(tokens, 64)})
    assert "active_gemv" in {layer["kernel"] for layer in program.report["layers"]}
    for x in (
        normal(tokens, 64, seed=1),
        50 * normal(tokens, 64, seed=2),
        np.zeros((tokens, 64), np.float32),
    ):
        assert_close(program(x), onnxruntime_run(proto, {"x": x})[0])


def test_threads_change_no_bit() -> None:
    proto = quiet_mlp()
    program = sparsec.compile(proto, calibrate={"x": normal(1, 64)})
    x, found = normal(1, 64, seed=3), []
    for threads in (1, 2, 3):
        program.threads = threads
        found.append(program(x).tobytes())
    assert len(set(found)) == 1


def test_nan_comes_through() -> None:
    program = sparsec.compile(quiet_mlp(2), calibrate={"x": normal(2, 64)})
    x = normal(2, 64)
    x[0, 5] = np.nan
    y = program(x)
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


def test_without_samples_nothing_changes() -> None:
    report = sparsec.compile(quiet_mlp()).report
    assert not any("activation_zeros" in layer for layer in report["layers"])
    assert "active_gemv" not in str(report)


def test_dense_activations_leave_every_choice() -> None:
    proto, samples = quiet_mlp(shift=9.0), {"x": normal(1, 64)}
    kernels = [layer["kernel"] for layer in sparsec.compile(proto).report["layers"]]
    assert kernels == [
        layer["kernel"] for layer in sparsec.compile(proto, calibrate=samples).report["layers"]
    ]


def test_same_samples_same_bytes() -> None:
    graph, samples = import_model(quiet_mlp()), [{"x": normal(1, 64, seed=s)} for s in range(3)]
    assert artifact(graph, AVX2, samples) == artifact(graph, AVX2, samples)


def test_the_machine_compiled_for_need_not_be_this_one() -> None:
    """The samples run here, whatever the program is for."""
    graph, samples = import_model(quiet_mlp()), {"x": normal(1, 64)}
    assert artifact(graph, AVX512, samples)


def test_one_array_holds_many_samples() -> None:
    x = normal(6, 64)
    several = [{"x": x[i : i + 2]} for i in (0, 2, 4)]
    proto = quiet_mlp(2)
    assert sparsec.analyze(proto, calibrate={"x": x}) == sparsec.analyze(proto, calibrate=several)


def test_an_open_batch_is_measured_as_it_comes() -> None:
    x = normal(7, 64)
    report = sparsec.analyze(quiet_mlp("n"), calibrate={"x": x})
    shares = [1 - (h != 0).any(axis=0).mean() for h in hidden(x, quiet_mlp())]
    assert zeros_of(report) == pytest.approx(shares, abs=0.003)
    assert "active_gemv" not in str(report)


def test_an_encoder() -> None:
    """Layers whose inputs are views, residual sums or shared by three."""
    x = normal(1, 4, 32)
    program = sparsec.compile(encoder(1, 4), calibrate={"x": x})
    assert all(0 <= share <= 1 for share in zeros_of(program.report))
    assert_close(program(x), onnxruntime_run(encoder(1, 4), {"x": x})[0])


@pytest.mark.parametrize("make", corpus.CORPUS[::6], ids=lambda f: f.__name__)
def test_graphs_of_the_corpus(make: Any) -> None:
    """Open sizes, convolutions, operators carried as TIR: samples may be given for any model."""
    graph = make()
    inputs = graph_build.random_inputs(graph, 2, {"batch": 2, "length": 5})
    program = Program.from_bytes(artifact(graph, AVX2, inputs))
    want = evaluate(graph, inputs, dtype=np.float64)
    for name, got in zip(graph.output_names, program.run(None, inputs), strict=True):
        assert_close(got, want[name].astype(got.dtype), 2e-5)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "calibrate: there are no samples"),
        ({"x": np.zeros((0, 64), np.float32)}, "calibrate: the arrays hold no sample"),
        ({"z": normal(1, 64)}, "calibrate: a sample holds z; the model's inputs are x"),
        ({}, "calibrate: a sample holds nothing; the model's inputs are x"),
        ([normal(1, 64)], "calibrate: a sample maps input names to arrays; got ndarray"),
        ([{"x": normal(1, 64)}, {"x": normal(1, 63)}], "calibrate: sample 2 of 2: "),
        ({"x": np.zeros((1, 64), np.int32)}, "calibrate: sample 1 of 1: "),
    ],
)
def test_samples_that_do_not_fit(samples: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        sparsec.compile(quiet_mlp(), calibrate=samples)
    assert said in str(caught.value)


def test_share_counts_features_and_nan() -> None:
    x = np.array([[0.0, -0.0, np.nan, 0.0], [0.0, 0.0, 0.0, 1.0]], np.float32)
    assert active_share(x) == 0.5 and active_share(x[0]) == 0.25 and active_share(x[:0]) == 0.0


def test_the_command_line(tmp_path: Path) -> None:
    onnx.save(quiet_mlp(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=normal(4, 64))
    text = command("compile", "m.onnx", "--calibrate", "x.npz", cwd=tmp_path).stdout
    assert "active_gemv" in text and "zero inputs" in text and "calibration samples" in text
    again = command("explain", "m.sparsec", cwd=tmp_path).stdout
    assert "zero inputs" in again and "calibration samples" in again
    fresh = command("explain", "m.onnx", "--calibrate", "x.npz", "--candidates", cwd=tmp_path).stdout
    assert "active_gemv *" in fresh
    assert "zero inputs" not in command("explain", "m.onnx", cwd=tmp_path).stdout
    one = command(
        "bench", "m.onnx", "--calibrate", "x.npz", "--rounds", "1", "--profile", cwd=tmp_path
    ).stdout
    assert "active_gemv" in one


def test_the_command_line_refuses(tmp_path: Path) -> None:
    onnx.save(quiet_mlp(), tmp_path / "m.onnx")
    np.savez(tmp_path / "wrong.npz", a=normal(1, 64), b=normal(1, 64))
    assert "no such file" in refusal("compile", "m.onnx", "--calibrate", "none.npz", cwd=tmp_path)
    said = refusal("compile", "m.onnx", "--calibrate", "wrong.npz", cwd=tmp_path)
    assert "holds a, b; the model's inputs are x" in said
    command("compile", "m.onnx", "-q", cwd=tmp_path)
    said = refusal("run", "m.sparsec", "--calibrate", "wrong.npz", cwd=tmp_path)
    assert "is compiled already" in said and "--calibrate" in said

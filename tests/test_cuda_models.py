"""Whole models for a GPU: what they compute, launch by launch, and that their code can be made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

import onnx
import onnx_models
from corpus import CORPUS, random_graph
from cuda_models import driver, loaded
from cuda_programs import ALLOWED, check, names_of, program_on, ran, target_of
from fake_cuda.driver import FakeDriver
from graph_build import random_inputs
from onnx_models import onnxruntime_run
from sass import needs_nvcc
from test_models import FIXED, LARGE, OPEN, feeds, session_of

import sparsec
from sparsec.compiler import artifact
from sparsec.errors import ArtifactError
from sparsec.frontends import import_model
from sparsec.ir.graph import Graph, replace
from sparsec.runtime import Program
from sparsec.runtime.artifact import manifest_of
from sparsec.targets.cuda import gpus
from sparsec.targets.named import computing_in, target_named

__all__ = ["driver", "loaded"]

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "benchmarks" / "models" / "digits.onnx"

#: graphs that are also computed in halves by default; the others are behind the marker slow
IN_HALVES = (
    "mlp_gelu", "value_used_twice", "rms_norm", "attention_exported", "attention_shared_heads", "comparisons",
    "recurrent_layers", "conv_residual", "conv_gated", "pyramid", "cuts_and_joins",
)  # fmt: skip
halves = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


@pytest.mark.parametrize("make", CORPUS, ids=lambda make: make.__name__)
def test_every_graph(driver: FakeDriver, make: Callable[[], Graph]) -> None:
    graph = make()
    check(
        driver,
        graph,
        [random_inputs(graph, seed, s) for seed, s in ((1, {}), (2, {"batch": 1, "length": 9}))],
    )


@halves
@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=() if make.__name__ in IN_HALVES else pytest.mark.slow) for make in CORPUS],
    ids=lambda make: make.__name__,
)
def test_every_graph_in_halves(driver: FakeDriver, make: Callable[[], Graph], dtype: str) -> None:
    graph = make()
    check(driver, graph, [random_inputs(graph)], dtype)


@every_dtype
@pytest.mark.parametrize("seed", range(3))
def test_random_graphs(driver: FakeDriver, seed: int, dtype: str) -> None:
    graph = random_graph(seed)
    check(driver, graph, [random_inputs(graph, seed + 9)], dtype)


def agrees(
    driver: FakeDriver, model: Any, dtype: str, sizes: tuple[int, ...], given: Any = None, step: float = 0.0
) -> list[str]:
    """Compile, run at each size of what is open, compare with onnxruntime; the kernels.

    ``step``: of a model that rounds its values, how far two results may lie apart that were rounded.
    """
    program, calls = program_on(driver, import_model(model, given), target_of(dtype, gpus.SM90A))
    for seed, size in enumerate(sizes):
        inputs = feeds(program, size, seed)
        for y, want in zip(ran(driver, program, inputs), onnxruntime_run(model, inputs), strict=True):
            assert (y.dtype, y.shape) == (want.dtype, want.shape)
            scale = max(float(np.abs(want).max()), 1e-6)
            np.testing.assert_allclose(y, want, atol=max(step, ALLOWED[dtype] * scale), rtol=0)
    return names_of(calls)


@every_dtype
def test_the_digits_network(driver: FakeDriver, dtype: str) -> None:
    kernels = agrees(driver, DIGITS, dtype, (1, 5))
    assert "csr_conv" in kernels, "its convolutions are 90 % zeros"


@every_dtype
def test_lenet(driver: FakeDriver, shared_data: Path, dtype: str) -> None:
    """Without the channels nobody reads it is small enough for dense halves."""
    kernels = agrees(driver, shared_data / "pruned/dns_lenet5_sparse/model.onnx", dtype, (2,))
    assert {"csr_conv" if dtype == "float32" else "dense_conv"} <= set(kernels)


def with_pattern(proto: onnx.ModelProto, kept: int, of: int) -> onnx.ModelProto:
    """The model with the smallest of every ``of`` neighbouring inputs of each matrix set to zero."""
    for tensor in proto.graph.initializer:
        weight = onnx.numpy_helper.to_array(tensor).copy()
        if weight.ndim == 2:
            groups = weight.reshape(-1, of, weight.shape[1])
            order = np.abs(groups).argsort(axis=1)
            np.put_along_axis(groups, order[:, : of - kept], 0, axis=1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(groups.reshape(weight.shape), tensor.name))
    return proto


@halves
def test_a_perceptron_with_two_of_four_weights(driver: FakeDriver, dtype: str) -> None:
    proto = with_pattern(onnx_models.mlp("n", (512, 1024), zeros=0.0), 2, 4)
    assert agrees(driver, proto, dtype, (1, 37)).count("nm_spmm") == 1


@halves
def test_a_perceptron_of_half_its_neurons(driver: FakeDriver, dtype: str) -> None:
    """Of 1024 neurons 509 are zero: 504 go, since a multiple of 8 stays."""
    proto = onnx_models.mlp("n", (512, 1024, 16), zeros=0.0)
    first = next(t for t in proto.graph.initializer if tuple(t.dims) == (512, 1024))
    weight = onnx.numpy_helper.to_array(first).copy()
    weight[:, :509] = 0
    first.CopyFrom(onnx.numpy_helper.from_array(weight, first.name))
    [layer, *_] = sparsec.analyze(proto, target="sm_90a", dtype=dtype)["layers"]
    assert layer["removed"] == {"outputs": 504, "inputs": 0}
    agrees(driver, proto, dtype, (1, 37))


@every_dtype
def test_an_encoder_layer(driver: FakeDriver, dtype: str) -> None:
    kernels = agrees(driver, onnx_models.encoder("n", "m", width=64, heads=2), dtype, (3,))
    assert kernels.count("attention") == 1 and kernels.count("layer_norm") == 2


#: models of a second or so each; the largest number of their inputs' open sizes that is run
REAL = {
    "models/mjx_g1/model": 5, "models/micro_kws_m_fp32/model": 1, "models/gonnx_ndm/model": 2,
    "models/dtln_1/model": 1, "models/dtln_2/model": 1, "models/mnist_burn/model": 2,
    "models/mnist_cntk/model": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_models(driver: FakeDriver, shared_data: Path, name: str) -> None:
    agrees(driver, shared_data / f"{name}.onnx", "float16", (REAL[name],))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["models/resnet_cifar_resnet20/model", "models/micro_kws_m_qdq/model", "minilm/enc_sgpt_u80"]
)
@every_dtype
def test_larger_real_models(driver: FakeDriver, shared_data: Path, name: str, dtype: str) -> None:
    agrees(driver, shared_data / f"{name}.onnx", dtype, (2,), step=2 / 255 if "qdq" in name else 0.0)


def test_results_stay_over_runs(driver: FakeDriver) -> None:
    """Outputs full of NaN come back the same, launched or replayed, over what earlier runs left."""
    program, _ = program_on(driver, import_model(DIGITS), target_of("float16"))
    inputs = feeds(program, 3, seed=7)
    first = ran(driver, program, inputs)
    outputs = {p.name: np.empty_like(y) for p, y in zip(program.outputs, first, strict=True)}
    prepared = program.prepare(inputs, outputs)
    for _ in range(4):
        for y in outputs.values():
            y.fill(np.nan)
        prepared()
        for y, want in zip(outputs.values(), first, strict=True):
            np.testing.assert_array_equal(y, want)
    assert driver.counts["graph_launches"] > 0


@pytest.mark.parametrize("capability", [(8, 6), (9, 0)])
def test_one_file_for_two_kinds_of_gpus(driver: FakeDriver, capability: tuple[int, int]) -> None:
    both = computing_in(target_named("sm_90a,sm_80"), "float16")
    graph = import_model(onnx_models.mlp("n", (32, 48, 16)))
    program, _ = program_on(driver, graph, both, capability)
    assert program.isa == ("sm_90a" if capability == (9, 0) else "sm_80")
    inputs = feeds(program, 3, seed=8)
    want = onnxruntime_run(onnx_models.mlp("n", (32, 48, 16)), inputs)[0]
    y = ran(driver, program, inputs)[0]
    np.testing.assert_allclose(y, want, atol=ALLOWED["float16"] * np.abs(want).max(), rtol=0)


@needs_nvcc
def test_a_program_for_a_gpu_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be looked at and saved, the same bytes every time; running it says what is missing."""
    monkeypatch.setenv("SPARSEC_LIBCUDA", "libcuda_of_no_machine.so")
    program = sparsec.compile(DIGITS, target="sm_90a", dtype="float16")
    assert (program.isa, program.device) == ("sm_90a", "cuda")
    assert {layer["format"] for layer in program.report["layers"]} > {"dense"}
    program.save(tmp_path / "digits.sparsec")
    saved = (tmp_path / "digits.sparsec").read_bytes()
    assert saved == artifact(import_model(DIGITS), target_of("float16", gpus.SM90A))
    assert manifest_of(saved)["target"] == "sm_90a"
    with pytest.raises(ArtifactError, match=r"CUDA GPU.*libcuda_of_no_machine"):
        program(np.zeros((1, 64), np.float32))
    with pytest.raises(ArtifactError, match=r"libcuda_of_no_machine"):
        Program.load(tmp_path / "digits.sparsec")


#: models whose kernels are made in seconds
QUICK = ("models/mjx_g1/model", "pruned/dns_lenet5_sparse/model")


@needs_nvcc
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*OPEN, *LARGE, *FIXED)],
)
def test_real_models_compile(shared_data: Path, name: str, dtype: str) -> None:
    graph = import_model(shared_data / f"{name}.onnx", FIXED.get(name))
    data = artifact(graph, replace(gpus.SM90A, dtype=dtype))
    about = manifest_of(data)
    ports = [p.name for p in session_of(shared_data / f"{name}.onnx").get_inputs()]
    assert [p["name"] for p in about["inputs"]] == ports
    assert about["isas"][0]["name"] == "sm_90a" and about["report"]["steps"]

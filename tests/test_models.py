"""Every real model beside the repository: compiled and compared with onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tvm")

from runtime_alone import RuntimeAlone  # noqa: E402

import sparsec  # noqa: E402
from sparsec.errors import Unsupported  # noqa: E402
from sparsec.runtime import Program  # noqa: E402

#: compiled with the sizes the model leaves open
OPEN = (
    "minilm/enc_sgpt_u50", "minilm/enc_sgpt_u80", "models/basic_pitch/model", "models/dtln_1/model",
    "models/dtln_2/model", "models/fastestdet/model", "models/gonnx_ndm/model",
    "models/magika_standard_v3_3/model", "models/micro_kws_m_fp32/model",
    "models/micro_kws_m_qdq/model", "models/mjx_g1/model",
    "models/mjx_go1/model", "models/mjx_leap/model", "models/mnist_burn/model", "models/mnist_cntk/model",
    "models/mnist_onnx2c_pytorch/model", "models/nanodet_m_320/model", "models/resnet_cifar_resnet20/model",
    "models/resnet_cifar_resnet32/model", "models/ultraface_rfb320_simplified/model",
    "models/ultraface_slim320/model",
    "pruned/distiller_ssl_channel_regularized_resnet20_finetuned/model", "pruned/distiller_ssl_dense/model",
    "pruned/dns_lenet5_original/model", "pruned/dns_lenet5_sparse/model",
)  # fmt: skip

#: images of 720 x 720, run one at a time
LARGE = ("models/fns_candy/model",)

#: the importer wants these sizes fixed
FIXED = {"models/ppocr_v2_cls/model": {"x": (1, 3, 48, 192)}}

#: inputs that hold numbers of another size than standard normals
SPREAD = {"inputImage": 60.0}

#: integer inputs are bytes or token numbers; all of these models accept 0 to 99
HIGHEST = 100


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The models share kernels; each run of the tests starts cold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "model-kernels"))
        yield


def feeds(program: Program, size: int, seed: int) -> dict[str, Any]:
    """Random inputs; masks are ones, sizes that are open are ``size``."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for port in program.inputs:
        shape = [s if isinstance(s, int) else size for s in port.shape]
        if "mask" in port.name:
            made[port.name] = np.ones(shape, port.dtype)
        elif port.dtype == "float32":
            spread = SPREAD.get(port.name, 1.0)
            made[port.name] = (spread * rng.standard_normal(shape)).astype(np.float32)
        else:
            made[port.name] = rng.integers(0, HIGHEST, shape).astype(port.dtype)
    return made


def session_of(path: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # onnxruntime's optimiser moves quantisation steps, which flips roundings
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(program: Program, path: Path, size: int, seed: int) -> None:
    """One run against onnxruntime: names, dtypes, shapes, and values to 1e-4 of each output's scale."""
    session, inputs = session_of(path), feeds(program, size, seed)
    got = program.run(None, inputs)
    assert [p.name for p in program.outputs] == [o.name for o in session.get_outputs()]
    for port, y, want in zip(program.outputs, got, session.run(None, inputs), strict=True):
        assert (y.dtype, y.shape) == (want.dtype, want.shape), port
        scale = max(float(np.abs(want).max()), 1e-6)
        np.testing.assert_allclose(y, want, atol=1e-4 * scale, rtol=0, err_msg=port.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
def test_agrees_with_onnxruntime(
    shared_data: Path, runtime_alone: RuntimeAlone, tmp_path: Path, name: str
) -> None:
    """Also when saved and run in a process that has NumPy and the runtime only."""
    path = shared_data / f"{name}.onnx"
    program = sparsec.compile(path)
    compare(program, path, 3, seed=21)
    runtime_alone.check(program, feeds(program, 3, seed=21), tmp_path)
    if any(isinstance(s, str) for p in program.inputs for s in p.shape):
        # one token, and an odd number beyond a panel, by the same program
        compare(program, path, 1, seed=22)
        compare(program, path, 5, seed=23)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_images_agree_with_onnxruntime(
    shared_data: Path, runtime_alone: RuntimeAlone, tmp_path: Path, name: str
) -> None:
    path = shared_data / f"{name}.onnx"
    program = sparsec.compile(path)
    compare(program, path, 1, seed=21)
    runtime_alone.check(program, feeds(program, 1, seed=21), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_agrees_once_sizes_are_fixed(
    shared_data: Path, runtime_alone: RuntimeAlone, tmp_path: Path, name: str
) -> None:
    path = shared_data / f"{name}.onnx"
    with pytest.raises(Unsupported, match="fix the input sizes"):
        sparsec.compile(path)
    program = sparsec.compile(path, shapes=FIXED[name])
    compare(program, path, 1, seed=24)
    runtime_alone.check(program, feeds(program, 1, seed=24), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm/enc_sgpt_u80", "models/mjx_g1/model", "models/fastestdet/model"])
def test_every_element_of_the_outputs_is_written(shared_data: Path, name: str) -> None:
    """Outputs full of NaN come back full of numbers, also by a second run over the first's memory."""
    path = shared_data / f"{name}.onnx"
    program = sparsec.compile(path)
    inputs = feeds(program, 17, seed=25)
    wanted = session_of(path).run(None, inputs)
    outputs = {p.name: np.empty_like(w) for p, w in zip(program.outputs, wanted, strict=True)}
    prepared = program.prepare(inputs, outputs)
    for _ in range(2):
        for y in outputs.values():
            y[:] = np.nan
        prepared()
        for y, want in zip(outputs.values(), wanted, strict=True):
            np.testing.assert_allclose(y, want, atol=1e-4 * np.abs(want).max(), rtol=0)


@pytest.mark.slow
def test_known_sizes_agree_with_open_ones(shared_data: Path) -> None:
    """Kernels made for 128 tokens and kernels made for any number compute the same."""
    path = shared_data / "minilm/enc_sgpt_u50.onnx"
    fixed = sparsec.compile(path, shapes={"embeddings": (1, 128, 384), "attention_mask": (1, 128)})
    inputs = feeds(fixed, 1, seed=26)
    inputs["attention_mask"][0, 100:] = 0
    want = session_of(path).run(None, inputs)
    for program in (fixed, sparsec.compile(path)):
        np.testing.assert_allclose(program.run(None, inputs)[0], want[0], atol=1e-4 * np.abs(want[0]).max())


@pytest.mark.slow
def test_the_pruned_encoder_finds_its_zeros(shared_data: Path) -> None:
    path = shared_data / "minilm/enc_sgpt_u80.onnx"
    program = sparsec.compile(path, shapes={"embeddings": (1, 128, 384), "attention_mask": (1, 128)})
    layers = program.report["layers"]
    assert len(layers) == 36 and all(0.75 < layer["sparsity"] < 0.85 for layer in layers)
    assert all(layer["format"] != "dense" and layer["reason"] for layer in layers)
    # what was sparse stays sparse, with 16-bit positions beside the values
    assert sum(layer["bytes"] for layer in layers) < 0.5 * sum(layer["dense_bytes"] for layer in layers)

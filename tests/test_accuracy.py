"""Published networks on real images: compiled, they score what their authors and onnxruntime say."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tvm")

import sparsec  # noqa: E402

Array = np.ndarray[Any, Any]

#: images a call; the networks leave their batch open
BATCH = 100

#: network, means and deviations of the channels it was trained with, and how many of 100 it gets right
CIFAR = {
    "models/resnet_cifar_resnet20": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 94),
    "models/resnet_cifar_resnet32": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 92),
    "pruned/distiller_ssl_channel_regularized_resnet20_finetuned": ((0.5,) * 3, (0.5,) * 3, 93),
}


def idx(path: Path, header: int) -> Array:
    """The bytes of an MNIST file after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def mnist(folder: Path) -> tuple[Array, Array]:
    """The 10000 test images as float32 pixels / 256 [n, 1, 28, 28], and their labels."""
    images = idx(folder / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    return images.astype(np.float32) / 256, idx(folder / "t10k-labels-idx1-ubyte.gz", 8)


def cifar(folder: Path) -> tuple[Array, Array]:
    """100 test images as float32 [n, 3, 32, 32] from 0 to 1, and their labels."""
    table = np.loadtxt(folder / "cifar10_test.csv", delimiter=",", dtype=np.uint8)
    pixels = table[:, 1:].reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
    return pixels.astype(np.float32) / 255, table[:, 0]


def scores(program: sparsec.Program, images: Array) -> Array:
    """The network's output for all images, batch by batch."""
    [port] = program.inputs
    parts = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
    return np.concatenate([program.run(None, {port.name: part})[0] for part in parts])


def needed(folder: Path, *names: str) -> None:
    """Skip where a part of the data is missing."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        pytest.skip(f"shared/data has no {', '.join(missing)}")


@pytest.mark.slow
def test_lenet5_without_99_percent_of_its_weights_reads_mnist(shared_data: Path) -> None:
    needed(shared_data, "pruned/dns_lenet5_sparse", "datasets/mnist")
    images, labels = mnist(shared_data / "datasets/mnist")
    path = shared_data / "pruned/dns_lenet5_sparse/model.onnx"
    program = sparsec.compile(path, shapes={"x": (BATCH, 1, 28, 28)}, threads=2)
    layers = program.report["layers"]
    weights = sum(int(np.prod(layer["shape"])) for layer in layers)
    kept = sum((1 - layer["sparsity"]) * np.prod(layer["shape"]) for layer in layers)
    assert len(labels) == 10_000 and len(layers) == 4 and 1 - kept / weights > 0.99
    right = int((scores(program, images).argmax(axis=1) == labels).sum())
    assert right == 9909  # as published: 99.09 %


@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR)
def test_residual_networks_predict_what_onnxruntime_predicts(shared_data: Path, name: str) -> None:
    needed(shared_data, name, "datasets/cifar10_lossless100")
    means, deviations, expected = CIFAR[name]
    images, labels = cifar(shared_data / "datasets/cifar10_lossless100")
    images = (images - np.float32(means).reshape(3, 1, 1)) / np.float32(deviations).reshape(3, 1, 1)
    path = shared_data / name / "model.onnx"
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    [port] = session.get_inputs()
    want = session.run(None, {port.name: images})[0]
    got = scores(sparsec.compile(path, shapes={port.name: images.shape}, threads=2), images)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(), rtol=0)
    assert (got.argmax(axis=1) == want.argmax(axis=1)).all()
    assert int((got.argmax(axis=1) == labels).sum()) == expected

"""The models that are timed, and where they come from.

Networks made here have random normal weights, pruned by magnitude at the same rate in every
linear layer, and are written by torch's ONNX exporter, so that every engine reads what users'
files hold; for convolutional ones see convolutional.py.  The others are files of the shared data
folder beside the repository.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import convolutional
import numpy as np
from convolutional import Pruning

Arrays = dict[str, np.ndarray]

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


class Absent(Exception):
    """A workload's file is not on this machine."""


@dataclass(frozen=True)
class Workload:
    """A model and its inputs.

    ``write(folder)`` returns the path of an ONNX file; ``shapes`` fixes its dynamic dimensions.
    ``quick`` ones run under ``--quick``, ``optional`` ones only by name.
    """

    name: str
    about: str
    write: Callable[[Path], Path]
    inputs: Callable[[np.random.Generator], Arrays]
    shapes: dict[str, tuple[int, ...]] | None = None
    quick: bool = False
    optional: bool = False


def prune(module: Any, sparsity: float) -> None:
    """Set the smallest weights of every linear layer to zero, in place."""
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.data
            removed = round(sparsity * weight.numel())
            weight.view(-1)[weight.abs().flatten().argsort()[:removed]] = 0


def feed_forward() -> Any:
    """768-3072-768 with GELU: the feed-forward half of a BERT-base layer."""
    from torch import nn

    return nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))


def layer_norm_mlp() -> Any:
    """784-1024-1024-10 with layer norm and ReLU."""
    from torch import nn

    hidden = (nn.Linear(784, 1024), nn.LayerNorm(1024), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(1024, 1024), nn.LayerNorm(1024), nn.ReLU(), nn.Linear(1024, 10))


def exported(make: Callable[[], Any], rows: int, width: int, sparsity: float, path: Path) -> Path:
    """Write ``make()``, randomly initialised and pruned, as ONNX."""
    import torch

    torch.manual_seed(0)
    module = make().eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    prune(module, sparsity)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(rows, width),), path, dynamo=True, opset_version=18,
            external_data=False, verbose=False, input_names=["x"], output_names=["y"],
        )  # fmt: skip
    return path


def _made(
    name: str, about: str, make: Callable[[], Any], rows: int, width: int, sparsity: float, quick: bool
) -> Workload:
    return Workload(
        name,
        about,
        lambda folder: exported(make, rows, width, sparsity, folder / f"{name}.onnx"),
        lambda random: {"x": random.standard_normal((rows, width)).astype(np.float32)},
        quick=quick,
    )


def _feed_forward(tokens: int, percent: int, quick: bool = False) -> Workload:
    about = f"768-3072-768, GELU, {tokens} token{'s' if tokens > 1 else ''}, {percent} % unstructured"
    return _made(f"ffn_{tokens}_u{percent}", about, feed_forward, tokens, 768, percent / 100, quick)


def _mlp(batch: int, percent: int, quick: bool = False) -> Workload:
    about = f"MLP 784-1024-1024-10, layer norm, batch {batch}, {percent} % unstructured"
    return _made(f"mlp_{batch}_u{percent}", about, layer_norm_mlp, batch, 784, percent / 100, quick)


def _shared(*parts: str) -> Callable[[Path], Path]:
    def find(_: Path) -> Path:
        path = SHARED_DATA.joinpath(*parts)
        if not path.is_file():
            raise Absent("the shared data folder is not beside this clone")
        return path

    return find


def _encoder_inputs(random: np.random.Generator) -> Arrays:
    embeddings = random.standard_normal((1, 128, 384)).astype(np.float32)
    return {"embeddings": embeddings, "attention_mask": np.ones((1, 128), np.float32)}


def _convolutional(
    name: str, about: str, make: Callable[[], Any], shape: tuple[int, ...], pruning: Pruning, **flags: bool
) -> Workload:
    return Workload(
        name,
        about,
        lambda folder: convolutional.exported(make, shape, pruning, folder / f"{name}.onnx"),
        lambda random: {"x": random.standard_normal(shape).astype(np.float32)},
        **flags,
    )


def _resnet50(name: str, about: str, pruning: Pruning, batch: int = 1, **flags: bool) -> Workload:
    about = f"ResNet-50, batch {batch}, {about}"
    return _convolutional(name, about, convolutional.resnet50, (batch, 3, 224, 224), pruning, **flags)


def _layer_3x3(channels: int, side: int, quick: bool = False) -> Workload:
    about = f"3x3 convolution, {channels} channels, {side}x{side}, 90 % unstructured"
    shape = (1, channels, side, side)
    make = partial(convolutional.layer_3x3, channels)
    return _convolutional(f"conv_{channels}_{side}_u90", about, make, shape, Pruning(0.9), quick=quick)


def _policy(name: str, about: str, width: int) -> Workload:
    return Workload(
        f"mjx_{name}",
        f"{about}, dense, batch 1",
        _shared("models", f"mjx_{name}", "model.onnx"),
        lambda random: {"obs": random.standard_normal((1, width)).astype(np.float32)},
    )


WORKLOADS: tuple[Workload, ...] = (
    _feed_forward(128, 90, quick=True),
    _feed_forward(128, 80),
    _feed_forward(128, 95),
    _feed_forward(32, 90),
    _feed_forward(32, 80),
    _feed_forward(32, 95),
    _feed_forward(1, 90, quick=True),
    _feed_forward(1, 80),
    _feed_forward(1, 95),
    _mlp(1, 90, quick=True),
    _mlp(128, 90, quick=True),
    Workload(
        "minilm_u80",
        "MiniLM encoder, 1x128 tokens, 80 % unstructured",
        _shared("minilm", "enc_sgpt_u80.onnx"),
        _encoder_inputs,
        {"embeddings": (1, 128, 384), "attention_mask": (1, 128)},
    ),
    _policy("go1", "policy MLP, Go1 quadruped", 48),
    _policy("g1", "policy MLP, G1 humanoid", 103),
    _policy("leap", "policy MLP, LEAP hand", 57),
    _resnet50("resnet50_dense", "dense", Pruning(0.0)),
    _resnet50("resnet50_u80", "80 % unstructured", Pruning(0.80)),
    _resnet50("resnet50_u90", "90 % unstructured", Pruning(0.90)),
    _resnet50("resnet50_u95", "95 % unstructured", Pruning(0.95)),
    _resnet50("resnet50_b4x1_90", "90 % in blocks of 4 outputs", Pruning(0.90, outputs=4)),
    _resnet50("resnet50_16_dense", "dense", Pruning(0.0), batch=16, optional=True),
    _resnet50("resnet50_16_u90", "90 % unstructured", Pruning(0.90), batch=16, optional=True),
    _convolutional(
        "resnet18_u90",
        "ResNet-18, batch 1, 90 % unstructured",
        convolutional.resnet18,
        (1, 3, 224, 224),
        Pruning(0.90),
    ),
    _convolutional(
        "mobilenet_u90",
        "MobileNet-v1, batch 1, 1x1 convolutions 90 % unstructured",
        convolutional.mobilenet_v1,
        (1, 3, 224, 224),
        Pruning(0.90, only_1x1=True),
    ),
    Workload(
        "lenet5_64",
        "LeNet-5 by dynamic network surgery, batch 64, 99.1 % unstructured",
        _shared("pruned", "dns_lenet5_sparse", "model.onnx"),
        lambda random: {"x": random.random((64, 1, 28, 28), np.float32)},
        {"x": (64, 1, 28, 28)},
    ),
    _layer_3x3(64, 56),
    _layer_3x3(128, 28),
    _layer_3x3(256, 14, quick=True),
    _layer_3x3(512, 7),
)

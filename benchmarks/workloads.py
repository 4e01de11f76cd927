"""The models that are timed, and where they come from.

Networks of linear layers are made by networks.py and written by torch's ONNX exporter, so that
every engine reads what users' files hold; convolutional ones come from convolutional.py.  The
others are files of the shared data folder beside the repository.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import convolutional
import numpy as np
from convolutional import Pruning
from pruning import Sparsity

from sparsec.bench.engines import Absent

Arrays = dict[str, np.ndarray]

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@dataclass(frozen=True)
class Workload:
    """A model and its inputs.

    ``write(folder)`` returns the path of an ONNX file; ``shapes`` fixes its dynamic dimensions;
    ``module()`` is the same as a torch module, where there is one.  ``quick`` ones run under
    ``--quick``, ``optional`` ones only by name or group.
    """

    name: str
    about: str
    group: str
    write: Callable[[Path], Path]
    inputs: Callable[[np.random.Generator], Arrays]
    shapes: dict[str, tuple[int, ...]] | None = None
    module: Callable[[], Any] | None = None
    quick: bool = False
    optional: bool = False


def _normal(shapes: dict[str, tuple[int, ...]]) -> Callable[[np.random.Generator], Arrays]:
    return lambda random: {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def _network(
    name: str, about: str, group: str, kind: str, sparsity: Sparsity,
    shapes: dict[str, tuple[int, ...]], **flags: bool,
) -> Workload:  # fmt: skip
    """One of networks.NETWORKS."""

    def module() -> Any:
        import networks

        return networks.made(networks.NETWORKS[kind], sparsity)

    def write(folder: Path) -> Path:
        import networks

        return networks.exported(module(), shapes, folder / f"{name}.onnx")

    about = f"{about}, {sparsity.about}"
    return Workload(name, about, group, write, _normal(shapes), module=module, **flags)


def _feed_forward(tokens: int, sparsity: Sparsity, group: str = "linear", **flags: bool) -> Workload:
    about = f"768-3072-768, GELU, {tokens} token{'s' if tokens > 1 else ''}"
    name = f"ffn_{tokens}_{sparsity.short}"
    return _network(name, about, group, "ffn", sparsity, {"x": (tokens, 768)}, **flags)


def _mlp(batch: int, percent: int, **flags: bool) -> Workload:
    sparsity = Sparsity(percent)
    about = f"MLP 784-1024-1024-10, layer norm, batch {batch}"
    name = f"mlp_{batch}_{sparsity.short}"
    return _network(name, about, "mlp", "mlp", sparsity, {"x": (batch, 784)}, **flags)


def _bert(percent: int) -> Workload:
    sparsity = Sparsity(percent)
    shapes = {"embeddings": (1, 128, 768)}
    return _network(
        f"bert_{sparsity.short}", "BERT-base encoder, 1x128 tokens", "bert", "bert", sparsity, shapes
    )


def _llama(sparsity: Sparsity) -> Workload:
    about, shapes = "Llama block 2048/5632, 1 token", {"x": (1, 2048), "seen": (1, 2048)}
    return _network(f"llama_{sparsity.short}", about, "llama", "llama", sparsity, shapes)


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
        "convolution",
        lambda folder: convolutional.exported(make, shape, pruning, folder / f"{name}.onnx"),
        _normal({"x": shape}),
        module=lambda: convolutional.made(make, shape, pruning),
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
        "models",
        _shared("models", f"mjx_{name}", "model.onnx"),
        lambda random: {"obs": random.standard_normal((1, width)).astype(np.float32)},
    )


WORKLOADS: tuple[Workload, ...] = (
    _feed_forward(1, Sparsity(80)),
    _feed_forward(1, Sparsity(90), quick=True),
    _feed_forward(1, Sparsity(95)),
    _feed_forward(1, Sparsity()),
    _feed_forward(32, Sparsity(80)),
    _feed_forward(32, Sparsity(90)),
    _feed_forward(32, Sparsity(95)),
    _feed_forward(32, Sparsity()),
    _feed_forward(128, Sparsity(80)),
    _feed_forward(128, Sparsity(90), quick=True),
    _feed_forward(128, Sparsity(95)),
    _feed_forward(128, Sparsity()),
    _feed_forward(512, Sparsity(90)),
    _feed_forward(512, Sparsity()),
    _feed_forward(128, Sparsity(90, (4, 1)), "blocks"),
    _feed_forward(128, Sparsity(90, (16, 1)), "blocks"),
    _feed_forward(128, Sparsity(90, (4, 4)), "blocks"),
    _feed_forward(128, Sparsity(90, (16, 16)), "blocks", quick=True),
    _feed_forward(128, Sparsity(kept=(2, 4)), "nm", quick=True),
    _feed_forward(128, Sparsity(kept=(1, 4)), "nm"),
    _feed_forward(128, Sparsity(kept=(2, 8)), "nm"),
    *(_mlp(batch, percent, quick=percent == 90) for batch in (1, 128) for percent in (90, 98, 0)),
    *map(_bert, (80, 90, 0)),
    *map(_llama, (Sparsity(50), Sparsity(70), Sparsity(90), Sparsity(kept=(2, 4)), Sparsity())),
    Workload(
        "minilm_u80",
        "MiniLM encoder, 1x128 tokens, 80 % unstructured",
        "models",
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
    _resnet50("resnet50_f50", "half of the filters within blocks zero", Pruning(0.50, filters=True)),
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
        "models",
        _shared("pruned", "dns_lenet5_sparse", "model.onnx"),
        lambda random: {"x": random.random((64, 1, 28, 28), np.float32)},
        {"x": (64, 1, 28, 28)},
    ),
    _layer_3x3(64, 56),
    _layer_3x3(128, 28),
    _layer_3x3(256, 14, quick=True),
    _layer_3x3(512, 7),
)

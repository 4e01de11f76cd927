"""Whole AVX-512 artifacts, executed: by the C executor without Python, in the emulator.

One boot runs every model on every shape and thread count; onnxruntime says what should come out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_runs import RUNNER, executor_sources, kernels_of, outputs_of, record
from emulator import emulator

pytest.importorskip("tvm")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from numpy.typing import NDArray  # noqa: E402
from torch import nn  # noqa: E402

from sparsec.compiler import artifact  # noqa: E402
from sparsec.frontends import import_model  # noqa: E402
from sparsec.targets.several import joined  # noqa: E402
from sparsec.targets.target import Target  # noqa: E402
from sparsec.targets.x86 import AVX2, AVX512  # noqa: E402

Array = NDArray[Any]
# Bochs takes a gather or scatter indexed by zmm16 to zmm31, which LLVM makes of copies, for no instruction
TARGET = AVX512

REASON = emulator.available()
pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(REASON is not None, reason=f"emulated AVX-512 not run: {REASON}"),
]


class Attention(nn.Module):
    """Self-attention over eight heads with an additive mask."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Any, mask: Any) -> Any:
        batch, length, width = x.shape
        parts = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)
        return self.o(y.transpose(1, 2).reshape(batch, length, width))


class EncoderLayer(nn.Module):
    """A post-norm transformer layer with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.first, self.second = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Any, mask: Any) -> Any:
        x = self.norms[0](x + self.attention(x, mask))
        return self.norms[1](x + self.second(nn.functional.gelu(self.first(x))))


class Encoder(nn.Module):
    """Two layers; ``mask[batch, length]`` is 1 where a token counts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width) for _ in range(2))

    def forward(self, x: Any, mask: Any) -> Any:
        added = ((1 - mask) * -10000.0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, added)
        return x


class ResidualNetwork(nn.Module):
    """Convolutions of every kind, a shortcut, poolings, a skip through half the size and back, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.ReLU6())
        self.points = nn.Conv2d(24, 24, 1)
        self.last = nn.Sequential(
            nn.Conv2d(48, 40, 3, 2, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(40, 10)

    def forward(self, x: Any) -> Any:
        wide = self.stem(x)
        small = self.pool(wide)
        small = nn.functional.relu(small + self.points(self.depthwise(small)))
        back = nn.functional.interpolate(small, scale_factor=2, mode="nearest")
        return self.head(self.last(torch.cat((wide, back), 1)))


def unstructured(weight: Any, density: float = 0.1) -> Any:
    """Keeps the largest weights."""
    kept = torch.zeros(weight.numel())
    kept[weight.abs().flatten().argsort(descending=True)[: round(density * weight.numel())]] = 1
    return weight * kept.view_as(weight)


def two_of_four(weight: Any) -> Any:
    """Keeps the two largest of every four neighbours along the inputs."""
    groups = weight.view(weight.shape[0], -1, 4)
    kept = groups.abs().argsort(dim=-1).argsort(dim=-1) >= 2
    return (groups * kept).view_as(weight)


def blocks(weight: Any) -> Any:
    """Keeps an eighth of the blocks of 16 outputs by one input."""
    kept = (torch.rand(weight.shape[0] // 16, weight.shape[1]) < 0.125).repeat_interleave(16, dim=0)
    return weight * kept


def linear_stack(*prune: Callable[[Any], Any] | None) -> nn.Module:
    """256-512-...-256 with GELU, one pruning per linear layer; None leaves it dense."""
    widths = [256, *[512] * (len(prune) - 1), 256]
    layers: list[nn.Module] = []
    for inner, outer, one in zip(widths[:-1], widths[1:], prune, strict=True):
        layers += [pruned(nn.Linear(inner, outer), one), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def pruned(module: nn.Module, one: Callable[[Any], Any] | None = unstructured) -> nn.Module:
    """The module with the weights of every layer but the depthwise ones pruned in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and getattr(layer, "groups", 1) == 1 and one is not None:
            layer.weight.data = one(layer.weight.data)
    return module


def layer_norm_mlp() -> nn.Module:
    """196-256-256-10 with layer norm and ReLU, nine tenths of it zeros."""
    hidden = (nn.Linear(196, 256), nn.LayerNorm(256), nn.ReLU())
    return pruned(
        nn.Sequential(*hidden, nn.Linear(256, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 10))
    )


@dataclass(frozen=True)
class Case:
    """A model, the inputs it is compiled for, and kernels that must be among its steps.

    ``without`` takes kernels off the target, so that others are chosen.  With several targets the
    executor finds the code for AVX-512 the most capable and runs that.
    """

    make: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[int, ...]]
    kernels: frozenset[str]
    threads: int = 1
    free: bool = False  # the first axis stays a name
    without: frozenset[str] = frozenset()
    targets: tuple[Target, ...] = (TARGET,)

    @property
    def target(self) -> Target:
        """The target the case is compiled for, or several of them joined."""
        kernels = tuple(k for k in TARGET.kernels if k.name not in self.without)
        return joined([replace(target, kernels=kernels) for target in self.targets])


#: packings made for vectors of 8 lanes, read in 16 where they can be; and the other way round
NARROW_FIRST, WIDE_FIRST = (AVX2, TARGET), (TARGET, AVX2)

CASES: dict[str, Case] = {
    "mlp, batch 1": Case(layer_norm_mlp, {"x": (1, 196)}, frozenset({"lookup_gemv", "layer_norm"})),
    "mlp, batch 33": Case(layer_norm_mlp, {"x": (33, 196)}, frozenset({"csr_spmm", "layer_norm"})),
    "mlp, batch free": Case(layer_norm_mlp, {"x": (7, 196)}, frozenset({"csr_spmm"}), 2, free=True),
    "encoder": Case(
        lambda: pruned(Encoder(128)), {"x": (1, 40, 128), "mask": (1, 40)},
        frozenset({"attention", "layer_norm", "csr_spmm"}), 2,
    ),
    "2:4 and dense, 70 tokens": Case(
        lambda: linear_stack(two_of_four, None), {"x": (70, 256)}, frozenset({"nm_spmm", "dense_gemm"}), 2,
        without=frozenset({"bsr_spmm", "csr_spmm"}),
    ),
    "blocks and unstructured, 70 tokens": Case(
        lambda: linear_stack(blocks, unstructured), {"x": (70, 256)}, frozenset({"bsr_spmm", "csr_spmm"}),
    ),
    "blocks, dense and 2:4, 1 token": Case(
        lambda: linear_stack(blocks, None, two_of_four), {"x": (1, 256)},
        frozenset({"dense_gemv", "lookup_gemv"}),
    ),
    "nearly all zero, without lookups, 1 token": Case(
        lambda: linear_stack(*[lambda w: unstructured(w, 0.02)] * 2), {"x": (1, 256)},
        frozenset({"csr_gemv"}), 2, without=frozenset({"lookup_gemv"}),
    ),
    "residual network": Case(
        ResidualNetwork, {"x": (1, 3, 32, 32)}, frozenset({"dense_conv", "depthwise", "pool", "resize"}), 2,
    ),
    "residual network, pruned, two images": Case(
        lambda: pruned(ResidualNetwork()), {"x": (2, 3, 36, 28)},
        frozenset({"csr_conv", "depthwise", "pool", "resize"}),
    ),
    "two codes: mlp, batch 1": Case(
        layer_norm_mlp, {"x": (1, 196)}, frozenset({"lookup_gemv"}), targets=NARROW_FIRST,
    ),
    "two codes: encoder": Case(
        lambda: pruned(Encoder(128)), {"x": (1, 40, 128), "mask": (1, 40)},
        frozenset({"attention", "layer_norm", "csr_spmm"}), 2, targets=NARROW_FIRST,
    ),
    "two codes: 2:4, blocks and dense, 70 tokens": Case(
        lambda: linear_stack(two_of_four, blocks, None), {"x": (70, 256)},
        frozenset({"nm_spmm", "bsr_spmm", "dense_gemm"}), 2, without=frozenset({"csr_spmm"}),
        targets=WIDE_FIRST,
    ),
    "two codes: residual network, pruned": Case(
        lambda: pruned(ResidualNetwork()), {"x": (1, 3, 36, 28)}, frozenset({"csr_conv", "depthwise"}), 2,
        targets=NARROW_FIRST,
    ),
}  # fmt: skip


def _export(case: Case, path: Path) -> None:
    torch.manual_seed(5)
    module = case.make().eval()
    given = tuple(torch.zeros(*shape) for shape in case.inputs.values())
    free = tuple({0: torch.export.Dim("batch")} for _ in given) if case.free else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, given, path, dynamo=True, opset_version=18, external_data=False, verbose=False,
            input_names=list(case.inputs), output_names=["y"], dynamic_shapes=free,
        )  # fmt: skip


def _feeds(case: Case) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    feeds = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in case.inputs.items()}
    if "mask" in feeds:
        feeds["mask"] = (rng.random(feeds["mask"].shape) < 0.7).astype(np.float32)
    return feeds


def _program(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The executor without Python, and the shared libraries it needs, by their own paths."""
    program = folder / "program"
    command = ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program)]
    # the models' code needs libm; loaded with the program it is found where nothing is configured
    libraries = ["-Wl,--no-as-needed", "-lm", "-ldl", "-pthread"]
    subprocess.run([*command, str(RUNNER), *map(str, executor_sources()), *libraries], check=True)
    listed = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    paths = [Path(word) for word in listed.split() if word.startswith("/")]
    return program, {str(p).lstrip("/"): p for p in paths}


@dataclass(frozen=True)
class Result:
    """What came out, what should have, and which kernels ran."""

    given: Array
    expected: Array
    kernels: frozenset[str]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """All cases, from one boot."""
    folder = tmp_path_factory.mktemp("artifacts")
    files: dict[str, Path | bytes] = {}
    records, expected, kernels = b"", [], []
    for index, case in enumerate(CASES.values()):
        path = folder / f"{index}.onnx"
        _export(case, path)
        data = artifact(import_model(path, None), case.target)
        feeds = _feeds(case)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        expected.append(session.run(None, feeds)[0])
        kernels.append(kernels_of(data))
        files[f"model{index}.sparsec"] = data
        records += record(index, case.threads, feeds)
    program, libraries = _program(folder)
    raw = emulator.run(program, {**files, **libraries, "cases.bin": records})
    given = outputs_of(raw, [y.ndim for y in expected])
    return dict(zip(CASES, map(Result, given, expected, kernels), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_avx512_artifact_agrees_with_onnxruntime(name: str, results: dict[str, Result]) -> None:
    result = results[name]
    assert CASES[name].kernels <= result.kernels
    assert result.given.shape == result.expected.shape
    scale = np.abs(result.expected).max()
    np.testing.assert_allclose(result.given, result.expected, rtol=0, atol=1e-4 * scale)

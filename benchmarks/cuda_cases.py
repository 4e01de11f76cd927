"""What the CUDA benchmark runs: layers and networks as torch modules, and what they are compared with.

Imported where programs are compiled and where they run.  Weights are made from a seed in both places and
pruned alike, so that only plans and code have to travel; the digest of each tells whether both made the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import cuda_runtime  # noqa: F401  (before what imports sparsec)
import networks
import numpy as np
import torch
from pruning import Sparsity
from torch import nn

#: bytes that inputs and weights of one turn cover at least: more than any L2
ROTATED_BYTES = 1 << 30


@dataclass(frozen=True)
class Case:
    """One row of the table, or one test.

    Attributes:
        name: of the row, and of its file.
        module: makes the dense module; its linear layers and convolutions are pruned.
        inputs: shapes of the inputs.
        dtype: of values and weights: float16, bfloat16 or float32.
        sparsity: what becomes of its weights.
        kernels: of sparsec, one program each, forced; empty: the one program of the compiler's own choice.
        peers: names in ``cuda_peers``; "dense" is always among them.
        bar: for people: what the row is held to.
        rotate: programs with weights of their own that take turns, so that no cache keeps them.
        calls: of each engine in one replayed graph.
        small: checked by tests, and under compute-sanitizer, and never timed.
    """

    name: str
    module: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    dtype: str
    sparsity: Sparsity
    kernels: tuple[str, ...] = ()
    peers: tuple[str, ...] = ("dense",)
    bar: str = ""
    rotate: int = 1
    calls: int = 20
    small: bool = False
    #: agreement with float64 wanted: of the largest output
    tolerance: float = field(default=5e-3)


def pruned(case: Case) -> nn.Module:
    """The module with seeded, pruned weights, float32."""
    torch.manual_seed(0)
    module = case.module().eval()
    random = np.random.default_rng(0)
    for layer in weighted(module).values():
        made = random.standard_normal(layer.weight.shape, np.float32)
        layer.weight.data = torch.from_numpy(made) * layer.weight[0].numel() ** -0.5
        if case.sparsity.percent or case.sparsity.kept:
            layer.weight.data *= _mask(layer.weight.data, case.sparsity)
    return module


def weighted(module: nn.Module) -> dict[str, Any]:
    """Linear layers and convolutions by their names."""
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def digest(weight: torch.Tensor) -> str:
    """Tells whether two places made the same weight."""
    return hashlib.sha256(weight.detach().contiguous().numpy().tobytes()).hexdigest()[:16]


def _mask(weight: torch.Tensor, sparsity: Sparsity) -> torch.Tensor:
    """Ones for what stays; large unstructured weights are cut at the quantile of their distribution."""
    flat = weight.reshape(len(weight), -1)
    if sparsity.block == (1, 1) and not sparsity.kept:
        cut = NormalDist().inv_cdf(0.5 + sparsity.percent / 200) * flat.shape[1] ** -0.5
        return (weight.abs() > cut).to(weight.dtype)
    return torch.from_numpy(sparsity.mask(flat.numpy())).reshape(weight.shape).to(weight.dtype)


def _linear(rows: int, inner: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inner, rows, bias=False)


def _convolution(channels: int, outputs: int, window: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(channels, outputs, window, padding=window // 2, bias=False)


def _blocks(side: int, percent: int = 90) -> Sparsity:
    return Sparsity(percent, (side, side))


def _layer(
    name: str, size: tuple[int, int, int], dtype: str, sparsity: Sparsity, kernels: tuple[str, ...],
    peers: tuple[str, ...] = ("dense",), bar: str = "", **more: Any,
) -> Case:  # fmt: skip
    """A linear layer: outputs, inputs, columns."""
    rows, inner, columns = size
    return Case(name, _linear(rows, inner), ((columns, inner),), dtype, sparsity, kernels, peers, bar, **more)


def _image(name: str, channels: int, side: int, window: int, images: int, percent: int, dtype: str) -> Case:
    shape = ((images, channels, side, side),)
    module = _convolution(channels, channels, window)
    return Case(name, module, shape, dtype, Sparsity(percent), ("csr_conv", "dense_conv"))


_SQUARE = (4096, 4096, 4096)

CASES: tuple[Case, ...] = (
    _layer("2of4_4096_bf16", _SQUARE, "bfloat16", Sparsity(kept=(2, 4)), ("nm_spmm", "dense_gemm"),
           ("dense", "cusparselt"), "0.9x cuSPARSELt (must), 1.3x dense", rotate=2),
    _layer("2of4_4096_fp16", _SQUARE, "float16", Sparsity(kept=(2, 4)), ("nm_spmm",),
           ("dense", "cusparselt"), "0.9x cuSPARSELt, 1.3x dense", rotate=2),
    _layer("blocks64_4096_fp16", _SQUARE, "float16", _blocks(64), ("bsr_spmm",), bar="4x dense", rotate=2),
    _layer("blocks32_4096_fp16", _SQUARE, "float16", _blocks(32), ("bsr_spmm",), bar="2x dense", rotate=2),
    _layer("blocks16_4096_fp16", _SQUARE, "float16", _blocks(16), ("bsr_spmm",), rotate=2),
    _layer("u90_256_fp16", (4096, 4096, 256), "float16", Sparsity(90), ("csr_spmm", "bitmask_spmm"),
           ("dense", "cusparse"), "3x cuSPARSE", rotate=8),
    _layer("u90_16_fp16", (4096, 4096, 16), "float16", Sparsity(90),
           ("bitmask_spmm", "bitmask_gemv", "csr_spmm"), ("dense", "cusparse"), "1.3x dense", rotate=32),
    _layer("u90_256_fp32", (4096, 4096, 256), "float32", Sparsity(90), ("csr_spmm", "dense_gemm"),
           ("dense", "cusparse"), rotate=8, tolerance=1e-4),
    _layer("u50_1_fp16_large", (8192, 28672, 1), "float16", Sparsity(50), ("bitmask_gemv", "dense_gemv"),
           bar="1.5x dense", rotate=5),
    _layer("u90_1_fp16_large", (8192, 28672, 1), "float16", Sparsity(90), ("bitmask_gemv",), bar="4x dense",
           rotate=12),
    _layer("1of4_4096_fp16", (4096, 4096, 2048), "float16", Sparsity(kept=(1, 4)), ("nm_spmm",), rotate=2),
    _image("conv3x3_256_u90_fp16", 256, 14, 3, 32, 90, "float16"),
    _image("conv3x3_64_u90_fp16", 64, 56, 3, 32, 90, "float16"),
    _image("conv1x1_1024_u90_fp16", 1024, 14, 1, 32, 90, "float16"),
    _image("conv3x3_256_u90_fp32", 256, 14, 3, 32, 90, "float32"),
    Case("bert_2of4_fp16", networks.encoder, ((32, 128, 768),), "float16", Sparsity(kept=(2, 4)), (),
         ("dense", "compiled"), "not slower than torch.compile dense", calls=2, tolerance=2e-2),
)  # fmt: skip

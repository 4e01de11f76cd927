"""Small cases for tests on a GPU: every kernel on ragged sizes, every kind of operator, in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import cuda_runtime  # noqa: F401  (before what imports sparsec)
import networks
import torch
from cuda_cases import Case
from pruning import Sparsity
from torch import Tensor, nn

_TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
_HALVES = ("float16", "bfloat16")
_ALL = ("float32", *_HALVES)
_NONE, _TWO_OF_FOUR = Sparsity(), Sparsity(kept=(2, 4))


class Residual(nn.Module):
    """A layer with bias whose result is added to its input: the longest epilogue."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x) + x)


class Attention(nn.Module):
    """Scaled dot-product attention with a mask for the keys."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        split = [x.view(*x.shape[:2], self.heads, -1).permute(0, 2, 1, 3) for x in (q, k, v)]
        scores = torch.matmul(split[0], split[1].transpose(-1, -2)) * split[0].shape[-1] ** -0.5
        seen = torch.matmul(torch.softmax(scores, dim=-1), split[2])
        return seen.permute(0, 2, 1, 3).reshape(q.shape)


class Moves(nn.Module):
    """Transposes, slices, concatenation, padding, reductions and a softmax over a middle axis."""

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.cat([x[:, 1:, ::2], x[:, :-1, 1::2]], dim=2).permute(2, 0, 1)
        padded = nn.functional.pad(turned, (1, 2, 0, 1), value=0.5)
        return (
            torch.softmax(padded, dim=1) + padded.mean(dim=0, keepdim=True) + padded.amax(dim=2, keepdim=True)
        )


class Recurrent(nn.Module):
    """An LSTM's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


def _linears(
    kernel: str, sparsity: Sparsity, dtypes: tuple[str, ...], sizes: tuple[tuple[int, int, int], ...]
) -> list[Case]:
    """Linear layers of outputs, inputs, columns, with bias and GELU."""
    return [
        Case(
            f"{kernel}_{sparsity.short}_{rows}x{inner}x{columns}_{dtype}", partial(_linear, rows, inner),
            ((columns, inner),), dtype, sparsity, (kernel,), small=True, tolerance=_TOLERANCES[dtype],
        )
        for rows, inner, columns in sizes
        for dtype in dtypes
    ]  # fmt: skip


def _linear(rows: int, inner: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inner, rows), nn.GELU())


def _modules(
    name: str, make: Callable[[], nn.Module], *inputs: tuple[int, ...], sparsity: Sparsity = _NONE
) -> list[Case]:
    """A module, with the compiler's own choice of kernels, in every dtype."""
    one = Case(name, make, inputs, "float32", sparsity, small=True, tolerance=1e-4)
    return [replace(one, name=f"{name}_{d}", dtype=d, tolerance=_TOLERANCES[d]) for d in _ALL]


def _convolutions(kernel: str, window: int, stride: int, sparsity: Sparsity) -> list[Case]:
    """A convolution with bias and ReLU, in every dtype."""
    return [
        Case(
            f"{kernel}_{window}x{window}_{stride}_{dtype}", partial(_convolution, window, stride),
            ((3, 24, 15, 13),), dtype, sparsity, (kernel,), small=True, tolerance=_TOLERANCES[dtype],
        )
        for dtype in _ALL
    ]  # fmt: skip


def _convolution(window: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(24, 40, window, stride, padding=window // 2), nn.ReLU())


def _residual_images() -> nn.Module:
    return Residual(nn.Conv2d(16, 16, 3, padding=1))


def _depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(20, 20, 3, 2, 1, groups=20), nn.ReLU6())


SMALL: tuple[Case, ...] = (
    *_linears("dense_gemm", _NONE, _ALL, ((136, 72, 100), (37, 53, 7))),
    *_linears("dense_gemv", _NONE, _ALL, ((136, 256, 1), (64, 128, 5))),
    *_linears("nm_spmm", Sparsity(kept=(2, 4)), _HALVES, ((160, 192, 100), (64, 64, 3))),
    *_linears("nm_spmm", Sparsity(kept=(1, 4)), _HALVES, ((128, 128, 33),)),
    *_linears("bsr_spmm", Sparsity(75, (16, 16)), _HALVES, ((128, 192, 70),)),
    *_linears("bsr_spmm", Sparsity(75, (32, 32)), _HALVES, ((128, 192, 70),)),
    *_linears("bsr_spmm", Sparsity(75, (64, 64)), _HALVES, ((256, 256, 70),)),
    *_linears("csr_spmm", Sparsity(90), _ALL, ((136, 200, 70), (61, 67, 3))),
    *_linears("bitmask_spmm", Sparsity(80), _HALVES, ((160, 256, 40),)),
    *_linears("bitmask_gemv", Sparsity(60), _HALVES, ((136, 256, 1), (128, 512, 9))),
    *_linears("bitmask_gemv", Sparsity(92), _ALL, ((136, 256, 1), (128, 512, 3))),
    *_convolutions("dense_conv", 3, 1, _NONE), *_convolutions("dense_conv", 1, 2, _NONE),
    *_convolutions("csr_conv", 3, 1, Sparsity(85)), *_convolutions("csr_conv", 1, 1, Sparsity(85)),
    *_modules("residual", lambda: Residual(nn.Linear(96, 96)), (50, 96), sparsity=Sparsity(80)),
    *_modules("residual_images", _residual_images, (2, 16, 9, 11), sparsity=Sparsity(80)),
    *_modules("depthwise", _depthwise, (2, 20, 15, 17)),
    *_modules("pools", lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)), (2, 6, 19, 17)),
    *_modules("layer_norm", lambda: nn.Sequential(nn.LayerNorm(100), nn.SiLU()), (7, 100)),
    *_modules("attention", lambda: Attention(2), (2, 70, 128), (2, 45, 128), (2, 45, 128)),
    *_modules("attention_48", lambda: Attention(3), (1, 33, 144), (1, 20, 144), (1, 20, 144)),
    *_modules("moves", Moves, (3, 9, 20)),
    *_modules("recurrent", Recurrent, (6, 3, 24)),
    *_modules("encoder", partial(networks.encoder, 2, 128, 256, 4), (2, 40, 128), sparsity=_TWO_OF_FOUR),
    *_modules("mlp", networks.layer_norm_mlp, (5, 784), sparsity=Sparsity(90)),
)  # fmt: skip

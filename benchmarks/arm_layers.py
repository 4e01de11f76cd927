"""The layers and kernels that arm_static.py predicts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from conv_cases import Layer, layer, make_conv_case, problem_of
from kernel_cases import blocks_of_rows, groups_of_inputs, unstructured
from kernel_harness import Case, make_case

from sparsec.sparsity.pattern import infer
from sparsec.targets.kernels import (
    bsr_conv,
    bsr_spmm,
    csr_conv,
    csr_gemv,
    csr_spmm,
    dense_conv,
    dense_gemm,
    dense_gemv,
    lookup_gemv,
    nm_conv,
)
from sparsec.targets.target import Problem, Target

SPARSITIES = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Layers:
    """A layer's size: a convolution, or linear for some tokens."""

    about: str
    dense: ModuleType
    conv: Layer | None = None
    rows: int = 0
    inner: int = 0
    tokens: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        return (self.conv.rows, self.conv.inner) if self.conv else (self.rows, self.inner)

    @property
    def columns(self) -> int:
        """Products that a weight takes part in."""
        return self.conv.geometry.positions if self.conv else self.tokens

    def problem(self, target: Target) -> Problem:
        """As a kernel sees it."""
        if self.conv:
            return problem_of(self.conv)
        return Problem(*self.shape, self.tokens, 4 * target.lanes if self.tokens > 4 else 0)


LAYERS = {
    "conv1x1_56": Layers("1x1, 256 to 64, 56x56", dense_conv, layer(64, 256, (56, 56))),
    "conv1x1_28": Layers("1x1, 512 to 128, 28x28", dense_conv, layer(128, 512, (28, 28))),
    "conv1x1_14": Layers("1x1, 1024 to 256, 14x14", dense_conv, layer(256, 1024, (14, 14))),
    "conv3x3_28": Layers(
        "3x3, 128 to 128, 28x28", dense_conv, layer(128, 128, (28, 28), (3, 3), padding=(1, 1, 1, 1))
    ),
    "linear_128": Layers("linear, 768 to 3072, 128 tokens", dense_gemm, None, 3072, 768, 128),
    "linear_1": Layers("linear, 768 to 3072, 1 token", dense_gemv, None, 3072, 768, 1),
}

#: a weight of so many rows and columns, that share of it zero
Pruned = Callable[[int, int, float], Any]


def pruned(rows: int, inner: int, sparsity: float) -> Any:
    """Zeros anywhere."""
    return unstructured(rows, inner, 1 - sparsity)


def _blocks(height: int) -> Pruned:
    return lambda rows, inner, sparsity: blocks_of_rows(rows, inner, 1 - sparsity, height)


def _groups(rows: int, inner: int, sparsity: float) -> Any:
    """One of every M inputs, or two of four."""
    n, m = (2, 4) if sparsity == 0.5 else (1, round(1 / (1 - sparsity)))
    return groups_of_inputs(rows, inner, n, m)


@dataclass(frozen=True)
class Row:
    """A kernel on layers pruned to its liking."""

    layer: str
    kernel: ModuleType
    pattern: str
    prune: Pruned
    sparsities: tuple[float, ...] = SPARSITIES


ROWS = (
    *(Row(name, csr_conv, "unstructured", pruned) for name in list(LAYERS)[:4]),
    Row("conv1x1_28", bsr_conv, "blocks 4x1", _blocks(4)),
    Row("conv1x1_28", bsr_conv, "blocks 16x1", _blocks(16)),
    Row("conv1x1_28", nm_conv, "N:M", _groups, (0.5, 0.75, 0.875)),
    Row("linear_128", csr_spmm, "unstructured", pruned),
    Row("linear_128", bsr_spmm, "blocks 4x1", _blocks(4)),
    Row("linear_128", bsr_spmm, "blocks 16x1", _blocks(16)),
    Row("linear_1", lookup_gemv, "unstructured", pruned),
    Row("linear_1", csr_gemv, "unstructured", pruned),
)


def case_of(kernel: ModuleType, one: Layers, weight: Any, target: Target) -> Case | None:
    """The layer at the settings predicted best; None where the kernel does not take it."""
    pattern = infer(weight)
    problem = one.problem(target)
    if not kernel.accepts(problem, pattern, target):
        return None
    configs = kernel.space(problem, pattern, target)
    config = min(configs, key=lambda c: kernel.predict(problem, pattern, c, target))
    if one.conv:
        return make_conv_case(kernel, one.conv, weight, target, config)
    return make_case(kernel, weight, one.tokens, problem.panel, target, config)

"""Every kernel alone on one core, under pytest-benchmark.

    python -m pytest benchmarks/test_kernels_benchmark.py
    python -m pytest benchmarks/test_kernels_benchmark.py --benchmark-json=new.json
    python -m pytest benchmarks/test_kernels_benchmark.py \\
        --benchmark-compare=benchmarks/results/kernels-<cpu>.json --benchmark-compare-fail=median:15%

Layers are those of the feed-forward benchmark; each is checked against float64 NumPy before it is
timed.  ``gflops`` counts useful operations only: two for each nonzero and token.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import tvm
from kernel_cases import blocks_of_rows, groups_of_inputs, unstructured
from kernel_harness import Case, aligned, entry_of, make_case

from sparsec.sparsity.pattern import infer
from sparsec.targets.kernels import (
    bitmask_gemv,
    bsr_spmm,
    csr_gemv,
    csr_spmm,
    dense_gemm,
    dense_gemv,
    lookup_gemv,
    nm_spmm,
)
from sparsec.targets.target import Problem
from sparsec.targets.x86 import native

ROWS, INNER = 768, 3072
TARGET = native()
PANEL = 4 * TARGET.lanes


@dataclass(frozen=True)
class Layer:
    """A kernel, the weight it runs and the number of tokens."""

    name: str
    kernel: ModuleType
    weight: Callable[[], Any]
    tokens: int
    epilogue: str = "none"


LAYERS = (
    Layer("csr_spmm_u80", csr_spmm, lambda: unstructured(ROWS, INNER, 0.20), 128),
    Layer("csr_spmm_u90", csr_spmm, lambda: unstructured(ROWS, INNER, 0.10), 128),
    Layer("csr_spmm_u95", csr_spmm, lambda: unstructured(ROWS, INNER, 0.05), 128),
    Layer("csr_spmm_u90_gelu", csr_spmm, lambda: unstructured(ROWS, INNER, 0.10), 128, "gelu"),
    Layer("bsr_spmm_4x1_90", bsr_spmm, lambda: blocks_of_rows(ROWS, INNER, 0.10, 4), 128),
    Layer("bsr_spmm_16x1_90", bsr_spmm, lambda: blocks_of_rows(ROWS, INNER, 0.10, 16), 128),
    Layer("nm_spmm_2:4", nm_spmm, lambda: groups_of_inputs(ROWS, INNER, 2, 4), 128),
    Layer("nm_spmm_1:8", nm_spmm, lambda: groups_of_inputs(ROWS, INNER, 1, 8), 128),
    Layer("dense_gemm", dense_gemm, lambda: unstructured(ROWS, INNER, 1.0), 128),
    Layer("dense_gemm_gelu", dense_gemm, lambda: unstructured(ROWS, INNER, 1.0), 128, "gelu"),
    Layer("lookup_gemv_u50", lookup_gemv, lambda: unstructured(ROWS, INNER, 0.50), 1),
    Layer("lookup_gemv_u90", lookup_gemv, lambda: unstructured(ROWS, INNER, 0.10), 1),
    Layer("bitmask_gemv_u50", bitmask_gemv, lambda: unstructured(ROWS, INNER, 0.50), 1),
    Layer("csr_gemv_u90", csr_gemv, lambda: unstructured(ROWS, INNER, 0.10), 1),
    Layer("csr_gemv_u98", csr_gemv, lambda: unstructured(ROWS, INNER, 0.02), 1),
    Layer("dense_gemv", dense_gemv, lambda: unstructured(ROWS, INNER, 1.0), 1),
)


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Nothing moves while it is timed."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


def prepared(layer: Layer) -> Case:
    """The layer packed with its kernel's first configuration."""
    weight = layer.weight()
    panel = PANEL if layer.tokens > 4 else 0
    pattern, problem = infer(weight), Problem(ROWS, INNER, layer.tokens, panel)
    assert layer.kernel.accepts(problem, pattern, TARGET)
    config = layer.kernel.space(problem, pattern, TARGET)[0]
    return make_case(layer.kernel, weight, layer.tokens, panel, TARGET, config, layer.epilogue)


def bound(case: Case) -> tuple[Callable[[], None], Any]:
    """A call without arguments, and the output it writes."""
    entry = entry_of(case)
    y = aligned(np.full(case.shape, np.nan, np.float32))
    buffers = [*(aligned(a) for a in case.inputs), y]
    scratch = tvm.runtime.tensor(np.zeros(max(16, case.scratch_floats), np.float32))
    pointers = [ctypes.c_void_p(b.ctypes.data) for b in buffers]

    def call(_held: Any = buffers) -> None:
        entry(scratch, *pointers, 0, case.tiles)

    return call, y


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_kernel(layer: Layer, benchmark: Any) -> None:
    case = prepared(layer)
    call, y = bound(case)
    call()
    case.check(y)
    benchmark.group = "one token" if layer.tokens == 1 else f"{layer.tokens} tokens"
    benchmark.extra_info["target"] = TARGET.name
    benchmark(call)
    if benchmark.stats is not None:  # absent under --benchmark-disable
        operations = 2 * infer(layer.weight()).nonzeros * layer.tokens
        benchmark.extra_info["gflops"] = round(operations / benchmark.stats.stats.median / 1e9, 1)

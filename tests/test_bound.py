"""Sizes: the bound, who exceeds it and is named, and that no sparse packing is larger than the weight."""

from __future__ import annotations

import io
from math import log2
from typing import Any

import numpy as np
import pytest
from kernel_cases import blocks_of_rows, groups_of_inputs, skewed, uneven, unstructured
from rich.console import Console

from sparsec.explain.report import report_of
from sparsec.explain.summary import totals_of
from sparsec.explain.text import ranges, render
from sparsec.ir.graph import Graph
from sparsec.passes.assign_layouts import assign_layouts
from sparsec.passes.choose_format import candidates, choose_format, stores_all
from sparsec.passes.infer_patterns import infer_patterns
from sparsec.passes.pack import pack
from sparsec.sparsity.bound import LIMITS, bound_bytes, times_bound, traded
from sparsec.sparsity.pattern import infer
from sparsec.targets.target import Problem, Target
from sparsec.targets.x86 import AVX2, AVX512

from .graph_build import Build
from .report_cases import layer


def test_the_bound_is_values_and_entropy() -> None:
    assert bound_bytes(800, 0) == 0 and bound_bytes(0, 0) == 0
    assert bound_bytes(800, 800) == 3200, "a full mask says nothing"
    assert bound_bytes(800, 400) == 1600 + 100, "half of a mask of even odds: a bit an element"
    entropy = -0.1 * log2(0.1) - 0.9 * log2(0.9)
    assert bound_bytes(8_000_000, 800_000) == 3_200_000 + round(1_000_000 * entropy)
    rng = np.random.default_rng(0)
    mask = np.packbits(rng.random(1 << 20) < 0.1).tobytes()
    import lzma

    assert bound_bytes(1 << 20, 0) < bound_bytes(1 << 20, 104_858) - 4 * 104_858 < len(lzma.compress(mask))


def test_who_is_named() -> None:
    assert LIMITS == {"linear": 1.15, "convolution": 1.35}
    for kind, size, named in [
        ("linear", 115, False), ("linear", 116, True), ("take", 400, False),
        ("convolution", 135, False), ("convolution", 136, True),
    ]:  # fmt: skip
        one = layer("n", "csr_spmm", {}, kind=kind, bytes=size, bound_bytes=100)
        assert times_bound(one) == size / 100 and (
            traded(one) == size / 100 if named else traded(one) is None
        )
    assert traded(layer("n", "csr_spmm", {}, kind="linear")) is None


def shown(layers: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    render({"layers": layers}, Console(file=text, width=200))
    return text.getvalue()


def test_explain_names_them_by_kernel() -> None:
    sizes = (
        (130, "csr_spmm"),
        (142, "csr_spmm"),
        (100, "dense_gemm"),
        (136, "csr_spmm"),
        (300, "lookup_gemv"),
    )
    layers = [
        layer(f"n{i}", kernel, {}, kind="linear", bytes=size, bound_bytes=100, dense_bytes=500)
        for i, (size, kernel) in enumerate(sizes)
    ]
    text = shown(layers)
    assert "csr_spmm: layers 1-2, 4 trade size for speed: 1.30x to 1.42x of the bound for such zeros" in text
    assert "lookup_gemv: layer 5 trades size for speed: 3.00x of the bound" in text
    assert "dense_gemm:" not in text.split("why")[1].split("5 layers")[1]
    assert "weights 808 B, dense they would be 2.44 KB, the bound is 500 B" in text
    assert totals_of({"layers": layers}).bound_bytes == 500
    assert "the bound" not in shown([*layers[2:3], layer("old", "csr_spmm", {})]), "an older file has none"
    assert ranges([]) == "" and ranges([3]) == "3" and ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"


def one_layer(weight: Any, tokens: int) -> Graph:
    b = Build()
    x = b.input(tokens, weight.shape[1])
    return b.graph(b.matmul(x, b.const(np.ascontiguousarray(weight.T))))


WEIGHTS = {
    "unstructured": lambda rows, inner, density: unstructured(rows, inner, density),
    "blocks": lambda rows, inner, density: blocks_of_rows(rows, inner, density, 4),
    "2:4": lambda rows, inner, density: groups_of_inputs(rows, inner, 2, 4),
    "skewed": lambda rows, inner, density: skewed(rows, inner),
    "uneven": lambda rows, inner, density: uneven(rows, inner),
}


@pytest.mark.parametrize("target", [AVX2, AVX512], ids=lambda t: t.name)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_no_sparse_packing_is_larger_than_the_weight(kind: str, target: Target) -> None:
    sparse = 0
    for rows, inner in ((1, 1), (3, 5), (7, 64), (24, 24), (33, 96), (160, 120)):
        for density in (0.02, 0.6, 0.9):
            for tokens in (1, 33):
                graph = one_layer(WEIGHTS[kind](rows, inner, density), tokens)
                for one in (infer_patterns, assign_layouts, choose_format, pack):
                    graph = one(graph, target)
                [entry] = report_of(graph, None, target)["layers"]
                if entry["format"] != "dense":
                    sparse += 1
                    assert entry["bytes"] <= entry["dense_bytes"], (
                        rows,
                        inner,
                        density,
                        tokens,
                        entry["kernel"],
                    )
                    assert entry["bound_bytes"] <= 1.01 * entry["bytes"] or kind != "unstructured"
    assert sparse > 5, "nothing was tried"


def test_larger_packings_are_dropped_though_they_are_faster() -> None:
    """A table of 8 KB beside 4 KB of weights: predicted fast, but not small."""
    problem, weight = Problem(32, 32, 1, 0), unstructured(32, 32, 0.5)
    found = candidates(problem, infer(weight), AVX2)
    kernels = {kernel.name for _, kernel, _ in found}
    assert "bitmask_gemv" not in kernels and "dense_gemv" in kernels
    for candidate, kernel, config in found:
        assert stores_all(kernel, config) or candidate.nbytes <= 1.1 * weight.nbytes

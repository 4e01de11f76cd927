"""CUDA reductions, interpreted, against the reference in double precision; their machine code."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from device_runs import DTYPES, assert_right, calls_of, functions, graph_of, random
from sass import TARGETS, needs_nvcc, needs_sass, sass

from sparsec.ir.attributes import ReduceAttrs
from sparsec.ir.dims import symbol
from sparsec.ir.graph import Graph, Op
from sparsec.ir.types import Type
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.build import kernel_cubin

KINDS = ("sum", "mean", "max", "min")
#: shapes and axes: rows, columns, both, all, none worth the name, long rows, few long columns
CASES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((5, 7), (1,)), ((5, 7), (0,)), ((3, 4, 5), (0, 2)), ((3, 4, 5), (1,)), ((2, 3, 4, 6), (1, 3)),
    ((6, 49), (1,)), ((70, 8), (0, 1)), ((3, 1, 5), (1,)), ((2, 5003), (1,)), ((300, 24), (0,)),
    ((1, 1), (0, 1)), ((130, 2, 33), (0, 2)), ((4, 3, 128), (2,)),
)  # fmt: skip


def reduction(
    shape: tuple[Any, ...], axes: tuple[int, ...], kind: str, dtype: str = "float32", keepdims: bool = False,
    result: str = "",
) -> Graph:  # fmt: skip
    left = [1 if i in axes else s for i, s in enumerate(shape) if keepdims or i not in axes]
    attrs = ReduceAttrs(kind, axes, keepdims)
    return graph_of(Op.REDUCE, {"x": Type(shape, dtype)}, Type(tuple(left), result or dtype), attrs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape,axes", CASES)
def test_reductions(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str) -> None:
    for i, kind in enumerate(KINDS):
        assert_right(reduction(shape, axes, kind, dtype, keepdims=bool(i % 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_few_results_are_made_in_two_kernels(kind: str) -> None:
    """Of rows, of columns, of everything; shares of unlike length."""
    for shape, axes in (((40_007,), (0,)), ((60_000, 3), (0,)), ((20_001, 2, 2), (0, 2))):
        for dtype in ("float32", "float16"):
            graph = reduction(shape, axes, kind, dtype)
            assert len(calls_of(graph)[0]) == 2
            assert_right(graph)


def test_sums_of_many_halves_are_exact_enough() -> None:
    graph = reduction((1 << 17,), (0,), "mean", "float16")
    assert_right(graph, {"x": np.full(1 << 17, 0.1, np.float16)}, tolerance=5e-4)


def test_sizes_that_the_run_tells() -> None:
    n, m = symbol("n"), symbol("m")
    shapes: tuple[tuple[tuple[Any, ...], tuple[int, ...]], ...] = (
        ((n, m), (1,)), ((n, m), (0,)), ((n, 4, m), (1,)), ((n, 4, m, 2), (0, 2)), ((2, m, n), (1, 2)),
    )  # fmt: skip
    for (shape, axes), kind in product(shapes, ("mean", "max")):
        assert_right(reduction(shape, axes, kind, "float16"), bindings={"n": 5, "m": 300})


def test_nothing_to_reduce() -> None:
    """As NumPy: sums are 0, means no numbers."""
    n = symbol("n")
    for kind in ("sum", "mean"):
        assert_right(reduction((n, 4), (0,), kind), bindings={"n": 0})
        assert_right(reduction((4, n), (1,), kind), bindings={"n": 0})


def test_a_nan_is_the_largest_and_the_smallest() -> None:
    x = random((64, 130), "float32")
    x[3, 7] = x[60, 129] = np.nan
    x[5] = -np.inf
    for kind, axis in product(("max", "min"), (0, 1)):
        assert_right(reduction((64, 130), (axis,), kind), {"x": x})


def test_another_dtype_of_the_result() -> None:
    assert_right(reduction((9, 64), (1,), "sum", "float16", result="float32"))


@needs_nvcc
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_compiles(target: Any) -> None:
    for graph in (reduction((5, 700), (1,), "max", "bfloat16"), reduction((60_000, 3), (0,), "mean")):
        for function in functions(graph, target):
            assert kernel_cubin(function, target)[:4] == b"\x7fELF"


@needs_sass
@pytest.mark.parametrize("axis", [0, 1])
def test_memory_is_read_in_whole_vectors(axis: int) -> None:
    (function,) = functions(reduction((1024, 1024), (axis,), "sum", "float16"), gpus.SM80)[:1]
    code = sass(function, gpus.SM80)
    assert code.count(r"LDG\.E\.128") == code.count("LDG") > 0
    assert code.local_accesses == 0 and code.registers <= 64

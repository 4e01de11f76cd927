"""CUDA layer_norm, rms_norm and softmax, interpreted, against double precision; their machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from device_runs import DTYPES, assert_right, functions, graph_of, interpreted, random
from sass import TARGETS, needs_nvcc, needs_sass, sass

from sparsec.ir.attributes import LayerNormAttrs, SoftmaxAttrs
from sparsec.ir.dims import symbol
from sparsec.ir.graph import Graph, Op
from sparsec.ir.types import Type
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.build import kernel_cubin

#: rows x features: a part of a warp, a warp, odd, a block, and more than a block holds
ROWS = ((3, 7), (1, 1), (5, 768), (2, 1025), (1, 4096), (1, 20000), (2, 40000), (2, 32771))


def norm(shape: tuple[Any, ...], dtype: str, centred: bool, features: int, weights: str = "") -> Graph:
    given: dict[str, Any] = {"x": Type(shape, dtype), "gamma": random((features,), weights or dtype, 5)}
    if centred:
        given["beta"] = random((features,), weights or dtype, 6)
    return graph_of(Op.LAYER_NORM, given, Type(shape, dtype), LayerNormAttrs(1e-5, centred))


def softmax(shape: tuple[Any, ...], dtype: str, axis: int, log: bool = False) -> Graph:
    return graph_of(Op.SOFTMAX, {"x": Type(shape, dtype)}, Type(shape, dtype), SoftmaxAttrs(axis, log))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
def test_norms(shape: tuple[int, int], dtype: str) -> None:
    for centred in (True, False):
        assert_right(norm(shape, dtype, centred, shape[-1]))


def test_a_norm_of_numbers_far_from_zero() -> None:
    """The variance is of differences, not a difference of squares."""
    graph = norm((3, 256), "float32", True, 256)
    x = random((3, 256), "float32") * np.float32(0.01) + np.float32(1000)
    assert_right(graph, {"x": x}, tolerance=2e-2)
    assert interpreted(graph, {"x": np.full((3, 256), 7, np.float32)})["y"] == pytest.approx(
        np.broadcast_to(graph.consts["beta"], (3, 256)), abs=1e-4
    )


def test_a_norm_with_weights_of_another_dtype() -> None:
    assert_right(norm((4, 96), "float16", True, 96, "float32"))


def test_rows_and_features_that_the_run_tells() -> None:
    rows = symbol("n")
    for count in (1, 6):
        assert_right(norm((rows, 2, 48), "float16", True, 48), bindings={"n": count})
        assert_right(softmax((rows, symbol("m")), "float32", 1), bindings={"n": count, "m": 333})
        assert_right(softmax((rows, symbol("m"), 5), "float32", 1), bindings={"n": count, "m": 7})
        assert_right(softmax((3, 20, rows), "float16", 1), bindings={"n": count})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
def test_softmax(shape: tuple[int, int], dtype: str) -> None:
    for log in (False, True):
        assert_right(softmax(shape, dtype, 1, log))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape,axis", [((2, 5, 3), 0), ((3, 40, 7), 1), ((2, 19, 64), 1), ((1, 300, 2, 4), 1)]
)
def test_softmax_along_an_outer_axis(shape: tuple[int, ...], axis: int, dtype: str) -> None:
    for log in (False, True):
        assert_right(softmax(shape, dtype, axis, log))


@pytest.mark.parametrize("shape,axis", [((6, 40), 1), ((40, 6), 0), ((6, 40000), 1)])
def test_softmax_of_extreme_numbers(shape: tuple[int, ...], axis: int) -> None:
    """Large numbers do not overflow; infinities and NaN give what NumPy gives."""
    x = np.moveaxis(random((6, shape[axis]), "float32"), 0, 1 - axis).copy()
    lines = np.moveaxis(x, 1 - axis, 0)
    lines[0] *= 1e30
    lines[1, :3] = -np.inf
    lines[2] = -np.inf
    lines[3, 5] = np.inf
    lines[4, 7] = np.nan
    lines[5] = 88.0
    assert_right(softmax(shape, "float32", axis), {"x": x})


@needs_nvcc
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_compiles(target: Any) -> None:
    for graph in (norm((4, 768), "bfloat16", True, 768), softmax((4, 8, 16), "float32", 1, True)):
        for function in functions(graph, target):
            assert kernel_cubin(function, target)[:4] == b"\x7fELF"


@needs_sass
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_row_is_read_once_in_whole_vectors(dtype: str) -> None:
    reads = 768 // 32 // (4 if dtype == "float32" else 8)
    for graph, arrays in ((norm((64, 768), dtype, True, 768), 3), (softmax((64, 768), dtype, 1), 1)):
        (function,) = functions(graph, gpus.SM90A)
        code = sass(function, gpus.SM90A)
        assert code.count(r"LDG\.E\.128") == arrays * reads
        assert code.count(r"STG\.E\.128") == reads
        assert code.count("LDG") == arrays * reads and code.count("STG") == reads
        assert code.count("BAR") == 0, "a warp has a row for itself"
        assert code.local_accesses == 0 and code.registers <= 128

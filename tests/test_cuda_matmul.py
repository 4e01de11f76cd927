"""CUDA products of run-time tensors, interpreted, against double precision; their machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from device_runs import DTYPES, assert_right, calls_of, functions, graph_of, poison, random_inputs
from sass import TARGETS, needs_nvcc, needs_sass, sass

from sparsec.errors import Unsupported
from sparsec.ir.attributes import MatmulAttrs
from sparsec.ir.dims import symbol
from sparsec.ir.expr import Arg, relu
from sparsec.ir.graph import Graph, Op
from sparsec.ir.types import Type
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.build import kernel_cubin
from sparsec.targets.cuda.interpreter.run import run
from sparsec.targets.cuda.kernels import matmul as kernel

#: whole tiles, rows of whole vectors, of a few elements, odd, one row, one column, one of everything
SIZES = (
    (64, 64, 64), (70, 40, 72), (33, 36, 20), (17, 14, 6), (5, 7, 3), (1, 64, 48), (40, 33, 1), (1, 1, 1),
    (9, 200, 130),
)  # fmt: skip
#: every tile, and numbers of rows and columns that choose it
TILES = (((130, 24, 136), 200, 0), ((60, 72, 60), 200, 1), ((40, 24, 40), 1, 2), ((3, 72, 72), 1, 3))


def product(
    a: tuple[Any, ...], b: tuple[Any, ...], y: tuple[Any, ...], dtype: str, epilogue: Any = None
) -> Graph:
    given = {"a": Type(a, dtype), "b": Type(b, dtype)}
    return graph_of(Op.MATMUL, given, Type(y, dtype), MatmulAttrs(epilogue))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows,inner,columns", SIZES)
def test_sizes(rows: int, inner: int, columns: int, dtype: str) -> None:
    assert_right(product((2, rows, inner), (2, inner, columns), (2, rows, columns), dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("sizes,batches,tile", TILES)
def test_tiles(sizes: tuple[int, int, int], batches: int, tile: int, dtype: str) -> None:
    """The tile that many batches have, for one of them."""
    rows, inner, columns = sizes
    shape = kernel.Shape(inner, columns, ((True, True),), dtype)
    tiling = kernel.choose(shape, batches, rows, columns, 108)
    assert tiling == (kernel.FLOAT_TILINGS if dtype == "float32" else kernel.TILINGS)[tile]
    graph = product((1, rows, inner), (1, inner, columns), (1, rows, columns), dtype)
    feeds = random_inputs(graph)
    y = poison(rows * columns, dtype)
    blocks = -(-rows // tiling.rows) * -(-columns // tiling.columns)
    arguments = [feeds["a"].reshape(-1), feeds["b"].reshape(-1), y, rows, inner, columns, 1]
    run(kernel.emit(shape, tiling, "matmul"), blocks, arguments)
    want = feeds["a"][0].astype(np.float64) @ feeds["b"][0].astype(np.float64)
    limit = (1e-6 if dtype == "float32" else 1e-3) * np.abs(want).max()
    assert np.abs(y.reshape(rows, columns) - want).max() <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "a,b,y",
    [
        ((5, 9), (9, 4), (5, 4)), ((3, 5, 9), (9, 4), (3, 5, 4)), ((5, 9), (3, 9, 4), (3, 5, 4)),
        ((2, 1, 5, 9), (1, 3, 9, 4), (2, 3, 5, 4)), ((2, 3, 5, 9), (3, 9, 4), (2, 3, 5, 4)),
        ((4, 1, 2, 5, 9), (3, 1, 9, 4), (4, 3, 2, 5, 4)),
    ],
)  # fmt: skip
def test_batches_that_broadcast(
    a: tuple[int, ...], b: tuple[int, ...], y: tuple[int, ...], dtype: str
) -> None:
    assert_right(product(a, b, y, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors(dtype: str) -> None:
    """On the left a row, on the right a column."""
    for a, b, y in (((9,), (9, 4), (4,)), ((5, 9), (9,), (5,)), ((9,), (9,), ()), ((9,), (2, 9, 4), (2, 4))):
        assert_right(product(a, b, y, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sizes_that_the_run_tells(dtype: str) -> None:
    n, m = symbol("n"), symbol("m")
    for bound in ({"n": 3, "m": 70}, {"n": 1, "m": 1}):
        assert_right(product((n, m, 16), (n, 16, m), (n, m, m), dtype), bindings=bound)
        assert_right(product((n, 1, m, m), (1, 2, m, 24), (n, 2, m, 24), dtype), bindings=bound)


def test_an_inner_size_of_nothing() -> None:
    assert_right(product((3, symbol("n")), (symbol("n"), 5), (3, 5), "float32"), bindings={"n": 0})


def test_refusals() -> None:
    with pytest.raises(Unsupported, match="fused"):
        calls_of(product((5, 9), (9, 4), (5, 4), "float32", relu(Arg(0))))


def test_other_dtypes_are_left_over() -> None:
    graph = graph_of(
        Op.MATMUL,
        {"a": Type((3, 4), "int64"), "b": Type((4, 5), "int64")},
        Type((3, 5), "int64"),
        MatmulAttrs(),
    )
    rng = np.random.default_rng(0)
    assert_right(graph, {n.name: rng.integers(-9, 9, n.type.shape) for n in graph.inputs}, tolerance=0.0)


@needs_nvcc
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_compiles(target: Any) -> None:
    n = symbol("n")
    for dtype in ("bfloat16", "float32"):
        (function,) = functions(product((5, 20, n), (1, n, 7), (5, 20, 7), dtype), target)
        assert kernel_cubin(function, target)[:4] == b"\x7fELF"


@needs_sass
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_machine_code(dtype: str) -> None:
    (function,) = functions(product((16, 512, 512), (16, 512, 512), (16, 512, 512), dtype), gpus.SM80)
    code = sass(function, gpus.SM80)
    assert code.count(r"LDGSTS\.E.*\.128") == code.count("LDGSTS") > 0
    assert code.count("STG") == code.count(r"STG\.E\.128") > 0
    if dtype == "float16":
        assert code.count(r"HMMA\.16816\.F32") == 4 * 8 * 2, "a step of 32 of a 64 x 64 part"
        assert code.count(r"LDSM\.16\.MT88") > 0, "b's rows are lines of K"
    else:
        assert code.count("FFMA") >= 64 * 16
    assert code.local_accesses == 0

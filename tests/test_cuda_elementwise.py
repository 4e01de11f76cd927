"""elementwise on a GPU: every function, broadcasting, casts, vectors; interpreted, against float64 NumPy."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sparsec.ir.expr import FUNCTIONS, Arg, Call, Scalar, call, gelu, relu
from sparsec.reference.expr import evaluate_expr
from sparsec.targets.cuda.interpreter.run import run
from sparsec.targets.cuda.kernels.elementwise import THREADS, Shape, emit
from sparsec.targets.kernels.elementwise import merge

from .sass import TARGETS, needs_sass, sass

KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 30.0, -30.0, np.inf, -np.inf, np.nan, 1e-6], np.float32)


def computed(expr: Any, arrays: list[Any], result: tuple[int, ...], dtype: str = "float32") -> Any:
    """What the kernel makes of arrays, its output poisoned beforehand."""
    shape = Shape(expr, merge(result, [a.shape for a in arrays]), (*(a.dtype.name for a in arrays), dtype))
    y = np.full(result, np.nan, KINDS[dtype])
    blocks = -(-y.size // (THREADS * shape.vector))
    run(
        emit(shape, "elementwise"),
        blocks,
        [*(a.reshape(-1) for a in arrays), y.reshape(-1), *shape.merged.axes],
    )
    return y


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_functions(function: str) -> None:
    """On numbers, infinities and NaN."""
    rng = np.random.default_rng()
    pairs = np.stack(np.meshgrid(EDGES, EDGES), axis=-1).reshape(-1, 2)
    drawn = rng.standard_normal((4000, 2), np.float32) * 3
    columns = np.concatenate([pairs, drawn]).T
    count = FUNCTIONS[function]
    operands = [np.ascontiguousarray(c) for c in (columns[0], columns[1], columns[1] * 2)[:count]]
    if function in ("log", "sqrt", "rsqrt", "pow"):
        operands[0] = np.abs(operands[0])
    expr = call(function, *(Arg(i) for i in range(count)))
    found = computed(expr, operands, operands[0].shape)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        wanted = evaluate_expr(expr, [x.astype(np.float64) for x in operands], np.dtype(np.float64))
        # what float32 cannot hold is infinite in both
        wanted = wanted.astype(np.float32)
    if function in ("sin", "cos", "pow"):
        finite = np.isfinite(wanted) & np.isfinite(operands[0])
        found, wanted = found[finite], wanted[finite]
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=5e-7)


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize(
    ("result", "shapes"),
    [
        ((8, 16, 64), [(8, 16, 64), (64,), (8, 1, 1)]),
        ((5, 7), [(5, 7), (1,), (7,)]),
        ((3, 12), [(3, 1), (12,), (3, 12)]),
        ((1, 1), [(1, 1), (1,), (1, 1)]),
        ((2, 300, 6), [(300, 1), (2, 300, 6), (2, 1, 6)]),
    ],
    ids=str,
)
def test_broadcasting(result: tuple[int, ...], shapes: list[tuple[int, ...]], dtype: str) -> None:
    rng = np.random.default_rng()
    arrays = [rng.standard_normal(s).astype(KINDS[dtype]) for s in shapes]
    expr = call("add", gelu(Arg(0)), relu(call("mul", Arg(1), Arg(2))))
    wanted = evaluate_expr(expr, [a.astype(np.float64) for a in arrays], np.dtype(np.float64))
    found = computed(expr, arrays, result, dtype).astype(np.float64)
    tolerance = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(found, np.broadcast_to(wanted, result), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("to", sorted(KINDS))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_casts(kind: str, to: str) -> None:
    """To nearest, ties to even, as NumPy does."""
    x = (np.random.default_rng().standard_normal(1000) * 100).astype(KINDS[kind])
    found = computed(Arg(0), [x], (1000,), to)
    np.testing.assert_array_equal(found, x.astype(np.float32).astype(KINDS[to]))


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_memory_is_read_in_whole_vectors(target: Any) -> None:
    merged = merge((64, 64), [(64, 64), (64,)])
    shape = Shape(call("add", gelu(Arg(0)), Arg(1)), merged, ("float16",) * 3)
    found = sass(emit(shape, "elementwise"), target)
    assert found.count(r"LDG\.E\.128") == 2 and found.count(r"STG\.E\.128") == 1
    assert found.local_accesses == 0 and found.registers <= 64


def test_a_shared_subtree_is_computed_once() -> None:
    """Else a chain of n squares would be 2 ** n multiplications."""
    expr: Any = Arg(0)
    for _ in range(30):
        expr = Call("mul", (Call("add", (expr, Scalar(0.0))), Call("sub", (expr, Scalar(0.0)))))
    x = np.ones(10, np.float32)
    np.testing.assert_array_equal(computed(expr, [x], (10,)), x)

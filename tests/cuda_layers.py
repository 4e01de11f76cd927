"""Runs CUDA kernels of linear layers through the interpreter, beside float64 NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from sparsec.ir.expr import Arg, Expr, call, gelu, relu
from sparsec.reference.expr import evaluate_expr
from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.interpreter.run import run
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

DTYPES: Mapping[str, Any] = {
    "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
}  # fmt: skip
#: half the distance from 1 to the next number
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer with numbers: ``y = epilogue(x @ weight.T, *extras)``."""

    problem: Problem
    weight: Any
    x: Any
    extras: tuple[Any, ...]

    @property
    def exact(self) -> Any:
        """y in float64, and for each element what rounding may make of it."""
        x, w = self.x.astype(np.float64), self.weight.astype(np.float64)
        product, size = x @ w.T, np.abs(x) @ np.abs(w).T
        y = product
        extras = [e.astype(np.float64) for e in self.extras]
        if self.problem.epilogue is not None:
            y = evaluate_expr(self.problem.epilogue, [product, *extras], np.float64)
        size = size + sum(np.abs(e) for e in extras)
        return y, 1e-6 * size + 1.01 * ROUNDING[self.problem.dtype] * np.abs(y) + 1e-7


EPILOGUES: Mapping[str, tuple[Expr | None, tuple[str, ...]]] = {
    "none": (None, ()),
    "bias_relu": (relu(call("add", Arg(0), Arg(1))), ("row",)),
    "bias_gelu_residual": (call("add", gelu(call("add", Arg(0), Arg(1))), Arg(2)), ("row", "full")),
    "scale": (call("mul", Arg(0), Arg(1)), ("one",)),
}


def layer(
    weight: Any, tokens: int, dtype: str, epilogue: str = "none", run_time: bool = False, seed: int = 0
) -> Layer:
    """A layer with fresh random x and extras."""
    rng = np.random.default_rng([seed, tokens, *weight.shape])
    rows, inner = weight.shape
    expr, kinds = EPILOGUES[epilogue]
    shapes = {"row": (rows,), "full": (tokens, rows), "one": (1,)}
    made = DTYPES[dtype]
    extras = tuple(rng.standard_normal(shapes[kind]).astype(made) for kind in kinds)
    x = rng.standard_normal((tokens, inner)).astype(made)
    problem = Problem(rows, inner, None if run_time else tokens, 0, expr, kinds, dtype)
    return Layer(problem, weight.astype(made), x, extras)


def run_layer(kernel: Any, one: Layer, config: Mapping[str, int], target: Target = gpus.SM80) -> Any:
    """What a kernel makes of a layer; y is full of NaN before."""
    packing = kernel.pack(one.weight, one.problem, config, target)
    bare = Packing({}, 0, packing.config)
    function = kernel.emit(one.problem, bare, target, "kernel")
    sizes = Sizes()
    tokens = len(one.x)
    blocks = sizes.constant(kernel.grid(one.problem, bare, sizes, sizes.of(tokens)))
    assert blocks is not None
    y = np.full(tokens * one.problem.rows, np.nan, one.x.dtype)
    arrays = [one.x, *packing.arrays.values(), *one.extras]
    arguments = [np.ascontiguousarray(a).reshape(-1).copy() for a in arrays]
    run(function, blocks, [*arguments, y, *([tokens] if one.problem.columns is None else [])])
    for array, argument in zip(arrays, arguments, strict=True):
        np.testing.assert_array_equal(
            argument.view(np.uint8), np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        )
    return y.reshape(tokens, one.problem.rows)


def check_layer(kernel: Any, one: Layer, config: Mapping[str, int], target: Target = gpus.SM80) -> None:
    """A kernel accepts a layer and computes it as exactly as its dtype allows."""
    pattern = infer(one.weight.astype(np.float32))
    assert kernel.accepts(one.problem, pattern, target)
    made = run_layer(kernel, one, config, target).astype(np.float64)
    exact, allowed = one.exact
    worst = np.abs(made - exact) / allowed
    assert np.all(worst <= 1), (
        f"{worst.max()} times what rounding allows, at {np.unravel_index(worst.argmax(), worst.shape)}"
    )

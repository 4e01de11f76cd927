"""Runs CUDA kernels of convolutions through the interpreter, beside float64 NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from conv_cases import Layer, convolve
from cuda_layers import DTYPES, EPILOGUES, ROUNDING

from sparsec.reference.expr import evaluate_expr
from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.interpreter.run import run
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution with numbers."""

    layer: Layer
    problem: Problem
    weight: Any
    x: Any
    extras: tuple[Any, ...]

    @property
    def exact(self) -> tuple[Any, Any]:
        """y in float64, and for each element what rounding may make of it."""
        g = self.layer.geometry
        product = convolve(g, self.weight, self.x)
        size = convolve(g, np.abs(self.weight), np.abs(self.x))
        extras = [e.astype(np.float64) for e in self.extras]
        y = product
        if self.problem.epilogue is not None:
            y = evaluate_expr(self.problem.epilogue, [product, *extras], np.float64)
        size = size + sum(np.abs(e) for e in extras)
        return y, 1e-6 * size + 1.01 * ROUNDING[self.problem.dtype] * np.abs(y) + 1e-7


def convolution(
    layer: Layer, weight: Any, dtype: str, epilogue: str = "none", run_time: bool = False
) -> Convolution:
    """A layer's ``weight[M, R*S*C]`` with fresh random x and extras; ``run_time``: its images are a size."""
    g, made = layer.geometry, DTYPES[dtype]
    count = g.images or 1
    rng = np.random.default_rng([count, *weight.shape])
    expr, kinds = EPILOGUES[epilogue]
    shapes = {"row": (layer.rows, 1, 1), "full": (count, layer.rows, g.out_height, g.out_width), "one": (1,)}
    extras = tuple(rng.standard_normal(shapes[kind]).astype(made) for kind in kinds)
    x = rng.standard_normal((count, g.groups * g.channels, g.height, g.width)).astype(made)
    told = replace(g, images=None if run_time else count)
    columns = None if run_time else count * g.positions
    problem = Problem(layer.rows, layer.inner, columns, 0, expr, kinds, dtype, told)
    return Convolution(layer, problem, weight.astype(made), x, extras)


def run_convolution(
    kernel: Any, one: Convolution, config: Mapping[str, int], target: Target = gpus.SM80
) -> Any:
    """What a kernel makes of a layer; y is full of NaN before."""
    g, problem = one.layer.geometry, one.problem
    packing = kernel.pack(one.weight, problem, config, target)
    bare = Packing({}, 0, packing.config)
    function = kernel.emit(problem, bare, target, "kernel")
    sizes, images = Sizes(), len(one.x)
    blocks = sizes.constant(kernel.grid(problem, bare, sizes, sizes.of(images)))
    assert blocks is not None
    shape = (images, one.layer.rows, g.out_height, g.out_width)
    y = np.full(shape, np.nan, one.x.dtype).reshape(-1)
    arrays = [one.x, *packing.arrays.values(), *one.extras]
    arguments = [np.ascontiguousarray(a).reshape(-1).copy() for a in arrays]
    run(function, blocks, [*arguments, y, *([images] if problem.columns is None else [])])
    for array, argument in zip(arrays, arguments, strict=True):
        before = np.ascontiguousarray(array).reshape(-1)
        np.testing.assert_array_equal(argument.view(np.uint8), before.view(np.uint8))
    return y.reshape(shape)


def check_convolution(
    kernel: Any, one: Convolution, config: Mapping[str, int], target: Target = gpus.SM80
) -> None:
    """A kernel accepts a layer and computes it as exactly as its dtype allows."""
    assert kernel.accepts(one.problem, infer(one.weight.astype(np.float32)), target)
    made = run_convolution(kernel, one, config, target).astype(np.float64)
    exact, allowed = one.exact
    worst = np.abs(made - exact) / allowed
    assert np.all(worst <= 1), (
        f"{np.nanmax(worst)} times what rounding allows, {np.count_nonzero(~(worst <= 1))} of {worst.size} "
        f"elements, first {np.argwhere(~(worst <= 1))[0]}"
    )

"""Runs CUDA kernels of depthwise convolutions and pooling through the interpreter, beside float64 NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from cuda_layers import DTYPES, EPILOGUES, ROUNDING
from stencil_cases import Layer

from sparsec.reference.expr import evaluate_expr
from sparsec.targets.cuda.interpreter.run import run
from sparsec.targets.cuda.kernels import depthwise, pool
from sparsec.targets.cuda.kernels.pool import Pooling
from sparsec.targets.cuda.parts import strips
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Problem


def _images(layer: Layer, dtype: str) -> Any:
    rng = np.random.default_rng([layer.channels, layer.height, layer.width])
    shape = (layer.images, layer.channels, layer.height, layer.width)
    return rng.standard_normal(shape).astype(DTYPES[dtype])


def _blocks(sizes: Sizes, expression: int) -> int:
    blocks = sizes.constant(expression)
    assert blocks is not None
    return blocks


def _compare(made: Any, exact: Any, allowed: Any) -> None:
    infinite = np.isinf(exact)
    np.testing.assert_array_equal(made[infinite], exact[infinite])
    worst = (
        np.abs(made[~infinite].astype(np.float64) - exact[~infinite])
        / np.broadcast_to(allowed, exact.shape)[~infinite]
    )
    assert np.all(worst <= 1), f"{np.nanmax(worst)} times what rounding allows"


def check_depthwise(
    layer: Layer, dtype: str, epilogue: str = "none", multiplier: int = 1, down: int | None = None
) -> None:
    """A depthwise layer of random weights; ``down`` rows a strip, as many as the kernel chooses if None."""
    g, rows = layer.geometry, layer.channels * multiplier
    rng = np.random.default_rng([rows, g.taps])
    made, (expr, kinds) = DTYPES[dtype], EPILOGUES[epilogue]
    x, w = _images(layer, dtype), rng.standard_normal((rows, 1, *layer.kernel)).astype(made)
    shapes = {"row": (rows, 1, 1), "full": (layer.images, rows, g.out_height, g.out_width), "one": (1,)}
    extras = [rng.standard_normal(shapes[kind]).astype(made) for kind in kinds]

    windows = np.repeat(layer.windows(x.astype(np.float64), 0.0), multiplier, axis=1)
    taps = w.astype(np.float64)[:, 0]
    exact = product = np.einsum("nchwrs,crs->nchw", windows, taps)
    wide = [e.astype(np.float64) for e in extras]
    if expr is not None:
        exact = evaluate_expr(expr, [product, *wide], np.float64)
    size = np.einsum("nchwrs,crs->nchw", np.abs(windows), np.abs(taps)) + sum(np.abs(e) for e in wide)

    conv = replace(g, images=None)
    problem = Problem(rows, g.taps, None, 0, expr, kinds, dtype, conv)
    cut = strips.choose(conv, rows) if down is None else strips.Strips(conv, rows, down)
    sizes = Sizes()
    y = np.full(exact.size, np.nan, made)
    arguments = [x.reshape(-1).copy(), w.reshape(-1), *(e.reshape(-1) for e in extras), y, layer.images]
    blocks = _blocks(sizes, depthwise.grid(cut, sizes, sizes.of(layer.images)))
    run(depthwise.emit(problem, cut.down, "kernel"), blocks, arguments)
    _compare(y.reshape(exact.shape), exact, 1e-6 * size + 1.01 * ROUNDING[dtype] * np.abs(exact) + 1e-7)


def check_pool(
    layer: Layer, dtype: str, kind: str, count_padding: bool = False, down: int | None = None
) -> None:
    """A max or mean; a mean may count the padding."""
    g, x = layer.geometry, _images(layer, dtype)
    counted = layer.padding if count_padding else (0, 0, 0, 0)
    rows = strips.choose(g, layer.channels).down if down is None else down
    pooling = Pooling(kind, replace(g, images=None), dtype, rows, counted)
    windows = layer.windows(x.astype(np.float64), -np.inf if kind == "max" else 0.0)
    exact = (
        windows.max(axis=(4, 5))
        if kind == "max"
        else windows.sum(axis=(4, 5)) / _counts(layer, count_padding)
    )
    sizes = Sizes()
    y = np.full(exact.size, np.nan, x.dtype)
    blocks = _blocks(sizes, pool.grid(pooling, sizes, sizes.of(layer.images)))
    run(pool.emit(pooling, "kernel"), blocks, [x.reshape(-1).copy(), y, layer.images])
    allowed = 0.0 if kind == "max" else 1e-5 + 1.01 * ROUNDING[dtype] * np.abs(exact)
    if kind == "max":
        np.testing.assert_array_equal(y.reshape(exact.shape).astype(np.float64), exact)
    else:
        _compare(y.reshape(exact.shape), exact, allowed)


def _counts(layer: Layer, count_padding: bool) -> Any:
    """How many elements each mean divides by."""
    counted = layer
    if count_padding:
        (top, left, bottom, right), none = layer.padding, (0, 0, 0, 0)
        height, width = layer.height + top + bottom, layer.width + left + right
        counted = replace(layer, height=height, width=width, padding=none)
    return counted.windows(np.ones((1, 1, counted.height, counted.width)), 0.0).sum(axis=(4, 5))

"""Runs of the kernels that need no packed weight: normalisation, attention, elementwise, layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from kernel_harness import Case, from_panels, lay_out, rounding, to_panels
from move_cases import move_cases, reduce_cases, resize_cases
from recurrent_cases import recurrent_cases
from scipy import special

from sparsec.ir import expr
from sparsec.ir.dims import symbol
from sparsec.ir.expr import Arg, call
from sparsec.targets.kernels import attention, elementwise, matmul, normalize, relayout
from sparsec.targets.target import Target


def _draw(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _known(size: int, dynamic: bool) -> Any:
    return symbol("n") if dynamic else size


def layer_norm(target: Target) -> list[Case]:
    """Row-major and token panels, features known and not, all tails."""
    found = []
    for tokens, features, panel, dynamic in (
        (3, 37, 0, False), (2, 64, 0, True), (1, 1, 0, False), (19, 21, 16, False), (40, 8, 32, True),
    ):  # fmt: skip
        x, gamma, beta = _draw(1, tokens, features) * 3 + 1, _draw(2, features), _draw(3, features)
        wide = x.astype(np.float64)
        centred = wide - wide.mean(axis=1, keepdims=True)
        right = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * gamma + beta
        stored, size, inner = lay_out(x, panel), _known(features, dynamic), panel or 1
        found.append(Case(
            f"layer_norm {target.name} {tokens}x{features} panel {panel} {dynamic}", target,
            ("layer_norm", size, inner, target), partial(_layer_norm, size, inner, target),
            (stored, gamma, beta), stored.shape, len(stored), right, 1e-5 + 1e-5 * np.abs(right),
            (features, inner), logical=_reader(panel, tokens),
        ))  # fmt: skip
    return found


def _layer_norm(size: Any, inner: Any, target: Target, name: str) -> Any:
    return normalize.layer_norm(size, inner, 1e-5, target, name)


def _reader(panel: int, tokens: int) -> Callable[[Any], Any]:
    return partial(from_panels, tokens=tokens) if panel else lambda y: y


def softmax(target: Target) -> list[Case]:
    """Along rows, along an outer axis, and in panels; with infinities; and its logarithm."""
    found = []
    for outer, axis, inner, panel in ((3, 37, 1, 0), (2, 5, 35, 0), (1, 1, 1, 0), (21, 10, 16, 16)):
        for log in (False, True):
            shape = (outer, axis) if panel else (outer, axis, inner)
            x = _draw(4, *shape) * 20
            x.reshape(-1)[:: axis + 3] = -np.inf if axis > 1 else 0
            x.reshape(-1)[1::7] = 80
            right = (special.log_softmax if log else special.softmax)(x.astype(np.float64), axis=1)
            stored = lay_out(x, panel)
            found.append(Case(
                f"softmax {target.name} {outer}x{axis}x{inner} panel {panel} log {log}", target,
                ("softmax", axis, inner, log, target), partial(normalize.softmax, axis, inner, log, target),
                (stored,), stored.shape, len(stored), right, _softmax_error(x, right, log), (axis, inner),
                logical=_reader(panel, outer),
            ))  # fmt: skip
    return found


def _softmax_error(x: Any, right: Any, log: bool) -> Any:
    # the logarithm's error is that of x minus a number as large as x
    scale = np.where(np.isfinite(x), np.abs(x), 0) + 100 if log else np.abs(right)
    return 1e-6 + 2e-6 * scale


def attention_cases(target: Target) -> list[Case]:
    """Heads, depths and lengths of every tail; row-major and panels; all kinds of mask."""
    found = []
    for batch, heads, queries, keys, depth, value_depth, panel, mask, dynamic in (
        (1, 2, 7, 11, 4, 5, 0, None, False), (2, 3, 33, 17, 8, 8, 0, (True, False, False), True),
        (2, 1, 40, 40, 6, 3, 32, (False, False, True), False), (1, 2, 64, 64, 16, 16, 64, None, False),
        (2, 2, 19, 5, 3, 4, 16, (True, False, True), True), (1, 1, 1, 1, 1, 1, 0, None, False),
        (2, 3, 13, 9, 4, 4, 0, (False, True, True), True), (2, 2, 9, 9, 4, 4, 8, (True, True, False), False),
    ):  # fmt: skip
        panels = (panel,) * 4
        shape = attention.Shape(
            heads, depth, value_depth, depth**-0.5, _known(queries, dynamic),
            keys if keys == queries or not dynamic else symbol("m"), panels, mask,
        )  # fmt: skip
        found.append(_attention(shape, batch, queries, keys, target))
    return found


def _attention(shape: attention.Shape, batch: int, queries: int, keys: int, target: Target) -> Case:
    heads, depth, value_depth, panel = shape.heads, shape.depth, shape.value_depth, shape.panels[0]
    q, k = _draw(5, batch, queries, heads * depth), _draw(6, batch, keys, heads * depth)
    v = _draw(7, batch, keys, heads * value_depth)
    masks: list[Any] = []
    if shape.mask:
        sizes = (size if own else 1 for size, own in zip((batch, heads, queries), shape.mask, strict=True))
        masks = [_draw(8, *sizes, keys)]
        masks[0][masks[0] > 1.5] = -np.inf
        masks[0][-1, -1, -1] = np.finfo(np.float32).min
    right = _attention_reference(q, k, v, heads, shape.scale, masks)
    block = attention.block_of_queries(shape, target)
    blocks = -(-queries // block)
    flat = right.reshape(batch * queries, -1)
    stored = [lay_out(t.reshape(-1, t.shape[-1]), panel) for t in (q, k, v)]
    y_shape = (-(-len(flat) // panel), flat.shape[1], panel) if panel else flat.shape
    return Case(
        f"attention {target.name} {shape} {batch}x{queries}x{keys}", target, ("attention", shape, target),
        partial(attention.emit, shape, target), (*stored, *masks), y_shape, batch * heads * blocks, flat,
        2e-5 * (1 + np.abs(flat)), (queries, keys, blocks), (keys + depth) * block + 64,
        logical=_reader(panel, len(flat)),
    )  # fmt: skip


def _attention_reference(q: Any, k: Any, v: Any, heads: int, scale: float, masks: list[Any]) -> Any:
    def split(t: Any) -> Any:
        return t.astype(np.float64).reshape(*t.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    scores = split(q) @ split(k).transpose(0, 1, 3, 2) * scale
    for mask in masks:
        scores = scores + mask
    result = special.softmax(scores, axis=-1) @ split(v)
    return result.transpose(0, 2, 1, 3).reshape(*q.shape[:2], -1)


def elementwise_cases(target: Target) -> list[Case]:
    """Arguments that broadcast over no, outer, inner and all axes."""
    expression = call("add", expr.gelu(call("mul", Arg(0), Arg(1))), Arg(2))
    found = []
    for result, second, third in (
        ((5000,), (5000,), (1,)), ((3, 37), (37,), (3, 1)), ((2, 3, 19), (3, 1), (2, 1, 19)),
        ((1,), (1,), (1,)), ((4, 33), (4, 33), (4, 33)),
    ):  # fmt: skip
        a, b, c = _draw(9, *result), _draw(10, *second), _draw(11, *third)
        merged = elementwise.merge(result, [t.shape for t in (a, b, c)])
        axes = tuple(int(str(a)) for a in merged.axes)
        size, divisor = elementwise.tile_count(merged)
        z = a.astype(np.float64) * b
        right = 0.5 * z * (1 + special.erf(z / np.sqrt(2))) + c
        found.append(Case(
            f"elementwise {target.name} {result} {second} {third}", target,
            ("elementwise", expression, merged, target),
            partial(elementwise.emit, expression, merged, target), (a, b, c), result,
            -(-int(str(size)) // divisor), right, 3e-6 + 3e-6 * np.abs(right), axes,
        ))  # fmt: skip
    return found


def relayout_cases(target: Target) -> list[Case]:
    """Both ways, whole and cut panels, features of every tail, tokens known and not."""
    found = []
    for tokens, features, panel, dynamic in (
        (40, 37, 16, False), (33, 16, 32, True), (1, 1, 16, False), (64, 48, 64, False), (70, 20, 32, True),
    ):  # fmt: skip
        x, size = _draw(12, tokens, features), _known(tokens, dynamic)
        panels = to_panels(x, panel)
        zeros = np.nan_to_num(panels.astype(np.float64), nan=0.0)
        for forth in (True, False):
            found.append(Case(
                f"relayout {target.name} {tokens}x{features} panel {panel} {forth}", target,
                ("relayout", features, size, panel, forth, target),
                partial(relayout.emit, features, size, panel, forth, target),
                (x if forth else panels,), panels.shape if forth else x.shape, len(panels),
                zeros if forth else x.astype(np.float64), 0.0, (tokens,),
            ))  # fmt: skip
    return found


def matmul_cases(target: Target) -> list[Case]:
    """Batches, operands that serve every batch, bands of fewer than four rows, all column tails."""
    found = []
    for batch, rows, inner, columns, repeat, dynamic in (
        (1, 5, 7, 37, (False, False), False), (3, 4, 9, 64, (False, True), True),
        (2, 3, 5, 33, (True, False), False), (1, 1, 1, 1, (False, False), False),
    ):  # fmt: skip
        a = _draw(13, 1 if repeat[0] else batch, rows, inner)
        b = _draw(14, 1 if repeat[1] else batch, inner, columns)
        depth, wide = (symbol("k"), symbol("n")) if dynamic else (inner, columns)
        right = np.broadcast_to(a.astype(np.float64) @ b.astype(np.float64), (batch, rows, columns))
        found.append(Case(
            f"matmul {target.name} {batch}x{rows}x{inner}x{columns}", target,
            ("matmul", depth, wide, repeat, target), partial(matmul.emit, depth, wide, repeat, target),
            (a, b), right.shape, batch * -(-rows // matmul.ROWS), right, rounding(a, b),
            (rows, inner, columns),
        ))  # fmt: skip
    return found


#: kernel -> its cases on a target
TENSOR_CASES: Mapping[str, Callable[[Target], list[Case]]] = {
    "layer_norm": layer_norm,
    "softmax": softmax,
    "attention": attention_cases,
    "elementwise": elementwise_cases,
    "relayout": relayout_cases,
    "matmul": matmul_cases,
    "recurrent": recurrent_cases,
    "moves": move_cases,
    "reduce": reduce_cases,
    "resize": resize_cases,
}

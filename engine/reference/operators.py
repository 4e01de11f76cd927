"""What each operator means, in NumPy: a node's value from its arguments' values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import IRError
from sparsec.ir import dims
from sparsec.ir.attributes import (
    AttentionAttrs,
    ConcatAttrs,
    ConvAttrs,
    ElementwiseAttrs,
    LayerNormAttrs,
    MatmulAttrs,
    PadAttrs,
    PoolAttrs,
    ReduceAttrs,
    ResizeAttrs,
    SliceAttrs,
    SoftmaxAttrs,
    TransposeAttrs,
)
from sparsec.ir.expr import Expr
from sparsec.ir.graph import Node, Op
from sparsec.reference import windows
from sparsec.reference.expr import evaluate_expr

Array: TypeAlias = NDArray[Any]


def shape_of(node: Node, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape a node's type declares, in numbers."""
    try:
        return tuple(dims.value(s, sizes) for s in node.type.shape)
    except KeyError as error:
        raise IRError(f"{node.name} ({node.op}): no input binds {error.args[0]} of {node.type}") from error


def _matmul(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    x, w, *extras = arrays
    return _with_epilogue(cast(MatmulAttrs, node.attrs).epilogue, np.matmul(x, w), extras)


def _conv2d(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    x, w, *extras = arrays
    attrs = cast(ConvAttrs, node.attrs)
    return _with_epilogue(attrs.epilogue, windows.conv2d(attrs, x, w), extras)


def _with_epilogue(epilogue: Expr | None, product: Array, extras: list[Array]) -> Array:
    return product if epilogue is None else evaluate_expr(epilogue, [product, *extras], product.dtype)


def _attention(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    attrs = cast(AttentionAttrs, node.attrs)
    q, k, v = (_split_heads(a, attrs.heads) for a in arrays[:3])
    scores = np.matmul(q, np.swapaxes(k, -1, -2)) * np.asarray(attrs.scale, q.dtype)
    if len(arrays) > 3:
        scores = scores + arrays[3]
    heads = np.matmul(_softmax_along(scores, -1), v)
    batch, _, length, width = heads.shape
    merged: Array = heads.transpose(0, 2, 1, 3).reshape(batch, length, attrs.heads * width)
    return merged


def _split_heads(x: Array, heads: int) -> Array:
    batch, length, features = x.shape
    return x.reshape(batch, length, heads, features // heads).transpose(0, 2, 1, 3)


def _softmax_along(x: Array, axis: int, log: bool = False) -> Array:
    if not x.size:
        return x
    shifted = x - x.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    found: Array = shifted - np.log(total) if log else np.exp(shifted) / total
    return found


def _elementwise(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    found = evaluate_expr(cast(ElementwiseAttrs, node.attrs).expr, arrays, node.type.dtype)
    # The declared shape may be larger than the arguments': that is how a graph says broadcast_to.
    try:
        return np.broadcast_to(found, shape_of(node, sizes))
    except ValueError as error:
        raise IRError(f"{node.name} ({node.op}): shape {found.shape} does not fit {node.type}") from error


def _layer_norm(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    attrs = cast(LayerNormAttrs, node.attrs)
    x, gamma, *beta = arrays
    centred = x - x.mean(axis=-1, keepdims=True) if attrs.centred else x
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    found: Array = centred / np.sqrt(variance + np.asarray(attrs.epsilon, x.dtype)) * gamma
    return found + beta[0] if attrs.centred else found


def _softmax(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    attrs = cast(SoftmaxAttrs, node.attrs)
    return _softmax_along(arrays[0], attrs.axis, attrs.log)


_REDUCTIONS: Mapping[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}


def _reduce(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    attrs = cast(ReduceAttrs, node.attrs)
    found: Array = _REDUCTIONS[attrs.kind](arrays[0], axis=attrs.axes, keepdims=attrs.keepdims)
    return found


def _reshape(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    try:
        return arrays[0].reshape(shape_of(node, sizes))
    except ValueError as error:
        raise IRError(f"{node.name} (reshape): {arrays[0].shape} does not fit {node.type}") from error


def _transpose(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return np.transpose(arrays[0], cast(TransposeAttrs, node.attrs).axes)


def _pool(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return windows.pool(cast(PoolAttrs, node.attrs), arrays[0], shape_of(node, sizes)[2:])


def _resize(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return windows.resize(cast(ResizeAttrs, node.attrs), arrays[0], shape_of(node, sizes)[2:])


def _concat(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return np.concatenate(arrays, cast(ConcatAttrs, node.attrs).axis)


def _slice(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return windows.cut(cast(SliceAttrs, node.attrs), arrays[0], shape_of(node, sizes))


def _pad(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return windows.pad(cast(PadAttrs, node.attrs), arrays[0], shape_of(node, sizes))


def _relayout(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return arrays[0]


#: (node, arguments, sizes of symbols) -> value, before it is cast to the declared type
MEANINGS: Mapping[Op, Callable[[Node, list[Array], Mapping[str, int]], Array]] = {
    Op.MATMUL: _matmul, Op.ATTENTION: _attention, Op.ELEMENTWISE: _elementwise,
    Op.LAYER_NORM: _layer_norm, Op.SOFTMAX: _softmax, Op.REDUCE: _reduce, Op.RESHAPE: _reshape,
    Op.TRANSPOSE: _transpose, Op.CONV2D: _conv2d, Op.POOL: _pool, Op.RESIZE: _resize,
    Op.CONCAT: _concat, Op.SLICE: _slice, Op.PAD: _pad, Op.RELAYOUT: _relayout,
}  # fmt: skip

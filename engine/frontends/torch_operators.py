"""Converters of our own for torch's operators, where TVM's are missing or compute something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from tvm import relax

from sparsec.errors import Unsupported
from sparsec.frontends.torch_arguments import arguments
from sparsec.frontends.torch_arithmetic import (
    ARITHMETIC,
    convert_arithmetic,
    convert_whole_division,
)
from sparsec.frontends.torch_attention import convert_attention
from sparsec.frontends.torch_resampling import RESAMPLING, convert_resampling

#: (importer, fx node) -> a Relax expression
Converter: TypeAlias = Callable[[Any, Any], Any]


def _rank(x: Any) -> int:
    return len(x.ty.shape.values)


def _sizes(x: Any, axes: Sequence[int], what: str) -> list[int]:
    """Known sizes of axes.

    Raises:
        Unsupported: one is open.
    """
    sizes = [x.ty.shape.values[a] for a in axes]
    if not all(hasattr(s, "value") for s in sizes):
        raise Unsupported(f"{what} of open size is not supported")
    return [int(s.value) for s in sizes]


# -- picking elements


def _select(importer: Any, node: Any) -> Any:
    """One element of an axis, counted from its end if negative; TVM reads outside there."""
    given, emit = arguments(importer, node), importer.block_builder.emit
    x, at = given["self"], given["index"]
    axis = int(given["dim"]) % _rank(x)
    if not isinstance(at, int):
        raise Unsupported("an index that depends on the data is not supported")
    first = at if at >= 0 else x.ty.shape.values[axis] + at
    part = emit(relax.op.strided_slice(x, [axis], [first], [first + 1], assume_inbound=True))
    return emit(relax.op.squeeze(part, [axis]))


def _slice(importer: Any, node: Any) -> Any:
    """To an open size that torch knows to lie inside; TVM keeps the smaller of both as the size."""
    given = arguments(importer, node)
    axis, first, last = int(given["dim"]) % _rank(given["self"]), given["start"] or 0, given["end"]
    whole = isinstance(first, int) and first >= 0 and given["step"] == 1
    if not whole or not isinstance(node.args[3] if len(node.args) > 3 else None, torch.fx.Node):
        return importer.theirs[node.target.__name__](node)
    if str(node.meta["val"].shape[axis]) != str(node.args[3].meta["val"] - first):
        return importer.theirs[node.target.__name__](node)
    cut = relax.op.strided_slice(given["self"], [axis], [first], [last], assume_inbound=True)
    return importer.block_builder.emit(cut)


def _index(importer: Any, node: Any) -> Any:
    """``x[:, i, :, j]``: the indexed axes merged, and elements of the merged axis taken."""
    given, emit = arguments(importer, node), importer.block_builder.emit
    x = given["self"]
    asked = {axis: index for axis, index in enumerate(given["indices"]) if index is not None}
    if any(str(index.ty.dtype.dtype) == "bool" for index in asked.values()):
        raise Unsupported("how many elements a mask selects depends on the data")
    axes, rest = list(asked), [a for a in range(_rank(x)) if a not in asked]
    first = axes[0]
    if axes != list(range(first, first + len(axes))):
        x, first = emit(relax.op.permute_dims(x, [*axes, *rest])), 0
        axes = list(range(len(axes)))
    shape = list(x.ty.shape.values)
    merged = _place(emit, list(asked.values()), [shape[a] for a in axes])
    if len(axes) > 1:
        _sizes(x, axes, "indexed axes")
        flat = [*shape[:first], int(np.prod([int(shape[a]) for a in axes])), *shape[first + len(axes) :]]
        x = emit(relax.op.reshape(x, flat))
    return emit(relax.op.take(x, merged, first, mode="clip"))


def _place(emit: Callable[[Any], Any], indices: Sequence[Any], sizes: Sequence[Any]) -> Any:
    """The index into the merged axes; negative ones count from the end."""
    total = None
    for index, size in zip(indices, sizes, strict=True):
        whole = emit(relax.op.astype(index, "int64"))
        if hasattr(size, "value"):
            length = relax.const(int(size.value), "int64")
            negative = emit(relax.op.less(whole, relax.const(0, "int64")))
            whole = emit(relax.op.where(negative, emit(relax.op.add(whole, length)), whole))
            total = (
                whole if total is None else emit(relax.op.add(emit(relax.op.multiply(total, length)), whole))
            )
        else:
            total = whole
    return total


def _unfold(importer: Any, node: Any) -> Any:
    """Overlapping parts of an axis, their elements last."""
    given, emit = arguments(importer, node), importer.block_builder.emit
    x, size, step = given["self"], int(given["size"]), int(given["step"])
    axis = int(given["dimension"]) % _rank(x)
    (extent,) = _sizes(x, [axis], "unfolding an axis")
    starts = np.arange(0, extent - size + 1, step)
    taken = emit(relax.op.take(x, relax.const(starts[:, None] + np.arange(size), "int64"), axis, mode="clip"))
    order = [a for a in range(_rank(taken)) if a != axis + 1]
    return emit(relax.op.permute_dims(taken, [*order, axis + 1]))


# -- reductions


def _extreme(reduce: Callable[..., Any]) -> Converter:
    def convert(importer: Any, node: Any) -> Any:
        given = arguments(importer, node)
        axes = list(given["dim"]) or None
        return importer.block_builder.emit(reduce(given["self"], axes, keepdims=bool(given["keepdim"])))

    return convert


def _extreme_and_place(reduce: Callable[..., Any], place: Callable[..., Any]) -> Converter:
    def convert(importer: Any, node: Any) -> Any:
        given, emit = arguments(importer, node), importer.block_builder.emit
        x, axis, kept = given["self"], int(given["dim"]), bool(given["keepdim"])
        return relax.Tuple([emit(reduce(x, [axis], keepdims=kept)), emit(place(x, axis, keepdims=kept))])

    return convert


def _product(importer: Any, node: Any) -> Any:
    given = arguments(importer, node)
    kept = bool(given["keepdim"])
    return importer.block_builder.emit(relax.op.prod(given["self"], [int(given["dim"])], keepdims=kept))


# -- windows


def _read(node: Any, item: int) -> bool:
    """Whether anything reads one of a node's outputs."""
    return any(user.args[1] == item and user.users for user in node.users)


def _adaptive_max(importer: Any, node: Any) -> Any:
    """The maximum of each of the windows that cover an axis evenly, one axis after the other."""
    if _read(node, 1):
        raise Unsupported("the places of the maxima are not supported")
    given, emit = arguments(importer, node), importer.block_builder.emit
    x, wanted = given["self"], [int(s) for s in given["output_size"]]
    first = _rank(x) - len(wanted)
    sizes = _sizes(x, range(first, _rank(x)), "adaptive pooling")
    for axis, (size, parts) in enumerate(zip(sizes, wanted, strict=True), first):
        bounds = [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
        cuts = [emit(relax.op.strided_slice(x, [axis], [low], [high])) for low, high in bounds]
        tops = [emit(relax.op.max(c, [axis], keepdims=True)) for c in cuts]
        x = tops[0] if parts == 1 else emit(relax.op.concat(tops, axis))
    return relax.Tuple([x, x])


def _max_pool(importer: Any, node: Any) -> Any:
    """TVM's, which makes up the places of the maxima."""
    if _read(node, 1):
        raise Unsupported("the places of the maxima are not supported")
    return importer._max_pool2d_with_indices(node)


def _mean_pool(importer: Any, node: Any) -> Any:
    """TVM's, which overlooks the divisor."""
    if arguments(importer, node)["divisor_override"] is not None:
        raise Unsupported("divisor_override is not supported")
    return importer._avg_pool2d(node)


def _grid_sample(importer: Any, node: Any) -> Any:
    """The grid's coordinates come first in Relax."""
    given, emit = arguments(importer, node), importer.block_builder.emit
    grid = emit(relax.op.permute_dims(given["grid"], [0, 3, 1, 2]))
    return emit(
        relax.op.image.grid_sample(
            given["input"], grid, layout="NCHW",
            method=("bilinear", "nearest", "bicubic")[given["interpolation_mode"]],
            padding_mode=("zeros", "border", "reflection")[given["padding_mode"]],
            align_corners=bool(given["align_corners"]),
        )
    )  # fmt: skip


# -- activations


def _elu(importer: Any, node: Any) -> Any:
    """``scale * (max(x, 0) + alpha * (exp(input_scale * min(x, 0)) - 1))``; SELU too, in aten's words."""
    given, op = arguments(importer, node), relax.op
    x, zero = given["self"], relax.const(0.0, "float32")
    scale, slope, inner = (float(given[name]) for name in ("scale", "alpha", "input_scale"))
    below = op.subtract(op.exp(_times(op.minimum(x, zero), inner)), relax.const(1.0, "float32"))
    return importer.block_builder.emit(
        op.add(_times(op.maximum(x, zero), scale), _times(below, scale * slope))
    )


def _times(x: Any, factor: float) -> Any:
    return x if factor == 1 else relax.op.multiply(x, relax.const(factor, "float32"))


def _clamped(importer: Any, node: Any) -> Any:
    """hardtanh; TVM overlooks bounds given by position."""
    given = arguments(importer, node)
    bounds = float(given["min_val"]), float(given["max_val"])
    return importer.block_builder.emit(relax.op.clip(given["self"], *bounds))


def _assertion(importer: Any, node: Any) -> Any:
    """Checks nothing."""
    return importer.env[node.args[0]]


CONVERTERS: Mapping[str, Converter] = {
    "_assert_async.default": _assertion,
    "_assert_async.msg": _assertion,
    "adaptive_max_pool2d.default": _adaptive_max,
    "adaptive_max_pool3d.default": _adaptive_max,
    "amax.default": _extreme(relax.op.max),
    "amin.default": _extreme(relax.op.min),
    "avg_pool2d.default": _mean_pool,
    "div.Tensor_mode": convert_whole_division,
    "elu.default": _elu,
    "grid_sampler_2d.default": _grid_sample,
    "hardtanh.default": _clamped,
    "index.Tensor": _index,
    "max.dim": _extreme_and_place(relax.op.max, relax.op.argmax),
    "max_pool2d_with_indices.default": _max_pool,
    "min.dim": _extreme_and_place(relax.op.min, relax.op.argmin),
    "prod.dim_int": _product,
    "scaled_dot_product_attention.default": convert_attention,
    "select.int": _select,
    "slice.Tensor": _slice,
    "unfold.default": _unfold,
    **dict.fromkeys(ARITHMETIC, convert_arithmetic),
    **{op.__name__: convert_resampling for op in RESAMPLING},
}

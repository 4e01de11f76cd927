"""Relax's convolutions, pools and resizes as nodes of ours.

The IR slides windows over images (N, C, H, W).  A sequence (N, C, L) is an image of height 1; a
volume whose windows have depth 1 is a batch of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsec.frontends.relax_emit import Emitter, all_float32, ints, numbers
from sparsec.ir.attributes import ConvAttrs, PoolAttrs, ReduceAttrs, ResizeAttrs
from sparsec.ir.dims import Size
from sparsec.ir.graph import Op
from sparsec.ir.resampling import COORDINATES, ROUNDINGS, taps
from sparsec.ir.verify_windows import positions

if TYPE_CHECKING:
    from sparsec.frontends.from_relax import Converter
    from sparsec.frontends.relax_emit import Rule
    from sparsec.frontends.relax_values import Value

_LAYOUTS = {"NCW": "OIW", "NCHW": "OIHW", "NCDHW": "OIDHW"}


def _conv(converter: Converter, relax_call: Any, name: str) -> Value:
    """Also of one and three dimensions; a weight that is no constant stays with Relax."""
    attrs = relax_call.attrs
    plain = attrs.data_layout == attrs.out_layout and _LAYOUTS.get(attrs.data_layout) == attrs.kernel_layout
    if not plain or not all_float32(relax_call):
        return None
    e = Emitter(converter, relax_call, name)
    x, w = (converter.node(a) for a in relax_call.args)
    if not converter.building.is_constant(w) or not numbers(e.shape(x)[1:]):
        return None
    windows = _flat_windows(attrs, e.shape(w)[2:])
    if windows is None:
        return None
    strides, padding, dilation = windows
    image, weight = _images(e, x), e.reshape(w, (*e.shape(w)[:2], *_plane(e.shape(w)[2:])))
    found = ConvAttrs(strides, padding, dilation, int(attrs.groups))
    shape = _windowed(e.shape(image), e.shape(weight)[2:], found, e.shape(weight)[0])
    return _from_images(e, Op.CONV2D, (image, weight), shape, found)


_Windows = tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int]]


def _flat_windows(attrs: Any, kernel: Sequence[Size]) -> _Windows | None:
    """Strides, padding and dilation in a plane; None for windows with a depth."""
    rank = len(kernel)
    strides, dilation, padding = ints(attrs.strides), ints(attrs.dilation), ints(attrs.padding)
    before, after = padding[:rank], padding[rank:]
    if rank == 3 and (kernel[0], strides[0], before[0], after[0]) != (1, 1, 0, 0):
        return None
    if rank == 1:
        strides, dilation, before, after = (1, *strides), (1, *dilation), (0, *before), (0, *after)
    return strides[-2:], (*before[-2:], *after[-2:]), dilation[-2:]  # type: ignore[return-value]


def _plane(sizes: Sequence[Size]) -> tuple[Size, ...]:
    return (1, *sizes) if len(sizes) == 1 else tuple(sizes[-2:])


def _images(e: Emitter, x: str) -> str:
    """x as (N, C, H, W)."""
    shape = e.shape(x)
    if len(shape) == 5:
        images, channels, depth = shape[:3]
        return e.reshape(e.transpose(x, 0, 2, 1, 3, 4), (images * depth, channels, *shape[3:]))
    return e.reshape(x, (*shape[:2], *_plane(shape[2:])))


def _windowed(x: Sequence[Size], kernel: Sequence[Any], attrs: ConvAttrs, channels: Size) -> tuple[Size, ...]:
    extents: Sequence[Any] = x[2:]
    spatial = [
        positions(extents[a], kernel[a], attrs.strides[a], attrs.dilation[a], *attrs.padding[a::2])
        for a in (0, 1)
    ]
    return (x[0], channels, *spatial)


def _from_images(
    e: Emitter, op: Op, args: Sequence[str], shape: tuple[Size, ...], attrs: ConvAttrs | PoolAttrs
) -> str:
    """The node over images, and its value as the call's."""
    result = e.converter.type(e.call.ty).shape
    if len(result) == 4:
        return e.result(op, args, attrs)
    found = e.part("images", op, args, shape, attrs)
    if len(result) == 5:
        split = e.reshape(found, (result[0], result[2], shape[1], *shape[2:]))
        found = e.transpose(split, 0, 2, 1, 3, 4)
    return e.finished(found)


def _pool(kind: str) -> Rule:
    def rule(converter: Converter, relax_call: Any, name: str) -> Value:
        attrs, shape = relax_call.attrs, converter.type(relax_call.args[0].ty).shape
        plain = attrs.layout == attrs.out_layout and attrs.layout in _LAYOUTS
        if not plain or not all_float32(relax_call) or not numbers(shape[1:]):
            return None
        windows = _flat_windows(attrs, ints(attrs.pool_size))
        if windows is None:
            return None
        e = Emitter(converter, relax_call, name)
        kernel: Any = _plane(ints(attrs.pool_size))
        counting = kind == "mean" and bool(attrs.count_include_pad)
        image = _images(e, converter.node(relax_call.args[0]))
        result = converter.type(relax_call.ty).shape
        pooled = (e.shape(image)[0], shape[1], *_plane(result[2:]))
        found = PoolAttrs(kind, kernel, *windows, count_padding=counting)
        return _from_images(e, Op.POOL, (image,), pooled, found)

    return rule


def _adaptive_mean(converter: Converter, relax_call: Any, name: str) -> Value:
    """Where the output's sizes divide the input's: equal windows side by side."""
    x, result = (converter.type(t.ty).shape for t in (relax_call.args[0], relax_call))
    plain = relax_call.attrs.layout == relax_call.attrs.out_layout and relax_call.attrs.layout in _LAYOUTS
    if not plain or not all_float32(relax_call):
        return None
    e, source = Emitter(converter, relax_call, name), converter.node(relax_call.args[0])
    if set(result[2:]) == {1}:
        return e.result(Op.REDUCE, (source,), ReduceAttrs("mean", tuple(range(2, len(x))), True))
    if len(x) == 5 or not numbers((*x[1:], *result[2:])):
        return None
    height, width, rows, columns = (int(str(s)) for s in (*_plane(x[2:]), *_plane(result[2:])))
    if height % rows or width % columns:
        return None
    kernel = (height // rows, width // columns)
    pooled = (*x[:2], rows, columns)
    return _from_images(e, Op.POOL, (_images(e, source),), pooled, PoolAttrs("mean", kernel, kernel))


def _resize(converter: Converter, relax_call: Any, name: str) -> Value:
    x, result = (converter.type(t.ty).shape for t in (relax_call.args[0], relax_call))
    if relax_call.attrs.layout != "NCHW" or not all_float32(relax_call) or not numbers((*x[1:], *result[1:])):
        return None
    found = _resize_attrs(relax_call.attrs, list(zip(x[2:], result[2:], strict=True)))
    if found is None:
        return None
    e = Emitter(converter, relax_call, name)
    return e.result(Op.RESIZE, (converter.node(relax_call.args[0]),), found)


def _resize_attrs(attrs: Any, sizes: Sequence[tuple[Any, Any]]) -> ResizeAttrs | None:
    """``sizes`` are (input, output) of both axes."""
    method = {"nearest_neighbor": "nearest", "linear": "linear"}.get(attrs.method)
    coordinates = str(attrs.coordinate_transformation_mode)
    if method is None or coordinates not in COORDINATES:
        return None
    if method == "linear":
        return ResizeAttrs(method, coordinates)
    rounding = str(attrs.rounding_method) or ("round" if coordinates == "align_corners" else "floor")
    if rounding == "round":
        return _rounded(coordinates, sizes)
    return ResizeAttrs(method, coordinates, rounding) if rounding in ROUNDINGS else None


def _rounded(coordinates: str, sizes: Sequence[tuple[Any, Any]]) -> ResizeAttrs | None:
    """TVM's ``round`` where no position lies between two elements: there all roundings agree."""
    down, up = (ResizeAttrs("nearest", coordinates, f"round_prefer_{way}") for way in ("floor", "ceil"))
    same = all((taps(down, *size)[0] == taps(up, *size)[0]).all() for size in sizes)
    return down if same else None


WINDOWS: dict[str, Rule] = {
    "relax.nn.conv1d": _conv,
    "relax.nn.conv2d": _conv,
    "relax.nn.conv3d": _conv,
    "relax.nn.max_pool1d": _pool("max"),
    "relax.nn.max_pool2d": _pool("max"),
    "relax.nn.max_pool3d": _pool("max"),
    "relax.nn.avg_pool1d": _pool("mean"),
    "relax.nn.avg_pool2d": _pool("mean"),
    "relax.nn.avg_pool3d": _pool("mean"),
    "relax.nn.adaptive_avg_pool1d": _adaptive_mean,
    "relax.nn.adaptive_avg_pool2d": _adaptive_mean,
    "relax.nn.adaptive_avg_pool3d": _adaptive_mean,
    "relax.image.resize2d": _resize,
}

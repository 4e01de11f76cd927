"""What the types of convolutions, pools, resizes, joins and cuts must fulfil."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from sparsec.ir.attributes import ConcatAttrs, ConvAttrs, PadAttrs, PoolAttrs, SliceAttrs
    from sparsec.ir.dims import Size
    from sparsec.ir.graph import Node
    from sparsec.ir.types import Type


def window_problem(node: Node, args: Sequence[Type]) -> str:
    """The rule a node breaks, or nothing; ``args`` are its arguments' types."""
    rule = _RULES.get(node.op.value)
    return "" if rule is None else rule(node, [a.shape for a in args])


def positions(extent: int, kernel: int, stride: int, dilation: int, before: int = 0, after: int = 0) -> int:
    """Positions of a window that stays inside an axis and its padding."""
    return (extent + before + after - (kernel - 1) * dilation - 1) // stride + 1


def _conv2d(node: Node, shapes: Sequence[tuple[Size, ...]]) -> str:
    attrs = cast("ConvAttrs", node.attrs)
    if any(len(s) != 4 for s in (*shapes[:2], node.type.shape)):
        return "x, w and the result must have 4 axes"
    x, w = shapes[:2]
    if not all(isinstance(s, int) for s in (*x[1:], *w)):
        return "channels, height, width and the weight's sizes must be numbers"
    known: Any = x
    weight = cast("tuple[int, ...]", w)
    if known[1] != weight[1] * attrs.groups or weight[0] % attrs.groups:
        return f"{known[1]} channels in {attrs.groups} groups do not fit a weight {list(weight)}"
    spatial = tuple(
        positions(known[2 + a], weight[2 + a], attrs.strides[a], attrs.dilation[a], *attrs.padding[a::2])
        for a in (0, 1)
    )
    wanted = (x[0], weight[0], *spatial)
    return "" if node.type.shape == wanted else f"the result must be {_text(wanted)}, not {node.type}"


def _pool(node: Node, shapes: Sequence[tuple[Size, ...]]) -> str:
    attrs, x = cast("PoolAttrs", node.attrs), shapes[0]
    if (problem := _planes(node, x)) or not all(isinstance(s, int) for s in (*x[2:], *node.type.shape[2:])):
        return problem or "height and width must be numbers"
    for axis in (0, 1):
        extent, found = cast(int, x[2 + axis]), cast(int, node.type.shape[2 + axis])
        stride, (before, after) = attrs.strides[axis], attrs.padding[axis::2]
        least = positions(extent, attrs.kernel[axis], stride, attrs.dilation[axis], before, after)
        if not least <= found <= least + 1 or (found - 1) * stride - before >= extent:
            return f"{found} windows of stride {stride} do not fit {extent} elements"
    return ""


def _planes(node: Node, x: Sequence[Size]) -> str:
    """Images and channels stay what they are."""
    same = len(x) == 4 and node.type.shape[:2] == tuple(x[:2]) and len(node.type.shape) == 4
    return "" if same else "x and the result must be images of the same number and channels"


def _resize(node: Node, shapes: Sequence[tuple[Size, ...]]) -> str:
    return _planes(node, shapes[0])


def _concat(node: Node, shapes: Sequence[tuple[Size, ...]]) -> str:
    axis = cast("ConcatAttrs", node.attrs).axis
    total: Size = 0
    for shape in shapes:
        if len(shape) != len(node.type.shape) or axis >= len(shape):
            return "the parts must have the result's axes"
        total = total + shape[axis]
    wanted = [(*s[:axis], total, *s[axis + 1 :]) for s in shapes]
    return "" if all(w == node.type.shape for w in wanted) else f"parts {_text(wanted)} do not fit"


def _slice(node: Node, shapes: Sequence[tuple[Size, ...]]) -> str:
    attrs, x, found = cast("SliceAttrs", node.attrs), shapes[0], node.type.shape
    if not len(attrs.begin) == len(attrs.step) == len(x) == len(found):
        return "begin, step, x and the result must have as many axes"
    if any(b < 0 or s < 1 for b, s in zip(attrs.begin, attrs.step, strict=True)):
        return "begin must not be negative, step must be positive"
    for begin, step, size, extent in zip(attrs.begin, attrs.step, found, x, strict=True):
        if isinstance(size, int) and isinstance(extent, int) and begin + (size - 1) * step >= max(extent, 1):
            return f"{size} elements from {begin} by {step} do not fit {extent}"
    return ""


def _pad(node: Node, shapes: Sequence[tuple[Size, ...]]) -> str:
    attrs, x, found = cast("PadAttrs", node.attrs), shapes[0], node.type.shape
    if not len(attrs.before) == len(x) == len(found) or min(attrs.before, default=0) < 0:
        return "before must be a non-negative number for each axis of x and the result"
    for before, size, extent in zip(attrs.before, found, x, strict=True):
        if isinstance(size, int) and isinstance(extent, int) and before + extent > size:
            return f"{extent} elements after {before} do not fit {size}"
    return ""


def _text(shape: Sequence[Any]) -> str:
    return f"[{', '.join(str(s) if not isinstance(s, tuple) else _text(s) for s in shape)}]"


_RULES: Mapping[str, Callable[[Node, Sequence[tuple[Size, ...]]], str]] = {
    "conv2d": _conv2d, "pool": _pool, "resize": _resize, "concat": _concat, "slice": _slice, "pad": _pad,
}  # fmt: skip

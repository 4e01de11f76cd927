"""Rules of simplify for the nodes that only move elements: slices, joins and pads."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sparsec.ir.attributes import ConcatAttrs, PadAttrs, SliceAttrs, TransposeAttrs
from sparsec.ir.graph import Node, Op, replace
from sparsec.ir.types import PLAIN, Type

if TYPE_CHECKING:
    from sparsec.ir.dims import Size
    from sparsec.passes.simplify import Rewriter


def merge_slices(state: Rewriter, n: Node) -> Node:
    """A slice of a slice is one slice."""
    source = state.nodes[n.args[0]]
    if source.op is not Op.SLICE:
        return n
    outer, inner = cast(SliceAttrs, n.attrs), cast(SliceAttrs, source.attrs)
    axes = range(len(outer.begin))
    begin = tuple(inner.begin[a] + inner.step[a] * outer.begin[a] for a in axes)
    step = tuple(inner.step[a] * outer.step[a] for a in axes)
    return replace(n, args=source.args, attrs=SliceAttrs(begin, step))


def slice_part(state: Rewriter, n: Node) -> Node:
    """A slice of a join that lies inside one part reads that part only."""
    source, attrs = state.nodes[n.args[0]], cast(SliceAttrs, n.attrs)
    if source.op is not Op.CONCAT:
        return n
    axis = cast(ConcatAttrs, source.attrs).axis
    size, before = n.type.shape[axis], 0
    for part in source.args:
        extent = state.type_of(part).shape[axis]
        if not isinstance(extent, int) or not isinstance(size, int):
            return n
        last = attrs.begin[axis] + max(size - 1, 0) * attrs.step[axis]
        if before <= attrs.begin[axis] and last < before + extent:
            begin = (*attrs.begin[:axis], attrs.begin[axis] - before, *attrs.begin[axis + 1 :])
            return replace(n, args=(part,), attrs=SliceAttrs(begin, attrs.step))
        before += extent
    return n


def slice_before_move(state: Rewriter, n: Node) -> Node:
    """Cut first, then permute or reshape the cut: fewer elements move, and often none are left to."""
    source, attrs = state.nodes[n.args[0]], cast(SliceAttrs, n.attrs)
    if source.type.layout != PLAIN or not all(u.op is Op.SLICE for u in state.readers(source.name)):
        return n
    if source.op is Op.TRANSPOSE:
        axes = cast(TransposeAttrs, source.attrs).axes
        back = [axes.index(a) for a in range(len(axes))]
        shape: tuple[Size, ...] = tuple(n.type.shape[a] for a in back)
        found = SliceAttrs(tuple(attrs.begin[a] for a in back), tuple(attrs.step[a] for a in back))
    elif source.op is Op.RESHAPE and (kept := _kept_axes(state.type_of(source.args[0]), n, source)):
        inner = state.type_of(source.args[0]).shape
        shape = (*n.type.shape[:kept], *inner[kept:])
        rest = len(inner) - kept
        found = SliceAttrs((*attrs.begin[:kept], *(0,) * rest), (*attrs.step[:kept], *(1,) * rest))
    else:
        return n
    cut = state.add(f"{n.name}_cut", Op.SLICE, source.args, Type(shape, n.type.dtype), found)
    return replace(source, name=n.name, args=(cut,), type=n.type)


def _kept_axes(inner: Type, n: Node, source: Node) -> int:
    """How many leading axes a reshape leaves alone, if a slice of it cuts only these; else 0."""
    before, after = inner.shape, source.type.shape
    kept = 0
    while kept < min(len(before), len(after)) and before[kept] == after[kept]:
        kept += 1
    attrs = cast(SliceAttrs, n.attrs)
    whole = after[kept:] == n.type.shape[kept:] and not any(attrs.begin[kept:])
    return kept if whole else 0


def drop_slice(state: Rewriter, n: Node) -> Node | str:
    """A slice of everything is its source."""
    attrs = cast(SliceAttrs, n.attrs)
    whole = n.op is Op.SLICE and state.type_of(n.args[0]) == n.type and not any(attrs.begin)
    return n.args[0] if whole else n


def drop_pad(state: Rewriter, n: Node) -> Node | str:
    """A pad by nothing is its source; a pad of a pad is one pad."""
    if state.type_of(n.args[0]) == n.type:
        return n.args[0]
    source, attrs = state.nodes[n.args[0]], cast(PadAttrs, n.attrs)
    inner = source.attrs
    if not isinstance(inner, PadAttrs) or inner.value != attrs.value:
        return n
    before = tuple(a + b for a, b in zip(attrs.before, inner.before, strict=True))
    return replace(n, args=source.args, attrs=PadAttrs(before, attrs.value))


def pad_after_reshape(state: Rewriter, n: Node) -> Node | str:
    """A reshape that only adds or drops axes of size 1 comes before a pad: windows take pads in."""
    source = state.nodes[n.args[0]]
    if n.op is not Op.RESHAPE or source.op is not Op.PAD or len(state.readers(source.name)) > 1:
        return n
    outer, inner = source.type.shape, state.type_of(source.args[0]).shape
    kept = [a for a, size in enumerate(outer) if size != 1]
    if [outer[a] for a in kept] != [size for size in n.type.shape if size != 1]:
        return n
    attrs, left = cast(PadAttrs, source.attrs), iter(kept)
    axes = [None if size == 1 else next(left) for size in n.type.shape]
    shape = tuple(1 if a is None else inner[a] for a in axes)
    view = state.add(f"{n.name}_view", Op.RESHAPE, source.args, Type(shape, n.type.dtype), None)
    before = tuple(0 if a is None else attrs.before[a] for a in axes)
    return replace(n, op=Op.PAD, args=(view,), attrs=PadAttrs(before, attrs.value))


def merge_concats(state: Rewriter, n: Node) -> Node | str:
    """A join of joins along the same axis is one join; of one part, that part."""
    parts: list[str] = []
    for arg in n.args:
        source = state.nodes[arg]
        inner = source.op is Op.CONCAT and source.attrs == n.attrs
        parts += source.args if inner else [arg]
    return parts[0] if len(parts) == 1 else replace(n, args=tuple(parts))


def drop_same_size(state: Rewriter, n: Node) -> Node | str:
    """Resampling to the size there was."""
    return n.args[0] if state.type_of(n.args[0]) == n.type else n

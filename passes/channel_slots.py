"""Follows channels through a graph: which belong together, which hold one number, which are read.

A layer's outputs are its channels.  What computes channel by channel (elementwise code, pooling,
depthwise convolution, reductions over other axes) keeps them, what moves values moves them, and
what adds two values binds theirs together.  Everything else reads all it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import (
    AttentionAttrs,
    ConcatAttrs,
    ConvAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    PadAttrs,
    PoolAttrs,
    ReduceAttrs,
    SliceAttrs,
    TransposeAttrs,
)
from sparsec.ir.dims import product
from sparsec.ir.graph import Graph, Node, Op
from sparsec.passes.known_values import along, evaluated
from sparsec.targets.layers import is_depthwise

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """The channels of a value, along one axis.

    ``slots``: numbers, equal or bound together where channels can only go together;
    ``constants``: what a channel holds everywhere and always, NaN where that is not one number.
    """

    axis: int
    slots: Array
    constants: Array

    def picked(self, places: Any, axis: int | None = None) -> Channels:
        """Some of the channels, or all of them along another axis."""
        return Channels(self.axis if axis is None else axis, self.slots[places], self.constants[places])


class ChannelSlots:
    """What was found in a graph: the channels of every value that has any (``found``), and which are read."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.nodes = graph, graph.node_map()
        self.found: dict[str, Channels] = {}
        self._count = 0
        self._bound: list[tuple[Array, Array]] = []
        self._read: list[Array] = []
        for n in graph.nodes:
            rule = _RULES.get(n.op)
            found = rule(self, n) if rule is not None else None
            if found is not None:
                self.found[n.name] = found
            elif n.op is not Op.CONST:
                self.read_all(n.args)
        self.read_all(graph.outputs)

    def new(self, count: int) -> Array:
        """Slots that nothing is known of."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def bind(self, slots: Array, others: Array) -> None:
        """Make channels stay or go together."""
        self._bound.append((slots, others))

    def read(self, slots: Array) -> None:
        """Note that somebody needs these."""
        if len(slots):
            self._read.append(slots)

    @property
    def reads(self) -> int:
        """How often something was noted."""
        return len(self._read)

    def read_all(self, values: Iterable[str]) -> None:
        """Note that all of some values is needed."""
        for value in values:
            if value in self.found:
                self.read(self.found[value].slots)

    def needed(self) -> Array:
        """For every slot, whether it, or one that is bound to it, is read."""
        needed = np.zeros(self._count, bool)
        for slots in self._read:
            needed[slots] = True
        while True:
            before = int(needed.sum())
            for slots, others in (*self._bound, *reversed(self._bound)):
                either = needed[slots] | needed[others]
                needed[slots] |= either
                needed[others] |= either
            if int(needed.sum()) == before:
                return needed

    def met(self, n: Node) -> Channels | None:
        """The channels that the inputs of a layer's weight meet; None for grouped convolutions."""
        x, groups = self.found.get(n.args[0]), n.attrs.groups if isinstance(n.attrs, ConvAttrs) else 1
        axis = 1 if n.op is Op.CONV2D else len(self.nodes[n.args[0]].type.shape) - 1
        return x if x is not None and x.axis == axis and groups == 1 else None

    def weight(self, n: Node) -> Array | None:
        """The weight of a layer of nothing but its product: a matmul or a convolution."""
        array = self.graph.consts.get(n.args[1])
        fitting = array is not None and array.dtype == np.float32 and array.size
        attrs = cast(MatmulAttrs | ConvAttrs, n.attrs)
        alone = len(n.args) == 2 and attrs.epilogue is None and not n.choice
        rank = 2 if n.op is Op.MATMUL else 4
        return array if array is not None and fitting and alone and array.ndim == rank else None


def _layer(state: ChannelSlots, n: Node) -> Channels | None:
    weight = state.weight(n)
    if weight is None:
        return None
    if n.op is Op.CONV2D and cast(ConvAttrs, n.attrs).groups != 1:
        return _depthwise(state, n, weight) if is_depthwise(state.nodes, n) else None
    used = weight != 0
    inputs, outputs = (0, 1) if n.op is Op.MATMUL else (1, 0)
    x = state.met(n)
    if x is None:
        state.read_all(n.args[:1])
    else:
        state.read(x.slots[used.any(tuple(a for a in range(used.ndim) if a != inputs))])
    dead = ~used.any(tuple(a for a in range(used.ndim) if a != outputs))
    axis = len(n.type.shape) - 1 if n.op is Op.MATMUL else 1
    return Channels(axis, state.new(len(dead)), np.where(dead, 0.0, np.nan))


def _depthwise(state: ChannelSlots, n: Node, weight: Array) -> Channels | None:
    x = state.found.get(n.args[0])
    if x is None or x.axis != 1 or len(weight) != len(x.slots):
        return None
    sums = weight.astype(np.float64).sum((1, 2, 3))
    dead = (x.constants == 0) | ~weight.any((1, 2, 3))
    other = np.nan if any(cast(ConvAttrs, n.attrs).padding) else x.constants * sums
    return Channels(1, x.slots, np.where(dead, 0.0, other))


def _elementwise(state: ChannelSlots, n: Node) -> Channels | None:
    shapes = [state.nodes[a].type.shape for a in n.args]
    every = {i: state.found[a] for i, a in enumerate(n.args) if a in state.found}
    behind = {i: c.axis - len(shapes[i]) for i, c in every.items()}
    tracked = {i: c for i, c in every.items() if n.type.shape[behind[i]] == len(c.slots)}
    if len({behind[i] for i in tracked}) != 1:
        return None
    axis = next(behind[i] for i in tracked)
    first = next(iter(tracked.values()))
    size = len(first.slots)
    for i, arg in enumerate(n.args):
        alike = len(shapes[i]) < -axis or shapes[i][axis] == 1
        if i not in tracked and arg not in state.graph.consts and not alike:
            return None
    state.read_all(n.args[i] for i in every if i not in tracked)
    for other in list(tracked.values())[1:]:
        state.bind(first.slots, other.slots)
    operands = [
        tracked[i].constants if i in tracked else along(state.graph.consts.get(a), axis, size)
        for i, a in enumerate(n.args)
    ]
    constants = evaluated(cast(ElementwiseAttrs, n.attrs).expr, operands, size)
    if not n.type.dtype.startswith("float"):
        constants = np.full(size, np.nan)  # whole numbers divide otherwise
    return Channels(axis + len(n.type.shape), first.slots, constants)


def _attention(state: ChannelSlots, n: Node) -> Channels | None:
    """A head goes as a whole: its queries, keys and values with what it makes of them."""
    heads = cast(AttentionAttrs, n.attrs).heads
    parts = [c for a in n.args[:3] if (c := state.found.get(a)) is not None and c.axis == 2]
    masks = [state.nodes[a].type.shape for a in n.args[3:]]
    if len(parts) < 3 or any(len(shape) > 2 and shape[-3] != 1 for shape in masks):
        return None
    first, *others = (column for c in parts for column in c.slots.reshape(heads, -1).T)
    for other in others:
        state.bind(first, other)
    return parts[2]


def _pool(state: ChannelSlots, n: Node) -> Channels | None:
    x, attrs = state.found.get(n.args[0]), cast(PoolAttrs, n.attrs)
    if x is None or x.axis != 1:
        return None
    thinned = attrs.kind == "mean" and attrs.count_padding and any(attrs.padding)
    return Channels(1, x.slots, np.where(x.constants == 0, 0.0, np.nan) if thinned else x.constants)


def _resize(state: ChannelSlots, n: Node) -> Channels | None:
    x = state.found.get(n.args[0])
    return x if x is not None and x.axis == 1 else None


def _reduce(state: ChannelSlots, n: Node) -> Channels | None:
    x, attrs = state.found.get(n.args[0]), cast(ReduceAttrs, n.attrs)
    if x is None or x.axis in attrs.axes:
        return None
    axis = x.axis if attrs.keepdims else x.axis - sum(a < x.axis for a in attrs.axes)
    constants = np.where(x.constants == 0, 0.0, np.nan) if attrs.kind == "sum" else x.constants
    return Channels(axis, x.slots, constants)


def _transpose(state: ChannelSlots, n: Node) -> Channels | None:
    x = state.found.get(n.args[0])
    return None if x is None else x.picked(slice(None), cast(TransposeAttrs, n.attrs).axes.index(x.axis))


def _reshape(state: ChannelSlots, n: Node) -> Channels | None:
    """The axis kept, joined with axes after it, or split."""
    x = state.found.get(n.args[0])
    if x is None:
        return None
    old, new, size = state.nodes[n.args[0]].type.shape, n.type.shape, len(x.slots)
    before, after = product(old[: x.axis]), product(old[x.axis + 1 :])
    splits: list[tuple[int, int, Array]] = []
    for axis, wide in enumerate(new):
        outer, inner = product(new[:axis]), product(new[axis + 1 :])
        if not isinstance(wide, int) or not wide:
            continue
        if outer == before and wide % size == 0 and inner * (wide // size) == after:
            return x.picked(np.repeat(np.arange(size), wide // size), axis)
        places = np.arange(size)
        if wide > 1 and size % wide == 0 and outer == before and inner == after * (size // wide):
            splits.append((wide, axis, places.reshape(wide, -1)))
        elif wide > 1 and size % wide == 0 and inner == after and outer == before * (size // wide):
            splits.append((wide, axis, places.reshape(-1, wide).T))
    return _split(state, x, *max(splits, key=lambda s: s[:2])[1:]) if splits else None


def _split(state: ChannelSlots, x: Channels, axis: int, places: Array) -> Channels:
    """Along the largest part of an axis that was split: what one index of it holds goes together."""
    slots, constants = x.slots[places], x.constants[places]
    for left, right in pairwise(slots.T):
        state.bind(left, right)
    same = (constants == constants[:, :1]).all(1)
    return Channels(axis, slots[:, 0], np.where(same, constants[:, 0], np.nan))


def _concat(state: ChannelSlots, n: Node) -> Channels | None:
    axis = cast(ConcatAttrs, n.attrs).axis
    parts = [state.found.get(a) for a in n.args]
    axes = {c.axis for c in parts if c is not None}
    if len(axes) != 1:
        return None
    if axes != {axis}:
        return _side_by_side([c for c in parts if c is not None], state) if None not in parts else None
    every: list[Channels] = []
    for arg, part in zip(n.args, parts, strict=True):
        size = state.nodes[arg].type.shape[axis]
        if part is None and isinstance(size, int):
            part = Channels(axis, state.new(size), np.full(size, np.nan))
            state.read(part.slots)
        if part is None:
            return None
        every.append(part)
    slots, constants = (np.concatenate([getattr(c, k) for c in every]) for k in ("slots", "constants"))
    return Channels(axis, slots, constants)


def _side_by_side(parts: Sequence[Channels], state: ChannelSlots) -> Channels | None:
    """Values joined along another axis: their channels go together."""
    first, *others = parts
    if any(len(c.slots) != len(first.slots) for c in others):
        return None
    constants = first.constants
    for other in others:
        state.bind(first.slots, other.slots)
        constants = np.where(constants == other.constants, constants, np.nan)
    return Channels(first.axis, first.slots, constants)


def _slice(state: ChannelSlots, n: Node) -> Channels | None:
    x, attrs = state.found.get(n.args[0]), cast(SliceAttrs, n.attrs)
    if x is None or attrs.step[x.axis] != 1 or not n.type.shape[x.axis]:
        return None
    begin, size = attrs.begin[x.axis], cast(int, n.type.shape[x.axis])
    return x.picked(slice(begin, begin + size))


def _pad(state: ChannelSlots, n: Node) -> Channels | None:
    x, attrs = state.found.get(n.args[0]), cast(PadAttrs, n.attrs)
    if x is None or n.type.shape[x.axis] != len(x.slots):
        return None
    return Channels(x.axis, x.slots, np.where(x.constants == attrs.value, x.constants, np.nan))


_Rule: TypeAlias = Callable[[ChannelSlots, Node], Channels | None]
_RULES: Mapping[Op, _Rule] = {
    Op.MATMUL: _layer, Op.CONV2D: _layer, Op.ATTENTION: _attention, Op.ELEMENTWISE: _elementwise,
    Op.POOL: _pool, Op.RESIZE: _resize, Op.REDUCE: _reduce, Op.TRANSPOSE: _transpose,
    Op.RESHAPE: _reshape, Op.CONCAT: _concat, Op.SLICE: _slice, Op.PAD: _pad,
}  # fmt: skip

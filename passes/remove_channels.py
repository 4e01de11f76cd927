"""remove_channels: channels that nobody reads go, and with them rows and columns of weights."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import AttentionAttrs, ConvAttrs, MatmulAttrs, Removed, SliceAttrs
from sparsec.ir.graph import Graph, Node, Op, const_node, fresh_name, replace, with_nodes
from sparsec.passes.channel_slots import Channels, ChannelSlots
from sparsec.passes.fold_constant_channels import fold_constant_channels
from sparsec.sparsity.pattern import infer
from sparsec.targets.layers import is_depthwise, weight_matrix
from sparsec.targets.target import Target

Array: TypeAlias = NDArray[Any]

#: fewer than this share of a layer's outputs are not worth loops with a ragged end
LEAST_SHARE = 1 / 16
#: kernels for GPUs read vectors of so many elements
GPU_MULTIPLE = 8


def remove_channels(graph: Graph, target: Target) -> Graph:
    """Make dense what structured pruning left: filters, neurons and channels of zeros are taken out.

    A channel goes when every weight that meets it is zero and nothing else reads it; a filter of zeros makes
    one number, which is folded into the layers that read it first (:mod:`fold_constant_channels`).
    The graph computes the same; inputs and outputs keep their shapes.  Weights in blocks or N:M
    lose whole blocks or groups only, attention whole heads.  ``MatmulAttrs.removed`` and
    ``ConvAttrs.removed`` say what went.
    """
    while True:
        after = _without_unread(fold_constant_channels(graph), target)
        if after is graph:
            return graph
        graph = after


def _without_unread(graph: Graph, target: Target) -> Graph:
    slots = ChannelSlots(graph)
    kept = _kept(slots, target)
    if kept.all():
        return graph
    _bind_structures(slots, kept)
    kept = _kept(slots, target)
    return graph if kept.all() else _Removal(slots, kept).run()


def _kept(slots: ChannelSlots, target: Target) -> Array:
    """For every slot, whether it stays: nothing loses all, no layer next to nothing; GPUs keep multiples."""
    multiple = GPU_MULTIPLE if target.gpu else 1
    while True:
        kept, before = slots.needed(), slots.reads
        for name, channels in slots.found.items():
            gone = channels.slots[~kept[channels.slots]]
            left = len(channels.slots) - len(gone)
            short = -left % multiple if left else 1
            layer = slots.nodes[name].op in (Op.MATMUL, Op.CONV2D)
            few = layer and len(gone) - short < LEAST_SHARE * len(channels.slots)
            slots.read(gone if few else gone[:short])
        if slots.reads == before:
            return kept


def _bind_structures(slots: ChannelSlots, kept: Array) -> None:
    """Channels of one block or group of a weight that would lose some go together."""
    for n in slots.graph.nodes:
        if n.op not in (Op.MATMUL, Op.CONV2D) or n.name not in slots.found:
            continue
        weight = slots.weight(n)
        x, y = slots.met(n), slots.found[n.name]
        mine = [c for c in (x, y) if c is not None and not kept[c.slots].all()]
        if weight is None or not mine or is_depthwise(slots.nodes, n):
            continue
        pattern = infer(weight_matrix(n, weight))
        rows = columns = 1
        if pattern.nm_best is not None:
            rows, columns = (1, pattern.nm_best.m) if pattern.nm_best.axis else (pattern.nm_best.m, 1)
        elif pattern.block is not None:
            rows, columns = pattern.block.rows, pattern.block.columns
        for channels, step in ((x, columns), (y, rows)):
            if channels is not None and step > 1:
                _bind_runs(slots, channels, step)


def _bind_runs(slots: ChannelSlots, channels: Channels, step: int) -> None:
    """Every ``step`` channels in a row; what is left over at the end stays."""
    whole = len(channels.slots) // step * step
    runs = channels.slots[:whole].reshape(-1, step)
    for i in range(1, step):
        slots.bind(runs[:, 0], runs[:, i])
    slots.read(channels.slots[whole:])


class _Removal:
    """Builds the smaller graph."""

    def __init__(self, slots: ChannelSlots, kept: Array) -> None:
        self.slots, self.kept, self.graph = slots, kept, slots.graph
        self.consts: dict[str, Array] = dict(self.graph.consts)
        self.taken = {n.name for n in self.graph.nodes}
        self.built: list[Node] = []

    def run(self) -> Graph:
        """The graph without the channels that are not kept."""
        for n in self.graph.nodes:
            self.built.append(self._smaller(n))
        return with_nodes(self.graph, self.built, self.consts)

    def _mask(self, value: str) -> Array | None:
        """Which channels of a value stay; None where all do."""
        channels = self.slots.found.get(value)
        mask = None if channels is None else self.kept[channels.slots]
        return None if mask is None or mask.all() else mask

    def _smaller(self, n: Node) -> Node:
        if n.op in (Op.MATMUL, Op.CONV2D):
            n = self._layer(n)
        elif n.op is Op.SLICE and n.name in self.slots.found:
            n = self._slice(n, self.slots.found[n.name].axis)
        own = self._mask(n.name)
        if own is None:
            return n
        axis = self.slots.found[n.name].axis
        if isinstance(n.attrs, AttentionAttrs):
            whole = own.reshape(n.attrs.heads, -1)[:, 0]
            n = replace(n, attrs=replace(n.attrs, heads=int(whole.sum())))
        if n.op is Op.ELEMENTWISE:
            n = replace(n, args=tuple(self._operand(a, n, axis, own) for a in n.args))
        shape = (*n.type.shape[:axis], int(own.sum()), *n.type.shape[axis + 1 :])
        return replace(n, type=replace(n.type, shape=shape))

    def _layer(self, n: Node) -> Node:
        """Rows and columns of the weight gone."""
        if self.slots.weight(n) is None:
            return n
        rows, columns = self._mask(n.name), self._mask(n.args[0])
        depthwise = isinstance(n.attrs, ConvAttrs) and n.attrs.groups != 1
        if depthwise:
            columns = None
        if rows is None and columns is None:
            return n
        weight = self.consts[n.args[1]]
        row_axis, column_axis = (1, 0) if n.op is Op.MATMUL else (0, 1)
        for mask, axis in ((rows, row_axis), (columns, column_axis)):
            weight = weight if mask is None else np.compress(mask, weight, axis)
        attrs = cast(MatmulAttrs | ConvAttrs, n.attrs)
        removed = Removed(_with(attrs.removed.outputs, rows), _with(attrs.removed.inputs, columns))
        attrs = replace(attrs, removed=removed)
        if depthwise:
            attrs = replace(cast(ConvAttrs, attrs), groups=len(weight))
        return replace(n, args=(n.args[0], self._const(n.args[1], weight)), attrs=attrs)

    def _operand(self, arg: str, n: Node, axis: int, mask: Array) -> str:
        """A constant operand of elementwise code cut to the channels that stay."""
        array = self.graph.consts.get(arg)
        behind = axis - len(n.type.shape)
        if array is None or array.ndim < -behind or array.shape[behind] == 1:
            return arg
        return self._const(arg, np.compress(mask, array, array.ndim + behind))

    def _slice(self, n: Node, axis: int) -> Node:
        mask, attrs = self._mask(n.args[0]), cast(SliceAttrs, n.attrs)
        if mask is None:
            return n
        begin = list(attrs.begin)
        begin[axis] = int(mask[: begin[axis]].sum())
        return replace(n, attrs=replace(attrs, begin=tuple(begin)))

    def _const(self, stem: str, array: Array) -> str:
        name = fresh_name(f"{stem}_kept", self.taken)
        self.taken.add(name)
        self.consts[name] = np.ascontiguousarray(array)
        self.built.append(const_node(name, self.consts[name]))
        return name


def _with(removed: tuple[int, ...], mask: Array | None) -> tuple[int, ...]:
    """The places removed before, and those of what was left that a mask does not keep."""
    if mask is None:
        return removed
    left = np.setdiff1d(np.arange(len(mask) + len(removed)), removed)
    return tuple(sorted((*removed, *left[~mask].tolist())))

"""fold_constant_channels: layers stop reading channels that hold one number whatever the input is."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import ConvAttrs, ElementwiseAttrs
from sparsec.ir.expr import Arg, call
from sparsec.ir.graph import Graph, Node, Op, const_node, fresh_name, replace, with_nodes
from sparsec.passes.channel_slots import ChannelSlots
from sparsec.sparsity.pattern import infer
from sparsec.targets.layers import weight_matrix

Array: TypeAlias = NDArray[Any]


def fold_constant_channels(graph: Graph) -> Graph:
    """Zero the weights that meet a channel of one number, and add what they made of it to the result.

    A channel whose filter is zero is the bias, and what follows makes of it, for every input.  Where a
    convolution meets that number beside padding, one such channel stands for all of them.
    """
    slots = ChannelSlots(graph)
    folding = _Folding(graph, slots)
    for n in graph.nodes:
        folding.visit(n)
    return with_nodes(graph, folding.built, folding.consts) if folding.changed else graph


class _Folding:
    def __init__(self, graph: Graph, slots: ChannelSlots) -> None:
        self.slots = slots
        self.built: list[Node] = []
        self.consts: dict[str, Array] = dict(graph.consts)
        self.taken = {n.name for n in graph.nodes}
        self.changed = False

    def visit(self, n: Node) -> None:
        """Emit a node, and what became of its constant inputs."""
        constants = self._constants(n)
        if constants is None:
            self.built.append(n)
            return
        stored = self.consts[n.args[1]]
        weight = _inputs_first(n, stored)
        others = ~np.isnan(constants) & (constants != 0)
        after, shift = np.where((constants == 0)[:, None, None], 0, weight), None
        if others.any() and n.op is Op.CONV2D and any(cast(ConvAttrs, n.attrs).padding):
            if others.sum() > 1 and not _structured(n, stored):
                after = _gathered(after, constants, others)
        elif others.any():
            shift = np.einsum("c,cot->o", np.where(others, constants, 0), weight.astype(np.float64))
            after = np.where(others[:, None, None], 0, after)
        if np.array_equal(weight, after):
            self.built.append(n)
        else:
            self._emit(n, _as_stored(n, after, stored.shape), shift)

    def _constants(self, n: Node) -> Array | None:
        """The number each input of a layer holds, NaN where it is none or is not read."""
        if n.op not in (Op.MATMUL, Op.CONV2D) or (weight := self.slots.weight(n)) is None:
            return None
        if (x := self.slots.met(n)) is None:
            return None
        known = np.where(_inputs_first(n, weight).any((1, 2)), x.constants, np.nan)
        return None if np.isnan(known).all() else known

    def _emit(self, n: Node, weight: Array, shift: Array | None) -> None:
        self.changed = True
        name = self._const(f"{n.args[1]}_read", weight)
        n = replace(n, args=(n.args[0], name))
        if shift is None:
            self.built.append(n)
            return
        axes = (1, 1) if n.op is Op.CONV2D else ()
        bias = self._const(f"{name}_bias", shift.astype(np.float32).reshape(-1, *axes))
        product = fresh_name(f"{n.name}_product", self.taken)
        self.taken.add(product)
        total = ElementwiseAttrs(call("add", Arg(0), Arg(1)))
        self.built.append(replace(n, name=product))
        self.built.append(replace(n, op=Op.ELEMENTWISE, args=(product, bias), attrs=total))

    def _const(self, stem: str, array: Array) -> str:
        name = fresh_name(stem, self.taken)
        self.taken.add(name)
        self.consts[name] = np.ascontiguousarray(array)
        self.built.append(const_node(name, self.consts[name]))
        return name


def _inputs_first(n: Node, weight: Array) -> Array:
    """A weight as [inputs, outputs, taps]."""
    if n.op is Op.MATMUL:
        return weight[:, :, None]
    return weight.transpose(1, 0, 2, 3).reshape(weight.shape[1], len(weight), -1)


def _as_stored(n: Node, weight: Array, shape: tuple[int, ...]) -> Array:
    """The way back."""
    if n.op is Op.MATMUL:
        return weight.reshape(shape)
    return weight.reshape(shape[1], shape[0], *shape[2:]).transpose(1, 0, 2, 3)


def _gathered(weight: Array, constants: Array, others: Array) -> Array:
    """What meets constant inputs moved to the largest of them."""
    first = int(np.argmax(np.where(others, abs(constants), 0)))
    share = np.where(others, constants / constants[first], 0)
    after = np.where(others[:, None, None], 0, weight)
    after[first] = np.einsum("c,cot->ot", share, weight.astype(np.float64))
    return after


def _structured(n: Node, weight: Array) -> bool:
    """Whether zeros come in blocks or N:M, which a full channel would break."""
    pattern = infer(weight_matrix(n, weight))
    return pattern.block is not None or pattern.nm_best is not None

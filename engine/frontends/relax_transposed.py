"""Relax's transposed convolutions as convolutions of stride 1, without a zero inserted.

Output ``o = q * stride + f`` (phase f) reads the taps ``k = k0 + stride * j`` with
``k0 = (f + padding) mod stride``, tap j at input ``q + (f + padding) // stride - j``: for each
phase that is a correlation with every ``stride``-th tap in reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsec.frontends.relax_emit import Emitter, all_float32, ints, numbers
from sparsec.ir.attributes import ConcatAttrs, ConvAttrs, SliceAttrs, TransposeAttrs
from sparsec.ir.graph import Op

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsec.frontends.from_relax import Converter
    from sparsec.frontends.relax_emit import Rule
    from sparsec.frontends.relax_values import Value


_LAYOUTS = (("NCW", "IOW", "NCW"), ("NCHW", "IOHW", "NCHW"))


@dataclass(frozen=True)
class _Phase:
    """One axis of one phase: its taps in reading order, and the padding of its convolution."""

    taps: tuple[int, ...]
    before: int
    after: int


def _transposed(converter: Converter, relax_call: Any, name: str) -> Value:
    """Of images, or of sequences as images of height 1, by a constant weight."""
    attrs = relax_call.attrs
    weight = converter.building.consts.get(converter.node(relax_call.args[1]))
    shape, result = (converter.type(t.ty).shape for t in (relax_call.args[0], relax_call))
    usual = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) in _LAYOUTS
    if weight is None or not usual or not all_float32(relax_call) or not numbers((*shape[1:], *result[1:])):
        return None
    if set(ints(attrs.dilation)) != {1} or int(attrs.groups) != 1:
        return None
    sizes: Any = zip(shape[2:], result[2:], weight.shape[2:], attrs.strides, attrs.padding, strict=False)
    axes = [_phases(*map(int, one)) for one in sizes]
    if any(phases is None for phases in axes):
        return None
    rows, columns = axes if len(axes) == 2 else ([_Phase((0,), 0, 0)], axes[0])
    weight = weight.reshape(*weight.shape[:2], -1, weight.shape[-1])
    return _Transposed(Emitter(converter, relax_call, name), weight).emit(rows or [], columns or [])


def _phases(extent: int, result: int, kernel: int, stride: int, padding: int) -> list[_Phase] | None:
    """The phases of one axis; None where one has no taps or would have to skip elements."""
    count = -(-result // stride)
    found = []
    for phase in range(stride):
        shift, first = divmod(phase + padding, stride)
        taps = tuple(range(first, kernel, stride))[::-1]
        found.append(_Phase(taps, len(taps) - 1 - shift, count - extent + shift))
    return found if all(p.taps and p.before >= 0 and p.after >= 0 for p in found) else None


class _Transposed:
    """The nodes of one call: convolutions, their results side by side, pixels shuffled, edges cut."""

    def __init__(self, e: Emitter, weight: NDArray[Any]) -> None:
        self.e, self.weight = e, weight
        x = e.converter.node(e.call.args[0])
        shape = e.shape(x)
        self.x = e.reshape(x, (*shape[:2], 1, shape[2])) if len(shape) == 3 else x
        self.shape: Any = e.shape(self.x)

    def emit(self, rows: list[_Phase], columns: list[_Phase]) -> str:
        """One convolution where all phases read alike, else one for each."""
        phases = list(product(rows, columns))
        if _alike(rows) and _alike(columns):
            weight = np.concatenate([self._taps(r, c) for r, c in phases])
            return self._shuffled(self._conv(weight, *phases[0]), len(rows), len(columns))
        parts = [self._conv(self._taps(r, c), r, c) for r, c in phases]
        images, channels, height, width = self.e.shape(parts[0])
        joined = (images, channels * len(parts), height, width)
        every = self.e.part("phases", Op.CONCAT, parts, joined, ConcatAttrs(1))
        return self._shuffled(every, len(rows), len(columns))

    def _taps(self, row: _Phase, column: _Phase) -> NDArray[Any]:
        """The weight [M, C, R, S] of one phase."""
        return self.weight[:, :, row.taps][:, :, :, column.taps].transpose(1, 0, 2, 3)

    def _conv(self, weight: NDArray[Any], row: _Phase, column: _Phase) -> str:
        images, _, height, width = self.shape
        size = [
            extent + p.before + p.after - len(p.taps) + 1
            for extent, p in zip((height, width), (row, column), strict=True)
        ]
        args = (
            self.x,
            self.e.converter.building.add_const(f"{self.e.name}_weight", np.ascontiguousarray(weight)),
        )
        attrs = ConvAttrs(padding=(row.before, column.before, row.after, column.after))
        return self.e.part("phase", Op.CONV2D, args, (images, weight.shape[0], *size), attrs)

    def _shuffled(self, every: str, down: int, across: int) -> str:
        """[N, down * across * M, H, W] as [N, M, H * down, W * across], cut to the result."""
        e = self.e
        images, channels, height, width = e.shape(every)
        outputs = int(str(channels)) // (down * across)
        split = e.reshape(every, (images, down, across, outputs, height, width))
        moved = e.part(
            "shuffled", Op.TRANSPOSE, (split,), (images, outputs, height, down, width, across),
            TransposeAttrs((0, 3, 4, 1, 5, 2)),
        )  # fmt: skip
        whole = e.reshape(moved, (images, outputs, height * down, width * across))
        result = e.converter.type(e.call.ty).shape
        cut = (*result[:2], 1, result[2]) if len(result) == 3 else result
        if e.shape(whole) != cut:
            whole = e.part("cut", Op.SLICE, (whole,), cut, SliceAttrs((0,) * 4, (1,) * 4))
        return e.finished(whole)


def _alike(phases: Sequence[_Phase]) -> bool:
    return len({(len(p.taps), p.before, p.after) for p in phases}) == 1


TRANSPOSED: dict[str, Rule] = {
    "relax.nn.conv1d_transpose": _transposed,
    "relax.nn.conv2d_transpose": _transposed,
}

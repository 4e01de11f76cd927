"""window_moves: stages windows, and takes finished lines of positions apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.spans import spans

if TYPE_CHECKING:
    from sparsec.targets.kernels.window import Phase, Window


@dataclass(frozen=True, slots=True)
class WindowMoves:
    """Takes images into a window's planes, and lines of positions into y."""

    window: Window

    def clear(self, k: Kernel, buffer: Any, at: int, channels: int, fill: float = 0.0) -> None:
        """Fill the windows once; staging never touches the padding between rows again."""
        count = self.window.floats(channels) // self.window.lanes
        with k.loop(count) as i:
            k.put(buffer, at + i * self.window.lanes, k.splat(fill))

    def stage(
        self, k: Kernel, source: Any, base: Any, channels: Any, buffer: Any, at: Any, corner: tuple[Any, Any],
        fill: float = 0.0,
    ) -> None:  # fmt: skip
        """Copy the windows of ``channels`` channels of the tile at ``corner``.

        ``base`` is the element offset of the first channel's plane in ``source``; the windows go
        to ``buffer`` from ``at`` on.
        """
        g = self.window.geometry
        with k.loop(channels) as c:
            plane = k.bind(base + c * (g.height * g.width))
            for first, count, phase in self.window.runs:
                # a long run of phases is a loop: strides of hundreds would make endless code
                with k.loop(count) as shift:
                    target = k.bind(at + c * self.window.size + (first + shift) * self.window.plane)
                    moved = shift if count > 1 else None
                    self._stage_phase(k, source, plane, buffer, target, phase, (*corner, moved), fill)

    def _stage_phase(
        self, k: Kernel, source: Any, plane: Any, buffer: Any, target: Any, phase: Phase,
        corner: tuple[Any, Any, Any], fill: float,
    ) -> None:  # fmt: skip
        """One phase; the third of ``corner`` is the column the phase begins at, where a loop says."""
        from tvm.script.ir_builder import tirx as T

        g = self.window.geometry
        first = k.bind(corner[0] * g.strides[0] + (phase.vertical - g.padding[0]))
        lowest = (
            (g.out_height - self.window.rows + phase.rows - 1) * g.strides[0] + phase.vertical - g.padding[0]
        )
        inside = g.padding[0] == 0 and lowest < g.height

        def stage_row(row: Any, here: Any) -> None:
            if corner[2] is None:
                self._stage_row(k, source, row, buffer, here, phase, corner[1], fill)
            else:
                start = k.bind(corner[1] * g.strides[1] + (corner[2] - g.padding[1]))
                self._copy_clipped(k, source, row, start, buffer, here, phase, fill)

        with k.loop(phase.rows) as i:
            y = k.bind(first + i * g.strides[0])
            here = k.bind(target + i * self.window.pitch)
            row = k.bind(plane + y * g.width)
            if inside:
                stage_row(row, here)
            else:
                with T.If(T.And(y >= 0, y < g.height)):
                    with T.Then():
                        stage_row(row, here)
                    with T.Else():
                        self._fill_row(k, buffer, here, phase, fill, corner[2] is None)

    def _fill_row(self, k: Kernel, buffer: Any, here: Any, phase: Phase, fill: float, alone: bool) -> None:
        """A row that lies outside x."""
        low, high = self.window.data(phase) if self.window.whole_rows and alone else (0, phase.columns)
        for at, width in spans(k, high - low, self.window.lanes):
            k.put(buffer, here + low + at, k.splat(fill, width), width)

    def _stage_row(
        self, k: Kernel, source: Any, row: Any, buffer: Any, here: Any, phase: Phase, x0: Any, fill: float
    ) -> None:
        g = self.window.geometry
        stride, first = g.strides[1], phase.horizontal - g.padding[1]
        if self.window.whole_rows:
            low, high = self.window.data(phase)
            self._copy(k, source, row + (first + low * stride), buffer, here + low, high - low, stride)
            return
        start = k.bind(x0 * stride + first)
        last = (g.out_width - self.window.columns) * stride + first + (phase.columns - 1) * stride
        if first >= 0 and last < g.width:
            self._copy(k, source, row + start, buffer, here, phase.columns, stride)
            return
        self._copy_clipped(k, source, row, start, buffer, here, phase, fill)

    def _copy_clipped(
        self, k: Kernel, source: Any, row: Any, start: Any, buffer: Any, here: Any, phase: Phase, fill: float
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        stride, width = self.window.geometry.strides[1], self.window.geometry.width
        end = start + (phase.columns - 1) * stride
        with T.If(T.And(start >= 0, end < width)):
            with T.Then():
                self._copy(k, source, row + start, buffer, here, phase.columns, stride)
            with T.Else():
                for at, lanes in spans(k, phase.columns, self.window.lanes):
                    k.put(buffer, here + at, k.splat(fill, lanes), lanes)
                zero, step = k.constant(0), k.constant(stride)
                low = k.bind(T.truncdiv(T.max(zero - start, zero) + (stride - 1), step))
                after = T.truncdiv(T.max(width - start + (stride - 1), zero), step)
                high = k.bind(T.min(after, k.constant(phase.columns)))
                with k.loop(low, high) as j:
                    k.put(buffer, here + j, source[row + start + j * stride], 1)

    def _copy(
        self, k: Kernel, source: Any, begin: Any, buffer: Any, here: Any, count: int, stride: int
    ) -> None:
        for at, width in spans(k, count, self.window.lanes):
            k.put(buffer, here + at, _strided(k, source, begin + at * stride, stride, width), width)

    def store(
        self, k: Kernel, buffer: Any, at: Any, base: Any, corner: tuple[Any, Any],
        put: Callable[[Any, Any, int], None],
    ) -> None:  # fmt: skip
        """Take a finished line of positions apart: ``put(value, offset in y, lanes)`` for each vector.

        ``base`` is the element offset of the line's channel plane in y.
        """
        g = self.window.geometry
        with k.loop(self.window.rows) as i:
            here = k.bind(at + i * self.window.line_pitch)
            there = k.bind(base + (corner[0] + i) * g.out_width + corner[1])
            for step, width in spans(k, self.window.columns, self.window.lanes):
                put(k.vector(buffer, here + step, width), k.bind(there + step), width)


def _strided(k: Kernel, buffer: Any, offset: Any, stride: int, lanes: int) -> Any:
    """``lanes`` elements ``stride`` apart, without reading past the last."""
    from tvm.script.ir_builder import tirx as T

    if stride == 1 or lanes == 1:
        return k.vector(buffer, offset, lanes)
    if stride != 2:
        return buffer[T.Ramp(offset, stride, lanes)]
    first, second = (k.bind(k.vector(buffer, offset + start, lanes)) for start in (0, lanes - 1))
    half = lanes // 2
    return T.Shuffle([first, second], [2 * j if j < half else 2 * j + 1 for j in range(lanes)])

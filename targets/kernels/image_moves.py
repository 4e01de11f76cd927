"""image_moves: transposes images into an image window, and lines of vectors back into images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.shuffles import QUARTER, Registers, pick, transpose_quarters, transpose_strip
from sparsec.targets.kernels.spans import cover, spans

if TYPE_CHECKING:
    from sparsec.targets.kernels.image_window import ImageWindow


@dataclass(frozen=True, slots=True)
class ImageMoves:
    """Takes images into windows, and lines of vectors apart into images."""

    window: ImageWindow
    held: Registers
    outputs: int

    @property
    def _image(self) -> int:
        """Elements of x from one image to the next."""
        g = self.window.geometry
        return g.channels * g.height * g.width

    def clear(self, k: Kernel, buffer: Any, at: int, channels: int, fill: float = 0.0) -> None:
        """Fill the windows once; staging never touches what is padding in every tile."""
        with k.loop(self.window.floats(channels) // k.lanes) as i:
            k.put(buffer, at + i * k.lanes, k.splat(fill))

    def stage(
        self, k: Kernel, source: Any, base: Any, channels: Any, buffer: Any, at: Any, corner: tuple[Any, Any],
        fill: float = 0.0,
    ) -> None:  # fmt: skip
        """Copy the windows of ``channels`` channels of the tile at ``corner``, as Window.stage does.

        ``base`` is the element offset of the first channel's plane in the first image.
        """
        window, g = self.window, self.window.geometry
        with k.loop(channels) as c:
            plane = k.bind(base + c * (g.height * g.width))
            here = k.bind(at + c * window.size)
            if window.flat:
                self._stage_flat(k, source, plane, buffer, here)
            else:
                self._stage_rows(k, source, plane, buffer, here, corner, fill)

    def _stage_flat(self, k: Kernel, source: Any, plane: Any, buffer: Any, here: Any) -> None:
        """A whole map, four neighbours at a time whatever row they are in."""
        window, g, (down, across) = self.window, self.window.geometry, self.window.axes
        for first, count, _ in cover(g.height * g.width, QUARTER):
            for begin in range(first, first + count * QUARTER, QUARTER):
                for e, value in enumerate(self._strip(k, source, plane + begin)):
                    y, x = divmod(begin + e, g.width)
                    if y + down.padding < down.count and x + across.padding < across.count:
                        k.put(buffer, here + window.at(y + down.padding, x + across.padding), value)

    def _stage_rows(
        self, k: Kernel, source: Any, plane: Any, buffer: Any, here: Any, corner: tuple[Any, Any], fill: float
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        window, g, (down, across) = self.window, self.window.geometry, self.window.axes
        first = down.start(k, corner[0])
        low, high = down.data if down.whole else (0, down.count)
        with k.loop(low, high) as i:
            y = k.bind(first + i * down.unit)
            there = k.bind(here + i * (across.count * window.lanes))
            row = k.bind(plane + y * g.width)
            if down.whole or down.inside:
                self._stage_row(k, source, row, buffer, there, corner[1], fill)
                return
            with T.If(T.And(y >= 0, y < g.height)):
                with T.Then():
                    self._stage_row(k, source, row, buffer, there, corner[1], fill)
                with T.Else():
                    self._fill(k, buffer, there, across.data if across.whole else (0, across.count), fill)

    def _stage_row(
        self, k: Kernel, source: Any, row: Any, buffer: Any, here: Any, corner: Any, fill: float
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        across = self.window.axes[1]
        start = across.start(k, corner)
        if across.whole or across.inside:
            low, high = across.data if across.whole else (0, across.count)
            self._copy(k, source, row + start + low * across.unit, buffer, here + low * k.lanes, high - low)
            return
        end = start + (across.count - 1) * across.unit
        with T.If(T.And(start >= 0, end < across.size)):
            with T.Then():
                self._copy(k, source, row + start, buffer, here, across.count)
            with T.Else(), k.loop(across.count) as j:
                x = k.bind(start + j * across.unit)
                with T.If(T.And(x >= 0, x < across.size)):
                    with T.Then():
                        k.put(buffer, here + j * k.lanes, self._column(k, source, row + x))
                    with T.Else():
                        k.put(buffer, here + j * k.lanes, k.splat(fill))

    def _fill(self, k: Kernel, buffer: Any, here: Any, columns: tuple[int, int], fill: float) -> None:
        with k.loop(*columns) as j:
            k.put(buffer, here + j * k.lanes, k.splat(fill))

    def _copy(self, k: Kernel, source: Any, begin: Any, buffer: Any, here: Any, count: int) -> None:
        """So many columns of a row, the first ``begin`` elements into the first image."""
        unit = self.window.axes[1].unit
        span = self.window.strips(count)
        if not span:
            with k.loop(count) as j:
                k.put(buffer, here + j * k.lanes, self._column(k, source, begin + j * unit))
            return
        for first, strips, _ in cover(span, QUARTER):
            with k.loop(strips) as strip:
                values = self._strip(k, source, begin + (first + strip * QUARTER))
                for e, value in enumerate(values):
                    column, rest = divmod(first + e, unit)
                    if rest == 0:
                        k.put(buffer, here + (column + strip * (QUARTER // unit)) * k.lanes, value)

    def _column(self, k: Kernel, source: Any, begin: Any) -> Any:
        """One element of every image."""
        from tvm.script.ir_builder import tirx as T

        return source[T.Ramp(begin, self._image, k.lanes)]

    def _strip(self, k: Kernel, source: Any, begin: Any) -> list[Any]:
        """Four neighbours of every image, one vector each."""
        self.held.forget()
        return transpose_strip(
            k, self.held, lambda image: k.vector(source, begin + image * self._image, QUARTER), k.lanes
        )

    def store(
        self, k: Kernel, buffer: Any, at: Any, base: Any, corner: tuple[Any, Any],
        put: Callable[[Any, Any, int], None],
    ) -> None:  # fmt: skip
        """Take a finished line apart: ``put(value, offset in y, lanes)`` for each part of an image's row.

        ``base`` is the element offset of the line's channel plane of the first image in y.
        """
        window, g = self.window, self.window.geometry
        with k.loop(window.vectors // window.run) as i:
            here = k.bind(at + i * (window.run * k.lanes))
            there = k.bind(base + (corner[0] + i) * g.out_width + corner[1])
            for step, width in spans(k, window.run, QUARTER):
                for image, value in self._parts(k, buffer, here + step * k.lanes, width):
                    put(value, k.bind(there + step + image * (self.outputs * g.positions)), width)

    def _parts(self, k: Kernel, buffer: Any, at: Any, width: int) -> Iterator[tuple[int, Any]]:
        """Each image's elements of ``width`` vectors."""
        self.held.forget()
        rows = [k.bind(k.vector(buffer, at + j * k.lanes)) for j in range(width)]
        if width == QUARTER:
            for i, vector in enumerate(transpose_quarters(self.held, rows)):
                for image in range(i, k.lanes, QUARTER):
                    yield image, pick([vector], range(image - i, image - i + QUARTER))
            return
        for image in range(k.lanes):
            yield image, pick(rows, [image + j * k.lanes for j in range(width)])

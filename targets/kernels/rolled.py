"""rolled: a plane of one channel with loops over its taps, where a stencil would be too much code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.spans import spans


def roll(
    k: Kernel, geometry: Geometry, planes: tuple[Any, Any], registers: tuple[Any, Any], begin: float,
    step: Callable[[Any, Any, Any], Any], put: Callable[[Any, Any, int, Any, Any], None],
) -> None:  # fmt: skip
    """A plane with loops over its taps: ``step(accumulator, x, tap)``, ``tap`` counted row by row.

    ``put(value, offset in y, lanes, row, column)`` stores.  ``registers`` are four vectors and a
    number (see :func:`registers_of`).
    """
    g, lanes = geometry, k.lanes
    reach = (g.kernel[1] - 1) * g.dilation[1]
    low = min(g.out_width, -(-g.padding[1] // g.strides[1]))
    high = max(low, min(g.out_width, (g.width - 1 - reach + g.padding[1]) // g.strides[1] + 1))
    whole = (k.constant(0), k.constant(g.kernel[1]))

    def place(i: Any, j: Any, width: int, columns: tuple[Any, Any]) -> None:
        count, wide = -(-width // lanes), min(width, lanes)
        held = registers[width < lanes]
        top = k.bind(i * g.strides[0] - g.padding[0])
        rows = clip(k, top, g.kernel[0], g.dilation[0], 0, g.height)
        x = k.bind(planes[0] + top * g.width + (j * g.strides[1] - g.padding[1]))
        for v in range(count):
            k.assign(held, v, k.splat(begin, wide))
        with k.loop(*rows) as r, k.loop(*columns) as s:
            at = k.bind(x + (r * (g.dilation[0] * g.width) + s * g.dilation[1]))
            for v in range(count):
                value = _spaced(k, at + v * lanes * g.strides[1], g.strides[1], wide)
                k.assign(held, v, step(held[v], value, r * g.kernel[1] + s))
        for v in range(count):
            put(held[v], k.bind(planes[1] + i * g.out_width + (j + v * lanes)), wide, i, j)

    with k.loop(g.out_height) as i:
        for start, stop in ((0, low), (high, g.out_width)):
            if start < stop:
                with k.loop(start, stop) as j:
                    left = k.bind(j * g.strides[1] - g.padding[1])
                    place(i, j, 1, clip(k, left, g.kernel[1], g.dilation[1], 0, g.width))
        for at, width in spans(k, high - low, 4 * lanes):
            if width >= lanes:
                place(i, k.bind(low + at), width, whole)
            else:
                with k.loop(width) as j:
                    place(i, k.bind(low + at + j), 1, whole)


def registers_of(k: Kernel) -> tuple[Any, Any]:
    """What :func:`roll` counts in, to be made at the start of a kernel."""
    return k.registers(4), k.registers(1, 1)


def clip(k: Kernel, start: Any, taps: int, dilation: int, low: int, high: int) -> tuple[Any, Any]:
    """The taps [first, end) at ``start + tap * dilation`` that lie at [low, high)."""
    from tvm.script.ir_builder import tirx as T

    def least(bound: int) -> Any:
        steps = T.truncdiv(T.max(k.constant(0), bound + dilation - 1 - start), k.constant(dilation))
        return k.bind(T.min(k.constant(taps), steps))

    first, end = least(low), least(high)
    return first, k.bind(T.max(first, end))


def _spaced(k: Kernel, offset: Any, stride: int, lanes: int) -> Any:
    from tvm.script.ir_builder import tirx as T

    return k["x"][T.Ramp(offset, stride, lanes)] if lanes > 1 else k["x"][offset]

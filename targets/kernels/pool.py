"""pool: the largest or the mean of each window of a channel, straight from x (see stencil).

A NaN in a window may or may not make its maximum NaN, as in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels import rolled, stencil, stencil_planes
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.shuffles import Registers, combine_rows, pick
from sparsec.targets.kernels.stencil import Stencil
from sparsec.targets.kernels.stencil_block import Block
from sparsec.targets.kernels.stencil_planes import Division
from sparsec.targets.target import Target

name = "pool"

#: comparisons or sums of straight code that are worth compiling
MOST_STEPS = 6000


@dataclass(frozen=True, slots=True)
class Pooling:
    """``kind`` is max or mean, ``geometry.groups`` the channels.

    ``counted`` are the rows and columns around x, as (top, left, bottom, right), that a mean
    counts as elements.
    """

    kind: str
    geometry: Geometry
    counted: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def fill(self) -> float:
        """What padding holds."""
        return float("-inf") if self.kind == "max" else 0.0

    @property
    def whole(self) -> bool:
        """Whether there is one window, and it is x."""
        g = self.geometry
        sizes = (g.out_height, g.out_width) == (1, 1) and g.kernel == (g.height, g.width)
        return sizes and g.dilation == (1, 1) and g.padding == (0, 0)

    def join(self, a: Any, b: Any) -> Any:
        """Two values as one."""
        from tvm.script.ir_builder import tirx as T

        return T.Select(a < b, b, a) if self.kind == "max" else a + b


def shape_of(pooling: Pooling, target: Target) -> Stencil | None:
    """How a plane is cut; None where the taps are looped over."""
    return stencil.choose(pooling.geometry, target.lanes, MOST_STEPS)


def by_channels(pooling: Pooling, target: Target) -> bool:
    """Whether a vector holds the results of neighbouring channels."""
    g = pooling.geometry
    return pooling.whole and g.groups >= target.lanes and g.height * g.width >= target.lanes


def plane_cycles(pooling: Pooling, target: Target) -> float:
    """Cycles a plane takes."""
    g, shape = pooling.geometry, shape_of(pooling, target)
    if by_channels(pooling, target):
        return g.height * g.width / target.lanes + 6
    vectors = g.out_height * (len(shape.starts) if shape else g.out_width / target.lanes)
    each = sum(g.kernel) * (1 if g.strides[1] == 1 else 2) if shape else 4 * g.taps
    return vectors * (each + 2) + 20


def division_of(pooling: Pooling, target: Target) -> Division:
    """How the planes of an image become tiles."""
    g, cycles = pooling.geometry, plane_cycles(pooling, target)
    if by_channels(pooling, target):
        return Division(target.lanes * max(1, round(stencil_planes.TILE_CYCLES / cycles / target.lanes)), 1)
    return stencil_planes.divide(shape_of(pooling, target), g.groups, cycles)


def emit(pooling: Pooling, target: Target, name: str) -> Any:
    """The TIR function: x, y."""
    shape, division = shape_of(pooling, target), division_of(pooling, target)

    def body(k: Kernel) -> None:
        if by_channels(pooling, target):
            _by_channels(k, pooling, division)
        elif shape:
            _straight(k, pooling, shape, division)
        else:
            _rolled(k, pooling, division)

    return prim_func(name, target.lanes, [("x", "float32"), ("y", "float32")], (), body)


def _planes(k: Kernel, g: Geometry, image: Any, channel: Any) -> tuple[Any, Any]:
    """Where a channel's planes start in x and in y."""
    plane = k.bind(image * g.groups + channel)
    return k.bind(plane * (g.height * g.width)), k.bind(plane * g.positions)


def _straight(k: Kernel, pooling: Pooling, shape: Stencil, division: Division) -> None:
    g = pooling.geometry
    held, acc = Registers(k, 64), k.registers(shape.accumulators, shape.width)
    lines = k.registers(shape.vectors, shape.width)

    def block(b: Block) -> None:
        _combine(k, held, pooling, b, lines, acc)

        def value(i: int, v: int) -> Any:
            total = b.in_order(acc[i * shape.vectors + v])
            if pooling.kind == "max":
                return total
            return k.bind(total * _inverse(k, _counts(pooling, b, i, v)))

        b.store(value, lambda result, where, lanes: k.put(k["y"], where, result, lanes))

    with stencil_planes.planes_of(k, division, g.groups) as (image, channel, part):
        planes = _planes(k, g, image, channel)
        stencil_planes.sweep(k, held, shape, planes, part, division.parts, pooling.fill, block)


def _combine(k: Kernel, held: Registers, pooling: Pooling, b: Block, lines: Any, acc: Any) -> None:
    """Each input row along the window's columns, and the rows into the accumulators."""
    g, vectors = pooling.geometry, b.stencil.vectors
    begun: set[int] = set()
    for row, uses in b.reads.items():
        for v in range(b.across.size):
            some = False
            for s in range(g.kernel[1]):
                x = b.vector(row, s, v)
                if x is not None:
                    k.assign(lines, v, pooling.join(lines[v], x) if some else x)
                    some = True
                held.forget()
            if not some:
                continue
            for i in dict.fromkeys(i for i, _ in uses):
                slot = i * vectors + v
                k.assign(acc, slot, pooling.join(acc[slot], lines[v]) if slot in begun else lines[v])
                begun.add(slot)
    for slot in {i * vectors + v for i in range(b.down.size) for v in range(b.across.size)} - begun:
        k.assign(acc, slot, k.splat(pooling.fill, b.stencil.width))


def _counts(pooling: Pooling, b: Block, i: int, v: int) -> tuple[int, ...]:
    """How many elements the mean of each output of a vector divides by."""
    g, (top, left, bottom, right) = pooling.geometry, pooling.counted
    rows = b.rows_inside(i, -top, g.height + bottom)
    return tuple(rows * n for n in b.columns_inside(v, -left, g.width + right))


def _inverse(k: Kernel, counts: Sequence[int]) -> Any:
    found = [1.0 / n if n else float("nan") for n in counts]
    if len(set(counts)) == 1:
        return k.splat(found[0], len(counts))
    return pick([k.splat(number, 1) for number in found], range(len(counts)))


def _rolled(k: Kernel, pooling: Pooling, division: Division) -> None:
    from tvm.script.ir_builder import tirx as T

    g, (top, left, bottom, right) = pooling.geometry, pooling.counted
    registers = rolled.registers_of(k)

    def put(value: Any, where: Any, lanes: int, i: Any, j: Any) -> None:
        if pooling.kind == "mean":
            y, x = i * g.strides[0] - g.padding[0], j * g.strides[1] - g.padding[1]
            rows = rolled.clip(k, y, g.kernel[0], g.dilation[0], -top, g.height + bottom)
            columns = rolled.clip(k, x, g.kernel[1], g.dilation[1], -left, g.width + right)
            count = T.cast((rows[1] - rows[0]) * (columns[1] - columns[0]), "float32")
            value = value / k.splat(k.bind(count), lanes)
        k.put(k["y"], where, value, lanes)

    with stencil_planes.planes_of(k, division, g.groups) as (image, channel, _):
        planes = _planes(k, g, image, channel)
        rolled.roll(k, g, planes, registers, pooling.fill, lambda total, x, _: pooling.join(total, x), put)


def _by_channels(k: Kernel, pooling: Pooling, division: Division) -> None:
    """One window: the channels' vectors are joined until a vector holds a number for each."""
    from tvm.script.ir_builder import tirx as T

    g, lanes = pooling.geometry, k.lanes
    size, per_image = g.height * g.width, division.tiles(g.groups)
    held, acc = Registers(k, 2 * lanes), k.registers(lanes)
    with k.tiles() as tile:
        image, first = k.bind(tile // per_image), k.bind(tile % per_image * division.planes)
        end = k.bind(T.min(first + division.planes, k.constant(g.groups)))
        with k.loop(k.bind((end - first + (lanes - 1)) // lanes)) as group:
            # the last channels of an image start early, some being computed again
            channel = T.min(first + group * lanes, k.constant(g.groups - lanes))
            plane = k.bind(image * g.groups + channel)
            _sums(k, pooling, acc, k.bind(plane * size))
            held.forget()
            total = combine_rows(held, [acc[i] for i in range(lanes)], pooling.join)
            if pooling.kind == "mean":
                total = total * k.splat(1.0 / size)
            k.put(k["y"], plane, total)


def _sums(k: Kernel, pooling: Pooling, acc: Any, base: Any) -> None:
    """The vectors of as many planes as a vector has lanes, joined; what is left over comes first."""
    g, lanes = pooling.geometry, k.lanes
    size = g.height * g.width
    whole, rest = divmod(size, lanes)
    # of a first vector that overlaps the next, only what that one lacks
    kept = [j if j < rest else lanes + j for j in range(lanes)]
    for i in range(lanes):
        first = [k.vector(k["x"], base + i * size), k.splat(pooling.fill)] if rest else []
        k.assign(acc, i, pick(first, kept) if rest else k.splat(pooling.fill))
    with k.loop(whole) as j:
        for i in range(lanes):
            x = k.vector(k["x"], base + (i * size + rest) + j * lanes)
            k.assign(acc, i, pooling.join(acc[i], x))

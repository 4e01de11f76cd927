"""pool: the largest or the mean of each window of a channel, straight from x.

Windows are reduced as :mod:`sparsec.targets.cuda.parts.strips` describes; where one window is all of a
plane, a warp reads the plane and its threads' results are joined by shuffles.  Sums are float32 whatever x
is.  A NaN in a window may or may not make its maximum NaN, as in onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from sparsec.ir.attributes import PoolAttrs
from sparsec.ir.graph import Node, replace
from sparsec.targets.calls import Call, Context, known
from sparsec.targets.cuda import expressions, leftover
from sparsec.targets.cuda.builder import WARP, Kernel, device_function, int64
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.cost import gpu_of
from sparsec.targets.cuda.instructions import warp_max, warp_sum
from sparsec.targets.cuda.parts import strips
from sparsec.targets.cuda.parts.strips import Place, Strips
from sparsec.targets.cuda.tir import T
from sparsec.targets.geometry import Geometry
from sparsec.targets.problem import counted_padding, pool_geometry
from sparsec.targets.sizes import Sizes

#: what images may hold
FLOATS = ("float32", "float16", "bfloat16")

#: threads of a block where a warp makes one output
_THREADS = 128


@dataclass(frozen=True, slots=True)
class Pooling:
    """``kind`` is max or mean, ``geometry.groups`` the channels.

    ``counted`` are the rows and columns around x, as (top, left, bottom, right), that a mean counts as
    elements; ``down`` the rows of a strip.
    """

    kind: str
    geometry: Geometry
    dtype: str
    down: int = 1
    counted: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def fill(self) -> float:
        """What padding holds."""
        return float("-inf") if self.kind == "max" else 0.0

    @property
    def whole(self) -> bool:
        """Whether there is one window, and it is x, and large enough for a warp."""
        g = self.geometry
        sizes = (g.out_height, g.out_width) == (1, 1) and g.kernel == (g.height, g.width)
        return sizes and g.dilation == (1, 1) and g.padding == (0, 0) and g.taps >= WARP // 2

    def join(self, a: Any, b: Any) -> Any:
        """Two float32 values as one."""
        return T.max(a, b) if self.kind == "max" else a + b


def pooling_of(n: Node, context: Context) -> Pooling | None:
    """What a pool node computes; None where x is no floats, or images of sizes known only at run time."""
    x, attrs = context.type(n.args[0]), cast(PoolAttrs, n.attrs)
    if x.dtype not in FLOATS or not all(isinstance(s, int) for s in (*x.shape[1:], *n.type.shape[1:])):
        return None
    geometry = pool_geometry(x, n)
    images = x.shape[0] if isinstance(x.shape[0], int) else None
    down = strips.choose(replace(geometry, images=images), geometry.groups).down
    return Pooling(attrs.kind, geometry, x.dtype, down, counted_padding(attrs))


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The call of a pool node."""
    pooling, sizes = pooling_of(n, context), context.sizes
    if pooling is None:
        return leftover.calls(n, context)
    g, images = pooling.geometry, n.type.shape[0]
    gpu = gpu_of(context.target)
    moved = (
        known(images, 1)
        * g.groups
        * (g.height * g.width + g.positions)
        * (4 if pooling.dtype == "float32" else 2)
    )
    reads = known(images, 1) * g.groups * g.positions * g.taps / 24
    cycles = gpu.launch + max(moved / gpu.dram_bytes, reads / gpu.multiprocessors)
    return (
        device_call(
            context, "pool", pooling, lambda name: emit(pooling, name), (n.args[0], n.name),
            (sizes.of(images),), grid(pooling, sizes, sizes.of(images)), cycles,
        ),
    )  # fmt: skip


def grid(pooling: Pooling, sizes: Sizes, images: int) -> int:
    """The number of blocks, an expression of that of images."""
    g = pooling.geometry
    if pooling.whole:
        each, threads = g.groups, _THREADS // WARP
    else:
        each, threads = Strips(g, g.groups, pooling.down).threads_per_image, strips.THREADS
    return sizes.ceil_divide(sizes.multiply(images, sizes.of(each)), threads)


def emit(pooling: Pooling, name: str) -> Any:
    """The TIR function: x, y; the number of images."""
    pointers = [("x", pooling.dtype), ("y", pooling.dtype)]
    body = _planes if pooling.whole else _windows
    threads = _THREADS if pooling.whole else strips.THREADS
    return device_function(name, threads, pointers, ["images"], partial(body, pooling=pooling))


def _windows(k: Kernel, pooling: Pooling) -> None:
    cut = Strips(pooling.geometry, pooling.geometry.groups, pooling.down)
    strips.run(k, cut, partial(_strip, k, pooling, cut))


def _strip(k: Kernel, pooling: Pooling, cut: Strips, place: Place) -> None:
    g, total = cut.geometry, k.registers(cut.down)
    for i in range(cut.down):
        total.put(i, expressions.constant(pooling.fill))

    def visit(i: int, tap: Any, value: Any) -> None:
        total.put(i, pooling.join(total[i], value))

    strips.taps(k, cut, place, pooling.fill, visit)
    across = _counted(k, pooling, 1, place.column) if pooling.kind == "mean" else None
    for i in range(cut.down):
        row = k.bind(place.row + i)
        with k.when(row < g.out_height):
            at = k.bind(place.result + int64(row * g.out_width + place.column))
            value = total[i]
            if across is not None:
                value = k.bind(value / T.cast(_counted(k, pooling, 0, row) * across, "float32"))
            expressions.store(k, k["y"], at, [value])


def _counted(k: Kernel, pooling: Pooling, axis: int, place: Any) -> Any:
    """How many rows (axis 0) or columns of a window a mean counts, int32."""
    g = pooling.geometry
    size = (g.height, g.width)[axis]
    low, high = -pooling.counted[axis], size + pooling.counted[axis + 2]
    step, taps = g.dilation[axis], g.kernel[axis]
    first = k.bind(place * g.strides[axis] - g.padding[axis])
    # taps t with low <= first + t * step < high
    begin = T.truncdiv(T.max(low - first, 0) + (step - 1), step)
    end = T.truncdiv(T.max(high - first, 0) + (step - 1), step)
    return k.bind(T.max(T.min(end, taps) - T.min(begin, taps), 0))


def _planes(k: Kernel, pooling: Pooling) -> None:
    """A warp a plane."""
    g, warps = pooling.geometry, _THREADS // WARP
    plane = k.bind(k.block * warps + int64(k.warp))
    with k.when(plane < k.sizes["images"] * g.groups):
        start, total = k.bind(plane * g.taps), k.registers(1)
        total.put(0, expressions.constant(pooling.fill))
        whole, left = divmod(g.taps, WARP)
        with k.loop(whole) as i:
            total.put(0, pooling.join(total[0], _element(k, start + int64(i * WARP + k.lane))))
        if left:
            with k.when(k.lane < left):
                value = _element(k, start + int64(whole * WARP + k.lane))
                total.put(0, pooling.join(total[0], value))
        joined = warp_max if pooling.kind == "max" else warp_sum
        value = joined(k, total[0])
        with k.when(k.lane == 0):
            if pooling.kind == "mean":
                value = k.bind(value / expressions.constant(g.taps))
            expressions.store(k, k["y"], plane, [value])


def _element(k: Kernel, index: Any) -> Any:
    return expressions.load(k, k["x"], index)[0]

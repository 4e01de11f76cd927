"""resize: images resampled along both axes, nearest or linear.

A thread makes one element.  Positions are fractions of whole numbers, as :mod:`sparsec.ir.resampling` has
them, so that ties and borders round alike: a numerator and a denominator, no tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from sparsec.ir.attributes import ResizeAttrs
from sparsec.ir.dims import product
from sparsec.ir.graph import Node
from sparsec.targets.calls import Call, Context
from sparsec.targets.cuda import leftover
from sparsec.targets.cuda.builder import Kernel, device_function, int64, integer
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.expressions import load, store
from sparsec.targets.cuda.kernels.elementwise import FLOATS
from sparsec.targets.cuda.kernels.moves import cycles
from sparsec.targets.cuda.parts.places import coordinates

#: threads of a block
THREADS = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """All that the code depends on; pairs are (vertical, horizontal)."""

    attrs: ResizeAttrs
    given: tuple[int, int]
    made: tuple[int, int]
    dtype: str


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The call for a resize."""
    x, attrs = context.type(n.args[0]), cast(ResizeAttrs, n.attrs)
    if x.dtype not in FLOATS:
        return leftover.calls(n, context)
    (height, width), (out_height, out_width) = (cast(tuple[int, int], t.shape[2:]) for t in (x, n.type))
    shape = Shape(attrs, (height, width), (out_height, out_width), x.dtype)
    planes, sizes = context.sizes.of(product(x.shape[:2])), context.sizes
    blocks = sizes.ceil_divide(sizes.multiply(planes, sizes.of(out_height * out_width)), THREADS)
    return (
        device_call(
            context, "resize", shape, lambda name: emit(shape, name), (*n.args, n.name), (planes,), blocks,
            cycles(n, context),
        ),
    )  # fmt: skip


def emit(shape: Shape, name: str) -> Any:
    """The TIR function; its size is the number of planes."""
    (height, width), (out_height, out_width) = shape.given, shape.made

    def body(k: Kernel) -> None:
        at = k.bind(k.block * THREADS + int64(k.thread))
        planes = k.sizes["planes"]
        with k.when(at < planes * (out_height * out_width)):
            plane, *place = coordinates(k, at, [planes, out_height, out_width])
            first = k.bind(plane * (height * width))
            rows, columns = (_taps(k, shape, axis, place[axis]) for axis in (0, 1))

            def element(row: Any, column: Any) -> Any:
                return load(k, k["x"], first + row * width + column)[0]

            if shape.attrs.method == "nearest":
                value = element(rows[0], columns[0])
            else:
                left, right, weight = columns
                upper, lower = (_between(element(row, left), element(row, right), weight) for row in rows[:2])
                value = _between(upper, lower, rows[2])
            store(k, k["y"], at, [value])

    return device_function(name, THREADS, [("x", shape.dtype), ("y", shape.dtype)], ["planes"], body)


def _between(low: Any, high: Any, weight: Any) -> Any:
    return low + (high - low) * weight


def _taps(k: Kernel, shape: Shape, axis: int, index: Any) -> tuple[Any, Any, Any]:
    """The two places an index reads along an axis, and the weight of the second."""
    given, made = shape.given[axis], shape.made[axis]
    numerator, denominator = _COORDINATES[shape.attrs.coordinates](index, given, made)
    last = given - 1
    whole = k.bind(T.min(T.max(numerator, integer(0)), integer(last * denominator)))
    if shape.attrs.method == "nearest":
        low = k.bind(_ROUNDINGS[shape.attrs.rounding](whole, denominator))
        return low, low, 0
    low = k.bind(T.truncdiv(whole, integer(denominator)))
    high = k.bind(T.min(low + 1, integer(last)))
    weight = T.cast(whole - low * denominator, "float32") / tirx.const(float(denominator), "float32")
    return low, high, k.bind(weight)


def _half_pixel(index: Any, given: int, made: int) -> tuple[Any, int]:
    return (index * 2 + 1) * given - made, 2 * made


def _pytorch_half_pixel(index: Any, given: int, made: int) -> tuple[Any, int]:
    return _half_pixel(index, given, made) if made > 1 else (index * 0, 1)


def _align_corners(index: Any, given: int, made: int) -> tuple[Any, int]:
    return (index * (given - 1), made - 1) if made > 1 else (index * 0, 1)


#: as sparsec.ir.resampling.COORDINATES, numerator and denominator
_COORDINATES: Mapping[str, Callable[[Any, int, int], tuple[Any, int]]] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": lambda index, given, made: (index * given, made),
}

#: as sparsec.ir.resampling.ROUNDINGS, of a fraction that is not negative
_ROUNDINGS: Mapping[str, Callable[[Any, int], Any]] = {
    "floor": lambda p, q: T.truncdiv(p, integer(q)),
    "ceil": lambda p, q: T.truncdiv(p + (q - 1), integer(q)),
    "round_prefer_floor": lambda p, q: T.truncdiv(p * 2 + (q - 1), integer(2 * q)),
    "round_prefer_ceil": lambda p, q: T.truncdiv(p * 2 + q, integer(2 * q)),
}

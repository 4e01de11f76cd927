"""elementwise: one expression over tensors that broadcast together; also casts.

Axes that broadcast alike are merged.  A thread makes several neighbours of the innermost axis where its
length allows that, so that memory is read up to 128 bits at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sparsec.ir.attributes import ElementwiseAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.expr import Expr
from sparsec.ir.graph import Node
from sparsec.targets.calls import Call, Context, known
from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import Kernel, device_function, int64, integer
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.kernels.elementwise import Merged, merge

#: threads of a block
THREADS = 256

#: what is computed in float32; other dtypes are carried as TIR
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Shape:
    """All that the code depends on: the expression, the merged axes, and dtypes, the result's last."""

    expr: Expr
    merged: Merged
    dtypes: tuple[str, ...]

    @property
    def vector(self) -> int:
        """Neighbours that one thread makes."""
        last = self.merged.axes[-1]
        if not isinstance(last, int):
            return 1
        most = 8 if all(dtype != "float32" for dtype in self.dtypes) else 4
        return next(v for v in (most, 4, 2, 1) if last % v == 0)


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The call for an elementwise node."""
    types = [context.type(a) for a in n.args]
    expr = cast(ElementwiseAttrs, n.attrs).expr
    if any(t.dtype not in FLOATS for t in (*types, n.type)):
        from sparsec.targets.cuda import leftover

        return leftover.elementwise(n, context, expr)
    merged = merge(n.type.shape, [t.shape for t in types])
    shape = Shape(expr, merged, (*(t.dtype for t in types), n.type.dtype))
    sizes = context.sizes
    blocks = sizes.ceil_divide(sizes.of(product(merged.axes)), THREADS * shape.vector)
    bytes_moved = sum(known(t.elements, 4096) * 4 for t in (*types, n.type))
    gpu = context.target.gpu
    assert gpu
    return (
        device_call(
            context, "elementwise", shape, lambda name: emit(shape, name), (*n.args, n.name),
            tuple(sizes.of(a) for a in merged.axes), blocks, gpu.launch + bytes_moved / gpu.dram_bytes,
        ),
    )  # fmt: skip


def emit(shape: Shape, name: str) -> Any:
    """The TIR function; sizes are the merged axes, in order."""
    count, rank = len(shape.dtypes) - 1, len(shape.merged.axes)

    def body(k: Kernel) -> None:
        axes = [_axis(k, i, size) for i, size in enumerate(shape.merged.axes)]
        total = axes[0]
        for axis in axes[1:]:
            total = total * axis
        at = k.bind((k.block * THREADS + int64(k.thread)) * shape.vector)
        with k.when(at < total):
            places = _places(k, at, axes)

            given = [_read(k, i, shape, places, axes) for i in range(count)]
            values = [
                expressions.emit(k, shape.expr, [x[lane] for x in given]) for lane in range(shape.vector)
            ]
            expressions.store(k, k["y"], at, values)

    pointers = [(f"x{i}", shape.dtypes[i]) for i in range(count)] + [("y", shape.dtypes[-1])]
    return device_function(name, THREADS, pointers, [f"axis{i}" for i in range(rank)], body)


def _axis(k: Kernel, i: int, size: Size) -> Any:
    return integer(size) if isinstance(size, int) else k.sizes[f"axis{i}"]


def _places(k: Kernel, at: Any, axes: Sequence[Any]) -> list[Any]:
    """The coordinates of an element, the outermost first."""
    places = []
    for axis in reversed(axes[1:]):
        places.append(k.bind(at % axis))
        at = k.bind(at // axis)
    return [at, *reversed(places)]


def _read(k: Kernel, i: int, shape: Shape, places: Sequence[Any], axes: Sequence[Any]) -> list[Any]:
    """Argument i where the thread's elements are, as float32."""
    has = shape.merged.reads[i]
    index: Any = integer(0)
    for place, axis, present in zip(places, axes, has, strict=True):
        if present:
            index = index * axis + place
    if has[-1]:
        return expressions.load(k, k[f"x{i}"], index, shape.vector)
    return expressions.load(k, k[f"x{i}"], index) * shape.vector

"""elementwise: one expression over tensors that broadcast together.

Axes that broadcast alike are merged, so that most tensors become one long axis; the innermost
is vectorised, the outer ones are the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsec.ir.dims import Size, product
from sparsec.ir.expr import Expr
from sparsec.targets.kernels import math
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.target import Target

name = "elementwise"

#: elements of a one-axis tensor that make one tile of work
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Merged:
    """``axes``: merged sizes of the result; ``reads[i]``: for argument i, which axes it has."""

    axes: tuple[Size, ...]
    reads: tuple[tuple[bool, ...], ...]


def merge(result: Sequence[Size], arguments: Sequence[Sequence[Size]]) -> Merged:
    """Merge neighbouring axes that every argument either has or broadcasts over."""
    rank = len(result)
    padded = [(1,) * (rank - len(a)) + tuple(a) for a in arguments]
    axes: list[Size] = []
    marks: list[tuple[bool, ...]] = []
    for i, size in enumerate(result):
        mark = tuple(a[i] == size for a in padded)
        if size == 1:
            continue
        if marks and marks[-1] == mark:
            axes[-1] = axes[-1] * size
        else:
            axes.append(size)
            marks.append(mark)
    if not axes:
        return Merged((1,), tuple((True,) for _ in arguments))
    return Merged(tuple(axes), tuple(zip(*marks, strict=True)) if arguments else ())


def emit(expr: Expr, merged: Merged, target: Target, name: str) -> Any:
    """The TIR function; sizes are the merged axes, in order."""
    from tvm.script.ir_builder import tirx as T

    rank, count, lanes = len(merged.axes), len(merged.reads), target.lanes
    symbolic = [f"axis{i}" for i in range(rank)]

    def axis(k: Kernel, i: int) -> Any:
        size = merged.axes[i]
        return k.constant(size) if isinstance(size, int) else k.sizes[symbolic[i]]

    def bases(k: Kernel, outer: list[Any]) -> list[Any]:
        """Element offset of each argument at the outer indices, and of the result."""
        found = []
        for has in (*merged.reads, (True,) * rank):
            offset: Any = k.constant(0)
            for i in range(rank - 1):
                if has[i]:
                    offset = offset * axis(k, i) + outer[i]
            found.append(k.bind(offset * axis(k, rank - 1) if has[-1] else offset))
        return found

    def compute(k: Kernel, base: list[Any], at: Any, width: int) -> None:
        def operand(i: int) -> Any:
            if not merged.reads[i][-1]:
                return k.splat(k[f"x{i}"][base[i]], width)
            return k.vector(k[f"x{i}"], base[i] + at, width)

        k.put(k["y"], base[-1] + at, math.emit(k, expr, operand, k.splat(0.0, width)), width)

    def line(k: Kernel, base: list[Any], start: Any, stop: Any) -> None:
        whole = k.bind((stop - start) // lanes)
        with k.loop(whole) as i:
            compute(k, base, k.bind(start + i * lanes), lanes)
        with k.loop(start + whole * lanes, stop) as i:
            compute(k, base, i, 1)

    def body(k: Kernel) -> None:
        with k.tiles() as tile:
            if rank == 1:
                start = k.bind(tile * BLOCK)
                line(k, bases(k, []), start, k.bind(T.min(start + BLOCK, axis(k, 0))))
                return
            outer: list[Any] = []
            rest = tile
            for i in reversed(range(rank - 1)):
                outer.insert(0, k.bind(rest % axis(k, i)) if i else k.bind(rest))
                rest = rest // axis(k, i)
            line(k, bases(k, outer), k.constant(0), axis(k, rank - 1))

    pointers = [(f"x{i}", "float32") for i in range(count)] + [("y", "float32")]
    return prim_func(name, lanes, pointers, symbolic, body)


def tile_count(merged: Merged) -> tuple[Size, int]:
    """(size, divisor): the number of tiles is ceil(size / divisor)."""
    if len(merged.axes) == 1:
        return merged.axes[0], BLOCK
    return product(merged.axes[:-1]), 1

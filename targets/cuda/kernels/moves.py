"""moves: boxes of row-major tensors copied into one another: concat, slice and many transposes.

What an operation copies is described as on a processor (:mod:`sparsec.targets.kernels.boxes`).  A thread
copies units of up to 16 bytes, as many as stay together; neighbours in y belong to neighbouring threads,
so that every warp writes whole lines.  Where rows become columns, :mod:`.transpose` does the work.
Elements are bits: their dtype is not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from tvm.script.ir_builder import tirx as T

from sparsec.ir.attributes import ConcatAttrs, SliceAttrs, TransposeAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Node
from sparsec.ir.types import Type
from sparsec.targets.calls import Call, Context, known
from sparsec.targets.cuda.builder import Kernel, device_function, int64, integer
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.kernels import transpose as tiled
from sparsec.targets.cuda.parts.places import coordinates, divided, number
from sparsec.targets.kernels.boxes import Move, joined, sliced, transposed
from sparsec.targets.kernels.tiles import Numbers

#: threads of a block, and units that each copies
THREADS, UNITS = 256, 4
#: bytes of a unit -> what it is read as
READ_AS = {1: ("uint8", 1), 2: ("uint16", 1), 4: ("uint32", 1), 8: ("uint32", 2), 16: ("uint32", 4)}


def transpose(n: Node, context: Context) -> tuple[Call, ...]:
    """NumPy's transpose."""
    x, axes = context.type(n.args[0]), cast(TransposeAttrs, n.attrs).axes
    item, shape = items(x)
    (move,) = transposed(shape, (*axes, len(axes))[: len(shape)])
    found = tiled.Tiles.of(move, item)
    if found is None:
        return _copies(n, context, (move,), n.args, item)
    numbers = Numbers(move.sizes)
    return (
        device_call(
            context, "transpose", found, lambda name: tiled.emit(found, numbers, name), (*n.args, n.name),
            tuple(map(context.sizes.of, numbers.dims)), found.blocks(context.sizes), cycles(n, context),
        ),
    )  # fmt: skip


def concat(n: Node, context: Context, written: Collection[int] = ()) -> tuple[Call, ...]:
    """The arguments one after another; those at the positions ``written`` are there already."""
    shapes = [items(context.type(a))[1] for a in n.args]
    every = joined(shapes, cast(ConcatAttrs, n.attrs).axis)
    left = [m for m in every if m.argument not in written]
    args = [n.args[cast(int, m.argument)] for m in left]
    moves = tuple(replace(m, argument=i) for i, m in enumerate(left))
    return _copies(n, context, moves, args, items(n.type)[0])


def slice_(n: Node, context: Context) -> tuple[Call, ...]:
    """A part of x."""
    x, attrs = context.type(n.args[0]), cast(SliceAttrs, n.attrs)
    item, shape = items(x)
    begin, step = ((*attrs.begin, 0)[: len(shape)], (*attrs.step, 1)[: len(shape)])
    return _copies(n, context, sliced(shape, items(n.type)[1], begin, step), n.args, item)


def items(t: Type) -> tuple[int, tuple[Size, ...]]:
    """Bytes of an element, and the shape; an element of eight bytes is two on an axis of their own."""
    item = np.dtype(t.dtype).itemsize
    return (4, (*t.shape, item // 4)) if item > 4 else (item, t.shape)


def cycles(n: Node, context: Context) -> float:
    """Predicted: every byte is read once and written once."""
    gpu = context.target.gpu
    assert gpu
    return gpu.launch + 2 * known(n.type.elements, 4096) * np.dtype(n.type.dtype).itemsize / gpu.dram_bytes


def in_units(move: Move, item: int) -> tuple[Move, int]:
    """The move of the largest units that stay together, and their bytes."""
    last = move.axes[-1]
    for unit in (16, 8, 4, 2):
        if unit <= item or (last.source, last.goal) != (1, 1):
            break
        if (found := _shrunk(move, unit // item)) is not None:
            return found, unit
    return move, item


def _shrunk(move: Move, by: int) -> Move | None:
    """The move with ``by`` elements as one."""
    *outer, last = move.axes
    places = [divided(s, by) for s in (move.read, move.write, last.size)]
    steps = [(divided(a.source, by), divided(a.goal, by)) for a in outer]
    if None in places or any(None in step for step in steps):
        return None
    read, write, size = (cast(Size, p) for p in places)
    axes = [
        replace(a, source=cast(Size, source), goal=cast(Size, goal))
        for a, (source, goal) in zip(outer, steps, strict=True)
    ]
    return replace(move, axes=(*axes, replace(last, size=size)), read=read, write=write)


def _copies(
    n: Node, context: Context, moves: tuple[Move, ...], args: Sequence[str], item: int
) -> tuple[Call, ...]:
    units = tuple(in_units(m, item) for m in moves)
    numbers = Numbers([s for m, _ in units for s in (*m.sizes, _count(m))])
    sizes, blocks = context.sizes, context.sizes.of(0)
    for move, _ in units:
        blocks = sizes.add(blocks, sizes.ceil_divide(sizes.of(_count(move)), THREADS * UNITS))
    return (
        device_call(
            context, str(n.op), (units, item, len(args)),
            lambda name: emit(units, item, len(args), numbers, name), (*args, n.name),
            tuple(map(sizes.of, numbers.dims)), blocks, cycles(n, context),
        ),
    )  # fmt: skip


def _count(move: Move) -> Size:
    return product(axis.size for axis in move.axes)


def emit(units: Sequence[tuple[Move, int]], item: int, count: int, numbers: Numbers, name: str) -> Any:
    """The TIR function: each move has blocks of its own, one move's after another's."""

    def body(k: Kernel) -> None:
        first: Any = integer(0)
        for move, unit in units:
            total = int64(numbers.value(k, _count(move)))
            blocks = k.bind(T.truncdiv(total + (THREADS * UNITS - 1), integer(THREADS * UNITS)))
            block = k.bind(k.block - first)
            if len(units) == 1:
                _copy(k, numbers, move, unit, block)
            else:
                with k.when(T.And(block >= 0, block < blocks)):
                    _copy(k, numbers, move, unit, block)
            first = k.bind(first + blocks)

    bits = f"uint{8 * item}"
    pointers = [*((f"x{i}", bits) for i in range(count)), ("y", bits)]
    return device_function(name, THREADS, pointers, numbers.labels, body)


def _copy(k: Kernel, numbers: Numbers, move: Move, unit: int, block: Any) -> None:
    """What one block of a move copies."""
    dtype, lanes = READ_AS[unit]
    x, y = k.view(f"x{move.argument}", dtype), k.view("y", dtype)
    total = number(numbers.value(k, _count(move)))
    extents = [numbers.value(k, axis.size) for axis in move.axes]
    with k.unrolled(UNITS) as turn:
        at = k.bind((block * UNITS + int64(turn)) * THREADS + int64(k.thread))
        with k.when(at < total):
            source, goal = (number(numbers.value(k, s)) for s in (move.read, move.write))
            for place, axis in zip(coordinates(k, at, extents), move.axes, strict=True):
                source = source + place * number(numbers.value(k, axis.source))
                goal = goal + place * number(numbers.value(k, axis.goal))
            y.put(k.bind(goal) * lanes, x.vector(k.bind(source) * lanes, lanes), lanes)

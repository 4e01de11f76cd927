"""lowering_moves: calls of the operations that move, cut, join, resample or reduce tensors.

What no kernel takes (elements of one or two bytes, reductions other than float32) is carried as
a tensor expression.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce as fold
from math import prod
from typing import cast

import numpy as np

from sparsec.ir.attributes import ConcatAttrs, PadAttrs, ReduceAttrs, ResizeAttrs, SliceAttrs, TransposeAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Node, replace
from sparsec.ir.types import Type
from sparsec.targets.calls import Call, Context, cycles_of, kernel_call, known, operator_call
from sparsec.targets.kernels import boxes

#: bytes of the elements that kernels move
_WORD = 4


def transpose(n: Node, context: Context) -> Call:
    """NumPy's transpose."""
    from sparsec.targets import operators

    x, axes = context.type(n.args[0]), cast(TransposeAttrs, n.attrs).axes
    words = _words(x)
    if words is None:
        return operator_call(n, context, operators.transpose(x, axes, n.type), (*n.args, n.name))
    shape, order = _in_words(x, words), (*axes, len(axes))
    return _moves(n, context, boxes.transposed(shape, order[: len(shape)]), n.args, 6)


def concat(n: Node, context: Context, written: Collection[int] = ()) -> Call:
    """The arguments one after another; those at the positions ``written`` are there already."""
    from sparsec.targets import operators

    axis = cast(ConcatAttrs, n.attrs).axis
    words = _words(n.type)
    if words is None:
        carried = operators.concat([context.type(a) for a in n.args], axis, n.type)
        return operator_call(n, context, carried, (*n.args, n.name))
    every = boxes.joined([_in_words(context.type(a), words) for a in n.args], axis)
    left = [m for m in every if m.argument not in written]
    args = [n.args[cast(int, m.argument)] for m in left]
    return _moves(n, context, tuple(replace(m, argument=i) for i, m in enumerate(left)), args, 4)


def parts_of(n: Node, context: Context) -> dict[int, Size]:
    """Arguments of a concat that are one piece of it, and the byte each begins at."""
    shapes = [context.type(a).shape for a in n.args]
    found = boxes.joined(shapes, cast(ConcatAttrs, n.attrs).axis)
    width = np.dtype(n.type.dtype).itemsize
    return {cast(int, m.argument): m.write * width for m in found if m.in_one_piece}


def part_begins(n: Node, context: Context) -> Size | None:
    """The byte of x that a slice begins at, when it is one piece of x."""
    x, attrs = context.type(n.args[0]), cast(SliceAttrs, n.attrs)
    (found,) = boxes.sliced(x.shape, n.type.shape, attrs.begin, attrs.step)
    return found.read * np.dtype(x.dtype).itemsize if found.in_one_piece else None


def slice_(n: Node, context: Context) -> Call:
    """A part of x."""
    from sparsec.targets import operators

    x, attrs = context.type(n.args[0]), cast(SliceAttrs, n.attrs)
    words = _words(x)
    if words is None:
        carried = operators.slice_(x, attrs.begin, attrs.step, n.type)
        return operator_call(n, context, carried, (*n.args, n.name))
    shape, result = _in_words(x, words), _in_words(n.type, words)
    begin, step = ((*attrs.begin, 0), (*attrs.step, 1))
    return _moves(n, context, boxes.sliced(shape, result, begin[: len(shape)], step[: len(shape)]), n.args, 4)


def pad(n: Node, context: Context) -> Call:
    """x with a value around it."""
    from sparsec.targets import operators

    x, attrs = context.type(n.args[0]), cast(PadAttrs, n.attrs)
    words = _words(x)
    if words is None or (attrs.value and x.dtype != "float32"):
        carried = operators.pad(x, attrs.before, attrs.value, n.type)
        return operator_call(n, context, carried, (*n.args, n.name))
    shape, result = _in_words(x, words), _in_words(n.type, words)
    before = (*attrs.before, 0)[: len(shape)]
    return _moves(n, context, boxes.padded(shape, result, before, attrs.value), n.args, 4)


def _words(t: Type) -> int | None:
    """Words of four bytes in an element, or None where elements are smaller."""
    words, rest = divmod(np.dtype(t.dtype).itemsize, _WORD)
    return None if rest else words


def _in_words(t: Type, words: int) -> tuple[Size, ...]:
    """The shape as words: a longer element is an axis of its own."""
    return t.shape if words == 1 else (*t.shape, words)


def _moves(
    n: Node, context: Context, moved: tuple[boxes.Move, ...], args: Sequence[str], each: float
) -> Call:
    from sparsec.targets.kernels import moves

    sizes, count = context.sizes, len(args)
    tiles = sizes.of(0)
    for move in moved:
        tiles = sizes.add(tiles, _tiles(context, moves.grid(move)))
    return kernel_call(
        context, str(n.op), (moved, count), lambda name: moves.emit(moved, count, context.target, name),
        (*args, n.name), tuple(sizes.of(d) for d in moves.numbers(moved).dims), tiles, sizes.of(64),
        cycles_of(n.type, context, each),
    )  # fmt: skip


def _tiles(context: Context, grid: Sequence[tuple[Size, int]]) -> int:
    """The product of ``ceil(size / step)``, as an expression."""
    sizes = context.sizes
    known_blocks = sizes.of(prod(-(-size // step) for size, step in grid if isinstance(size, int)))
    blocks = [sizes.ceil_divide(sizes.of(size), step) for size, step in grid if not isinstance(size, int)]
    return fold(sizes.multiply, blocks, known_blocks)


def reduce(n: Node, context: Context) -> Call:
    """sum, mean, max or min over axes."""
    from sparsec.targets import operators
    from sparsec.targets.kernels import reduce as kernel

    x, attrs = context.type(n.args[0]), cast(ReduceAttrs, n.attrs)
    if x.dtype != "float32" or x.elements == 0:
        carried = operators.reduce(x, attrs.kind, attrs.axes, attrs.keepdims, n.type)
        return operator_call(n, context, carried, (*n.args, n.name))
    found = kernel.merged(x.shape, attrs.axes, attrs.kind)
    sizes = context.sizes
    return kernel_call(
        context, "reduce", found, lambda name: kernel.emit(found, context.target, name), (*n.args, n.name),
        tuple(sizes.of(d) for d in kernel.numbers(found).dims), _tiles(context, kernel.grid(found)),
        sizes.of(64), cycles_of(x, context, 2),
    )  # fmt: skip


def resize(n: Node, context: Context) -> Call:
    """The last two axes resampled."""
    from sparsec.targets import operators
    from sparsec.targets.kernels import resize as kernel

    x, attrs = context.type(n.args[0]), cast(ResizeAttrs, n.attrs)
    if x.dtype != "float32":
        return operator_call(n, context, operators.resize(x, attrs, n.type), (*n.args, n.name))
    height, width, out_height, out_width = (cast(int, s) for s in (*x.shape[2:], *n.type.shape[2:]))
    shape = kernel.Shape(attrs, height, width, out_height, out_width)
    sizes = context.sizes
    tiles = sizes.multiply(sizes.of(product(x.shape[:2])), sizes.of(shape.bands))
    return kernel_call(
        context, "resize", shape, lambda name: kernel.emit(shape, context.target, name), (*n.args, n.name),
        (), tiles, sizes.of(4 * shape.floats(context.target.lanes)),
        known(n.type.elements, 4096) * (12 if shape.linear else 4) / context.target.lanes,
    )  # fmt: skip

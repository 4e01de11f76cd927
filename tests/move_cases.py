"""Runs of the kernels that move, join, cut, reduce and resample tensors; shapes chosen by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
from kernel_harness import Case

from sparsec.ir.attributes import ResizeAttrs
from sparsec.ir.dims import Size, symbol, value
from sparsec.ir.resampling import taps
from sparsec.targets.kernels import boxes, moves, reduce, resize
from sparsec.targets.target import Target

Shape = tuple[int, ...]


def draw(*shape: int) -> Any:
    """Standard normal float32."""
    return np.random.default_rng(41).standard_normal(shape).astype(np.float32)


def sizes_of(shape: Shape, known: bool, stem: str = "s") -> tuple[Size, ...]:
    """The shape, or a name for every size (see :func:`bindings`)."""
    return shape if known else tuple(symbol(f"{stem}{i}") for i in range(len(shape)))


def bindings(shape: Shape, stem: str = "s") -> dict[str, int]:
    """What the names of :func:`sizes_of` stand for."""
    return {f"{stem}{i}": n for i, n in enumerate(shape)}


def _tiles(grid: Sequence[tuple[Size, int]], bound: Mapping[str, int]) -> int:
    return prod(-(-value(size, bound) // step) for size, step in grid)


def _move(
    label: str, moved: tuple[boxes.Move, ...], inputs: Sequence[Any], right: Any, target: Target,
    bound: Mapping[str, int],
) -> Case:  # fmt: skip
    count = len(inputs)
    return Case(
        f"{label} {target.name} {'' if bound else 'known'}", target, ("moves", moved, count, target),
        partial(moves.emit, moved, count, target), tuple(inputs), right.shape,
        sum(_tiles(moves.grid(m), bound) for m in moved), right.astype(np.float64), 0.0,
        tuple(value(d, bound) for d in moves.numbers(moved).dims),
    )  # fmt: skip


def transpose_case(shape: Shape, order: Sequence[int], known: bool, target: Target) -> Case:
    """x with its axes in another order."""
    x = draw(*shape)
    moved = boxes.transposed(sizes_of(shape, known), order)
    bound = {} if known else bindings(shape)
    return _move(f"transpose {shape} {order}", moved, [x], x.transpose(order), target, bound)


def concat_case(shapes: Sequence[Shape], axis: int, known: bool, target: Target) -> Case:
    """Tensors one after another."""
    parts = [draw(*shape) + i for i, shape in enumerate(shapes)]
    named = [list(sizes_of(shape, known)) for shape in shapes]
    bound = {} if known else bindings(shapes[0])
    if not known:
        for i, shape in enumerate(shapes):
            named[i][axis] = symbol(f"p{i}")
            bound[f"p{i}"] = shape[axis]
    right = np.concatenate(parts, axis)
    return _move(f"concat {shapes} {axis}", boxes.joined(named, axis), parts, right, target, bound)


def slice_case(shape: Shape, where: Sequence[slice], known: bool, target: Target) -> Case:
    """A part of x; every slice has a start and a step."""
    x = draw(*shape)
    right = x[tuple(where)]
    begin, step = [s.start for s in where], [s.step for s in where]
    source, goal = sizes_of(shape, known), sizes_of(right.shape, known, "r")
    bound = {} if known else bindings(shape) | bindings(right.shape, "r")
    return _move(f"slice {shape} {where}", boxes.sliced(source, goal, begin, step), [x], right, target, bound)


def pad_case(shape: Shape, before: Shape, after: Shape, known: bool, target: Target) -> Case:
    """x with 2.5 around it."""
    x = draw(*shape)
    right = np.pad(x, list(zip(before, after, strict=True)), constant_values=2.5)
    source = sizes_of(shape, known)
    goal = [n + b + a for n, b, a in zip(source, before, after, strict=True)]
    bound = {} if known else bindings(shape)
    moved = boxes.padded(source, goal, before, 2.5)
    return _move(f"pad {shape} {before} {after}", moved, [x], right, target, bound)


def reduce_case(shape: Shape, axes: Shape, kind: str, known: bool, target: Target) -> Case:
    """sum, mean, max or min; the error of a sum is relative to the sum of magnitudes."""
    x = draw(*shape) + (1 if kind == "mean" else 0)
    wide = x.astype(np.float64)
    if x.size:
        right = np.asarray(getattr(np, kind)(wide, axis=axes))
    else:
        empty = {"sum": 0.0, "max": -np.inf, "min": np.inf}[kind]
        right = np.full([n for i, n in enumerate(shape) if i not in axes], empty)
    magnitude = np.abs(wide).sum(axis=axes) * (right.size / max(x.size, 1) if kind == "mean" else 1)
    found = reduce.merged(sizes_of(shape, known), axes, kind)
    bound = {} if known else bindings(shape)
    return Case(
        f"reduce {kind} {shape} {axes} {target.name} {'known' if known else ''}", target,
        ("reduce", found, target), partial(reduce.emit, found, target), (x,), right.shape,
        _tiles(reduce.grid(found), bound), right, 1e-6 * magnitude if kind in ("sum", "mean") else 0.0,
        tuple(value(d, bound) for d in reduce.numbers(found).dims),
    )  # fmt: skip


def resize_case(shape: Shape, out: Shape, attrs: ResizeAttrs, target: Target) -> Case:
    """Both axes resampled."""
    x = draw(*shape)
    right = x.astype(np.float64)
    for axis, size in ((2, out[0]), (3, out[1])):
        low, high, weight = taps(attrs, shape[axis], size)
        below, above = right.take(low, axis), right.take(high, axis)
        right = below + (above - below) * weight.reshape([-1] + [1] * (3 - axis))
    found = resize.Shape(attrs, *shape[2:], *out)
    allowed: Any = 1e-6 * (1 + np.abs(right)) if found.linear else 0.0
    return Case(
        f"resize {attrs} {shape} {out} {target.name}", target, ("resize", found, target),
        partial(resize.emit, found, target), (x,), right.shape, shape[0] * shape[1] * found.bands, right,
        allowed, scratch_floats=found.floats(target.lanes),
    )  # fmt: skip


def move_cases(target: Target) -> list[Case]:
    """Every way of copying: runs, strips, thin blocks, single elements, fills; sizes known and not."""
    found = []
    for known in (True, False):
        for shape, order in (
            ((2, 3, 5, 7), (0, 2, 1, 3)), ((1, 12, 5, 8), (0, 2, 3, 1)), ((1, 5, 8, 12), (0, 3, 1, 2)),
            ((2, 3, 41), (0, 2, 1)), ((2, 41, 3), (0, 2, 1)), ((37, 33), (1, 0)), ((2, 2, 19), (0, 2, 1)),
            ((256, 20), (1, 0)), ((20, 256), (1, 0)), ((5, 3, 2), (2, 1, 0)), ((1, 1), (1, 0)),
        ):  # fmt: skip
            found.append(transpose_case(shape, order, known, target))
        found += [
            concat_case([(1, 5, 7, 3), (1, 9, 7, 3)], 1, known, target),
            concat_case([(3, 2, 5), (3, 4, 5), (3, 1, 5)], 1, known, target),
            concat_case([(4, 1)] * 3, 1, known, target),
            concat_case([(1,), (5000,), (3,)], 0, known, target),
            slice_case((2, 9, 5, 7), np.s_[0::1, 3::1, 1::1, 2::1], known, target),
            slice_case((2, 8, 37), np.s_[0::1, 1::2, 1::2], known, target),
            slice_case((3, 200), np.s_[0::2, 3::3], known, target),
            slice_case((3, 200), np.s_[1::1, 7::9], known, target),
            pad_case((2, 3, 5, 7), (0, 0, 1, 1), (0, 0, 1, 2), known, target),
            pad_case((5, 1), (1, 2), (0, 3), known, target),
            pad_case((1, 40), (0, 3), (2, 4100), known, target),
        ]
    return found


def reduce_cases(target: Target) -> list[Case]:
    """Rows and columns, short and long, tails of every kind, several axes."""
    found = []
    for shape, axes, kind in (
        ((3, 20, 7, 7), (2, 3), "mean"), ((2, 3, 4, 5), (1, 3), "sum"), ((33, 2), (1,), "max"),
        ((5, 700), (1,), "sum"), ((3, 300, 5), (1,), "mean"), ((2, 9, 70), (1,), "min"),
        ((7, 3), (1,), "min"), ((2, 7, 35, 17), (1, 3), "max"), ((1, 1), (0,), "sum"),
        ((1031,), (0,), "max"), ((100, 2, 3), (1,), "sum"),
    ):  # fmt: skip
        found += [reduce_case(shape, axes, kind, known, target) for known in (True, False)]
    return [*found, *(reduce_case((3, 0), (1,), kind, False, target) for kind in ("sum", "max"))]


def resize_cases(target: Target) -> list[Case]:
    """Up and down, whole factors and not, rows shorter than vectors, every coordinate rule."""
    found = []
    for shape, out in (
        ((1, 2, 20, 20), (40, 40)), ((2, 3, 7, 7), (14, 14)), ((1, 1, 1, 1), (5, 7)), ((1, 2, 5, 3), (1, 1)),
        ((1, 2, 13, 17), (29, 31)), ((1, 1, 20, 100), (9, 20)), ((2, 1, 3, 40), (3, 40)),
    ):  # fmt: skip
        for attrs in (
            ResizeAttrs("nearest", "asymmetric", "floor"), ResizeAttrs("nearest"), ResizeAttrs("linear"),
            ResizeAttrs("linear", "align_corners"),
        ):  # fmt: skip
            found.append(resize_case(shape, out, attrs, target))
    return found

"""boxes: what transpose, concat, slice and pad copy, as boxes of row-major tensors.

A :class:`Move` copies a box: its axes in the order of y, each with its distance in x and in y.
Axes that stay neighbours are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sparsec.ir.dims import Size, product
from sparsec.targets.kernels.tiles import strides


@dataclass(frozen=True, slots=True)
class Axis:
    """``size`` elements, ``source`` apart in x and ``goal`` apart in y."""

    size: Size
    source: Size
    goal: Size


@dataclass(frozen=True, slots=True)
class Move:
    """y's box of ``axes`` from element ``write`` on becomes argument ``argument``'s from ``read`` on.

    Without an argument every element becomes ``value``.
    """

    axes: tuple[Axis, ...]
    argument: int | None = 0
    read: Size = 0
    write: Size = 0
    value: float = 0.0

    @property
    def sizes(self) -> Iterable[Size]:
        """Every size the kernel must know."""
        yield from (self.read, self.write)
        for axis in self.axes:
            yield from (axis.size, axis.source, axis.goal)

    @property
    def in_one_piece(self) -> bool:
        """Whether elements stay where they are to one another."""
        return len(self.axes) == 1 and self.axes[0].source == self.axes[0].goal == 1


def merged(move: Move) -> Move:
    """The same move with as few axes as possible."""
    axes: list[Axis] = []
    for axis in move.axes:
        if axis.size == 1:
            continue
        before = axes[-1] if axes else None
        span = (axis.source * axis.size, axis.goal * axis.size)
        if before and (before.source, before.goal) == span:
            axes[-1] = replace(axis, size=before.size * axis.size)
        else:
            axes.append(axis)
    return replace(move, axes=tuple(axes) or (Axis(1, 1, 1),))


def transposed(shape: Sequence[Size], order: Sequence[int]) -> tuple[Move, ...]:
    """NumPy's transpose of x."""
    source = strides(shape)
    goal = strides([shape[a] for a in order])
    return (merged(Move(tuple(Axis(shape[a], source[a], g) for a, g in zip(order, goal, strict=True)))),)


def joined(shapes: Sequence[Sequence[Size]], axis: int) -> tuple[Move, ...]:
    """The arguments one after another along an axis."""
    result = list(shapes[0])
    result[axis] = sum((s[axis] for s in shapes[1:]), start=shapes[0][axis])
    goal = strides(result)
    moves: list[Move] = []
    first: Size = 0
    for argument, shape in enumerate(shapes):
        axes = tuple(Axis(*each) for each in zip(shape, strides(shape), goal, strict=True))
        if product(shape) != 0:
            moves.append(merged(Move(axes, argument, write=first * goal[axis])))
        first = first + shape[axis]
    return tuple(moves)


def sliced(
    shape: Sequence[Size], result: Sequence[Size], begin: Sequence[int], step: Sequence[int]
) -> tuple[Move, ...]:
    """``x[begin:end:step]`` along every axis."""
    source, goal = strides(shape), strides(result)
    axes = tuple(Axis(n, d * s, g) for n, d, s, g in zip(result, source, step, goal, strict=True))
    read: Size = 0
    for distance, first in zip(source, begin, strict=True):
        read = read + distance * first
    return (merged(Move(axes, read=read)),)


def padded(
    shape: Sequence[Size], result: Sequence[Size], before: Sequence[int], value: float
) -> tuple[Move, ...]:
    """x with ``value`` around it: the copy, then for each axis what lies before and after it."""
    source, goal = strides(shape), strides(result)
    offsets = [d * b for d, b in zip(goal, before, strict=True)]
    found = [Move(tuple(map(Axis, shape, source, goal)), write=sum(offsets, start=0))]
    for i, first in enumerate(before):
        # axes before this one are filled already outside x
        sizes = [*shape[:i], 0, *result[i + 1 :]]
        corner = sum(offsets[:i], start=0)
        end = first + shape[i]
        for at, count in ((0, first), (end, result[i] + end * -1)):
            sizes[i] = count
            axes = tuple(Axis(n, 0, g) for n, g in zip(sizes, goal, strict=True))
            found.append(Move(axes, None, write=corner + goal[i] * at, value=value))
    return tuple(merged(m) for m in found if all(a.size != 0 for a in m.axes))

"""What the axes of a value are made of, followed through reshapes and transposes.

A value split into heads has axes that are products of named parts: batch, heads, length,
features.  Parts of size 1 can sit anywhere in row-major order, so they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from sparsec.ir.attributes import TransposeAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Node, Op

#: Axis by axis, the (letter, size) of the parts it is made of.
Parts: TypeAlias = list[list[tuple[str, Size]]]


def group(parts: Sequence[tuple[str, Size]], shape: tuple[Size, ...]) -> Parts | None:
    """Deal parts out, in order, to the axes they multiply up to."""
    left = [p for p in parts if p[1] != 1]
    grouped: Parts = []
    for size in shape:
        axis: list[tuple[str, Size]] = []
        while left and product(s for _, s in axis) != size:
            axis.append(left.pop(0))
        if product(s for _, s in axis) != size:
            return None
        grouped.append(axis)
    return None if left else grouped


def move(parts: Parts, n: Node) -> Parts | None:
    """The parts after a reshape, a transpose, or an elementwise node."""
    if n.op is Op.TRANSPOSE:
        return [parts[a] for a in cast(TransposeAttrs, n.attrs).axes]
    return group([p for axis in parts for p in axis], n.type.shape)


def letters(parts: Parts) -> str:
    """The letters in row-major order."""
    return "".join(letter for axis in parts for letter, _ in axis)


def nontrivial(order: str, sizes: Mapping[str, Size]) -> str:
    """The letters of ``order`` whose part is larger than 1."""
    return "".join(c for c in order if sizes[c] != 1)

"""problem: a layer of the graph as its kernel sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from sparsec.ir.attributes import ConvAttrs, MatmulAttrs, PoolAttrs
from sparsec.ir.dims import Size
from sparsec.ir.expr import Expr
from sparsec.ir.graph import Node, Op
from sparsec.ir.types import Type
from sparsec.targets.cuda.cost import UNKNOWN_COLUMNS
from sparsec.targets.geometry import Geometry
from sparsec.targets.target import Problem, Target


def problem_of(nodes: Mapping[str, Node], n: Node) -> Problem:
    """A layer as its kernel sees it."""
    return _convolution(nodes, n) if n.op is Op.CONV2D else _linear(nodes, n)


def _linear(nodes: Mapping[str, Node], n: Node) -> Problem:
    inner, rows = cast("tuple[int, int]", nodes[n.args[1]].type.shape)
    tokens: Size = n.type.tokens
    extras = tuple(_extra_kind(nodes[a], n, rows) for a in n.args[2:])
    attrs = cast(MatmulAttrs, n.attrs)
    columns = tokens if isinstance(tokens, int) else None
    panel = n.type.layout.panel
    return Problem(rows, inner, columns, panel, attrs.epilogue, extras, n.type.dtype, active=attrs.active)


def _convolution(nodes: Mapping[str, Node], n: Node) -> Problem:
    geometry = geometry_of(nodes, n)
    rows = cast(int, n.type.shape[1])
    extras = tuple(_extra_kind(nodes[a], n, rows) for a in n.args[2:])
    columns = geometry.images * geometry.positions if geometry.images else None
    epilogue: Expr | None = cast(ConvAttrs, n.attrs).epilogue
    inner = geometry.taps * geometry.channels
    return Problem(rows, inner, columns, 0, epilogue, extras, n.type.dtype, geometry)


def predicted_columns(problem: Problem, target: Target) -> int:
    """The tokens or positions that predictions for a problem are of."""
    if problem.columns is not None:
        return problem.columns
    if problem.conv:
        return problem.conv.positions
    return problem.panel or (UNKNOWN_COLUMNS if target.gpu else 1)


def geometry_of(nodes: Mapping[str, Node], n: Node) -> Geometry:
    """The sizes of a conv2d node whose images have known sizes.

    What reads single positions only, one beside the other, is one long row of positions.
    """
    attrs = cast(ConvAttrs, n.attrs)
    _, channels, high, wide = cast("tuple[int, int, int, int]", nodes[n.args[1]].type.shape)
    images, _, height, width = nodes[n.args[0]].type.shape
    known = images if isinstance(images, int) else None
    sizes = cast("tuple[int, int, int, int]", (height, width, *n.type.shape[2:]))
    if (high, wide) == (1, 1) and attrs.strides == (1, 1) and not any(attrs.padding):
        sizes = (1, sizes[0] * sizes[1]) * 2
        return Geometry(channels, *sizes, groups=attrs.groups, images=known)
    return Geometry(
        channels, *sizes, (high, wide), attrs.strides, attrs.padding[:2], attrs.dilation, attrs.groups, known
    )


def pool_geometry(x: Type, n: Node) -> Geometry:
    """The sizes of a pool node over x, images whose sizes are known: every channel is a group."""
    attrs = cast(PoolAttrs, n.attrs)
    channels, height, width = cast("tuple[int, int, int]", x.shape[1:])
    out_height, out_width = cast("tuple[int, int]", n.type.shape[2:])
    return Geometry(
        1, height, width, out_height, out_width, attrs.kernel, attrs.strides, attrs.padding[:2],
        attrs.dilation, groups=channels,
    )  # fmt: skip


def counted_padding(attrs: PoolAttrs) -> tuple[int, int, int, int]:
    """The rows and columns around x that a mean counts as elements."""
    return attrs.padding if attrs.kind == "mean" and attrs.count_padding else (0, 0, 0, 0)


def _extra_kind(extra: Node, n: Node, rows: int) -> str:
    if extra.type.elements == 1:
        return "one"
    if extra.type.shape != n.type.shape and extra.type.elements == rows:
        return "row"
    return "full"

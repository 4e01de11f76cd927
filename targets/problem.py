"""problem: a layer of the graph as its kernel sees it."""

from __future__ import annotations

from typing import cast

from sparsec.dims import Size
from sparsec.expr import Expr
from sparsec.ir import MatmulAttrs, Node
from sparsec.targets.target import Problem


def problem_of(nodes: dict[str, Node], n: Node) -> Problem:
    """A layer as its kernel sees it."""
    inner, rows = cast("tuple[int, int]", nodes[n.args[1]].type.shape)
    tokens: Size = n.type.tokens
    extras = tuple(_extra_kind(nodes[a], n, rows) for a in n.args[2:])
    epilogue: Expr | None = cast(MatmulAttrs, n.attrs).epilogue
    columns = tokens if isinstance(tokens, int) else None
    return Problem(rows, inner, columns, n.type.layout.panel, epilogue, extras)


def _extra_kind(extra: Node, n: Node, rows: int) -> str:
    if extra.type.elements == 1:
        return "one"
    if extra.type.shape != n.type.shape and extra.type.elements == rows:
        return "row"
    return "full"

"""The one error that lists everything a model needs and sparsec cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sparsec.errors import Unsupported
from sparsec.frontends.relax_types import fix_sizes, type_of
from sparsec.ir.dims import Size
from sparsec.ir.types import is_dynamic

#: an input's name and its sizes
Free: TypeAlias = tuple[str, Sequence[Size]]


def unsupported(failures: Sequence[tuple[str, str, str]], free: Free | None = None) -> Unsupported:
    """One error for all refused operators: (operator, node name, reason) each.

    ``free`` is an input with sizes that are not fixed: fixing them often helps.
    """
    grouped: dict[tuple[str, str], list[str]] = {}
    for operator, node, reason in failures:
        grouped.setdefault((operator, reason), []).append(node or "(unnamed)")
    lines = [
        f"  {op} ({len(nodes)}): {', '.join(nodes)}\n      {why}" for (op, why), nodes in grouped.items()
    ]
    kinds = len({operator for operator, _, _ in failures})
    head = f"the model uses {kinds} operator{'s' if kinds != 1 else ''} sparsec cannot run:"
    last = "Replace them in the model, or cut the model around them and compile the parts."
    if free:
        last = f"Some sizes are not fixed; it may work once they are: {fix_sizes(*free)}.\nElse: {last}"
    return Unsupported("\n".join([head, *lines, last]), [(op, node) for op, node, _ in failures])


def free_sizes(params: Sequence[Any]) -> Free | None:
    """The first parameter with a symbolic size."""
    for param in params:
        shape = type_of(param.ty).shape
        if is_dynamic(shape):
            return str(param.name), shape
    return None

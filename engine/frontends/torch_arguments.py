"""What an fx node was called with."""

from __future__ import annotations

from typing import Any


def arguments(importer: Any, node: Any) -> dict[str, Any]:
    """A node's arguments by their names in the operator's schema, defaults included."""
    schema = node.target._schema.arguments
    found = {a.name: a.default_value for a in schema if a.has_default_value()}
    found.update(zip((a.name for a in schema), importer.retrieve_args(node), strict=False))
    found.update({name: importer._retrieve_args(value) for name, value in node.kwargs.items()})
    return found

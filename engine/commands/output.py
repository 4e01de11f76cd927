"""How commands print."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1, sort_keys=True))


def console() -> Console:
    """Standard output for tables."""
    from rich.console import Console

    # a pipe has no width; 100 columns keep a table's lines together there
    return Console() if sys.stdout.isatty() else Console(width=100)

"""How commands print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def folder_of(path: Path) -> Path:
    """Where a file is to be written.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{path}: there is no folder {folder}")
    return folder


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1, sort_keys=True))


def console() -> Console:
    """Standard output for tables."""
    from rich.console import Console

    # a pipe has no width; 100 columns keep a table's lines together there
    return Console() if sys.stdout.isatty() else Console(width=100)

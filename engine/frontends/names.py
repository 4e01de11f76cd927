"""Names of sizes."""

from __future__ import annotations

import re


def clean_symbol(name: str) -> str:
    """A size's name as an identifier."""
    cleaned = re.sub(r"\W", "_", name)
    return cleaned if cleaned and not cleaned[0].isdigit() else f"size_{cleaned}"

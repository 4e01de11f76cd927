"""Where a browser is that opens pages without a screen."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser() -> str | None:
    """The path of the first there is."""
    return next(filter(None, map(shutil.which, NAMES)), None)

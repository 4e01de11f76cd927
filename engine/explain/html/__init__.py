"""The report as one self-contained page: tables, pictures of zeros, charts, the graph; no network."""

from __future__ import annotations

from sparsec.explain.html.page import page, write

__all__ = ["page", "write"]

"""``python -m sparsec``."""

from __future__ import annotations

from sparsec.cli import main

if __name__ == "__main__":
    main()

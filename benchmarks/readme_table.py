"""Writes the README's tables of results anew from ``benchmarks/results/*.json``.

python benchmarks/readme_table.py           # --check only says whether they are up to date

Workloads stand between the lines ``<!-- results: begin -->`` and ``end``; if there are lines
``<!-- models: begin -->`` and ``end``, the table of real models stands between those.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models_markdown
import table

ROOT = Path(__file__).resolve().parents[1]
Markdown = Callable[[dict[str, Any]], str]
#: name of the markers, also in the result files: what writes a file's table, and whether it must be there
SECTIONS: dict[str, tuple[Markdown, bool]] = {
    "results": (table.markdown, True),
    "models": (models_markdown.markdown, False),
}


def tables(section: str, markdown: Markdown) -> str:
    """All result files of a kind, one after the other."""
    found = sorted(Path(__file__).parent.joinpath("results").glob("*.json"))
    loaded = [json.loads(path.read_text()) for path in found]
    return "\n".join(markdown(results) for results in loaded if section in results)


def rewritten(text: str) -> str:
    """The README's text with fresh tables between the markers.

    Raises:
        SystemExit: markers are missing.
    """
    for section, (markdown, needed) in SECTIONS.items():
        begin_mark, end_mark = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
        before, begin, rest = text.partition(begin_mark)
        _, end, after = rest.partition(end_mark)
        if begin and end:
            text = f"{before}{begin}\n{tables(section, markdown)}{end}{after}"
        elif needed or begin:
            raise SystemExit(f"README.md needs the lines {begin_mark} and {end_mark}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if it would")
    check: bool = parser.parse_args().check
    path = ROOT / "README.md"
    old = path.read_text()
    new = rewritten(old)
    if check:
        raise SystemExit(int(new != old))
    path.write_text(new)


if __name__ == "__main__":
    main()

"""Writes the README's table of results anew from ``benchmarks/results/*.json``.

python benchmarks/readme_table.py           # --check only says whether it is up to date
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from table import markdown

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def tables() -> str:
    """All result files, one after the other."""
    found = sorted(Path(__file__).parent.joinpath("results").glob("*.json"))
    loaded = [json.loads(path.read_text()) for path in found]
    return "\n".join(markdown(results) for results in loaded if "machine" in results)


def rewritten(text: str) -> str:
    """The README's text with fresh tables between the markers.

    Raises:
        SystemExit: the markers are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{tables()}{END}{after}"


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

"""``sparsec verify``, ``sparsec compress`` and ``sparsec decompress``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsec.commands.options import Json, Quiet
from sparsec.commands.output import print_json
from sparsec.errors import ConfigError
from sparsec.runtime.files import folder_of

if TYPE_CHECKING:
    from sparsec.runtime.verify import Verified

Artifact = Annotated[Path, typer.Argument(metavar="FILE", help="a compiled .sparsec file")]


def verify_command(
    file: Artifact,
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="HEX", help="also refuse any file but the one of this digest"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read all of a file, compare it with its checksums, and exit with 1 where it is damaged."""
    from sparsec.runtime.verify import verify

    found = verify(file, sha256)
    if as_json:
        print_json(found.as_dict())
    elif not quiet:
        _show(found)
    if not found.sound:
        raise typer.Exit(1)


def _show(found: Verified) -> None:
    from sparsec.explain.text import bytes_text

    for section in found.sections:
        name = f"{section.name} ({section.isa})" if section.isa else section.name
        print(f"{name:<28} {bytes_text(section.nbytes):>9}  {'ok' if section.sound else 'DAMAGED'}")
    print(f"sha256 {found.sha256}")
    for problem in found.problems:
        print(f"{found.path}: {problem}")
    if found.sound:
        print(f"{found.path}: {bytes_text(found.nbytes)}, as it was written")


def compress_command(
    file: Artifact,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="default: FILE with .zst")] = None,
    quiet: Quiet = False,
) -> None:
    """Compress a compiled model for shipping; it is expanded again before it runs."""
    from sparsec.runtime.shipping import SUFFIX, compress

    path = output or file.with_name(file.name + SUFFIX)
    folder_of(path)
    compress(file, path)
    if not quiet:
        _say_sizes(file, path)


def decompress_command(
    file: Artifact,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="default: FILE without .zst")] = None,
    quiet: Quiet = False,
) -> None:
    """Expand a compressed model to what it was, to the byte."""
    from sparsec.runtime.shipping import SUFFIX, decompress

    if output is None and file.suffix != SUFFIX:
        raise ConfigError(f"{file}: its name does not end with {SUFFIX}; say with --output what to write")
    path = output or file.with_suffix("")
    folder_of(path)
    decompress(file, path)
    if not quiet:
        _say_sizes(file, path)


def _say_sizes(source: Path, path: Path) -> None:
    from sparsec.explain.text import bytes_text

    before, after = source.stat().st_size, path.stat().st_size
    print(f"{path}: {bytes_text(after)}, {after / before:.0%} of {source.name} ({bytes_text(before)})")

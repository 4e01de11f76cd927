"""``sparsec compile``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sparsec.commands.models import compile_to
from sparsec.commands.options import Calibrate, Dense, Json, OnnxPath, Quiet, Shapes, TargetName
from sparsec.commands.output import console, print_json
from sparsec.commands.watch import watched
from sparsec.runtime.files import folder_of


def compile_command(
    model: OnnxPath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="default: MODEL with .sparsec")
    ] = None,
    shape: Shapes = None,
    target: TargetName = "native",
    dense: Dense = None,
    calibrate: Calibrate = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model and write it as one file."""
    path = output or model.with_suffix(".sparsec")
    folder_of(path)
    started = time.perf_counter()
    with watched(quiet) as progress:
        report = compile_to(path, model, shape, target, dense, progress, calibrate)
    seconds, nbytes = time.perf_counter() - started, path.stat().st_size
    if as_json:
        print_json({"output": str(path), "seconds": seconds, "bytes": nbytes, "report": report})
    elif not quiet:
        from sparsec.explain import bytes_text, render

        render(report, console())
        print(f"{path}: {bytes_text(nbytes)}, compiled in {seconds:.1f} s")

"""``sparsec compile``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sparsec.commands.models import compile_to
from sparsec.commands.options import (
    Calibrate,
    Dense,
    Dtype,
    Json,
    OnnxPath,
    Quiet,
    Shapes,
    TargetName,
    Threads,
)
from sparsec.commands.output import console, print_json
from sparsec.commands.watch import watched
from sparsec.runtime.files import folder_of


def compile_command(
    model: OnnxPath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="default: MODEL with .sparsec, or .sparsec.zst")
    ] = None,
    shape: Shapes = None,
    target: TargetName = "native",
    threads: Threads = None,
    dtype: Dtype = None,
    dense: Dense = None,
    calibrate: Calibrate = None,
    compressed: Annotated[
        bool, typer.Option("--compress", help="write the file compressed, for shipping")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model and write it as one file."""
    path = output or model.with_suffix(".sparsec.zst" if compressed else ".sparsec")
    folder_of(path)
    started = time.perf_counter()
    with watched(quiet) as progress:
        report = compile_to(
            path, model, shape, target, dense, progress, calibrate, compressed, dtype, threads
        )
    seconds, nbytes = time.perf_counter() - started, path.stat().st_size
    if as_json:
        print_json({"output": str(path), "seconds": seconds, "bytes": nbytes, "report": report})
    elif not quiet:
        from sparsec.explain.text import bytes_text, render

        render(report, console())
        print(f"{path}: {bytes_text(nbytes)}, compiled in {seconds:.1f} s")

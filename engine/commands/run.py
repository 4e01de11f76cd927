"""``sparsec run``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsec.commands.models import feeds_for, program_of
from sparsec.commands.options import (
    Calibrate,
    Dense,
    Inputs,
    Json,
    ModelPath,
    Quiet,
    Shapes,
    Sizes,
    TargetName,
    Threads,
)
from sparsec.commands.output import print_json
from sparsec.commands.watch import watched

if TYPE_CHECKING:
    import numpy as np


def run_command(
    model: ModelPath,
    inputs: Inputs = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=".npz or .npy to write")] = None,
    shape: Shapes = None,
    size: Sizes = None,
    target: TargetName = "native",
    dense: Dense = None,
    calibrate: Calibrate = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a model on arrays from a file, or on random ones."""
    with watched(quiet) as progress:
        program = program_of(model, shape, target, threads, dense, progress, calibrate)
    feeds = feeds_for(program, inputs, size, quiet)
    outputs = dict(zip((o.name for o in program.outputs), program.run(None, feeds), strict=True))
    if output is not None:
        from sparsec import feeds as arrays

        arrays.write(output, outputs)
    if as_json:
        print_json({"outputs": [_described(name, y) for name, y in outputs.items()]})
    elif not quiet:
        for name, y in outputs.items():
            print(_line(_described(name, y)))


def _described(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size:
        about |= {"min": float(array.min()), "mean": float(array.mean()), "max": float(array.max())}
    return about


def _line(about: Mapping[str, Any]) -> str:
    text = f"{about['name']}: {about['dtype']}{about['shape']}"
    if "mean" in about:
        text += f"  min {about['min']:.6g}  mean {about['mean']:.6g}  max {about['max']:.6g}"
    return text

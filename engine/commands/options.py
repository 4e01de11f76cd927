"""Options that commands share, and what their texts mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsec.errors import ConfigError

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="an .onnx file, or a compiled .sparsec file")
]
OnnxPath = Annotated[Path, typer.Argument(metavar="MODEL", help="an .onnx file")]
Inputs = Annotated[
    Path | None, typer.Option("--input", "-i", help=".npz with an array per input, or .npy for one")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=SIZES", help="an input's sizes: x=1,3,32,32 or x=batch,784"),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="NAME=N", help="a named dimension of inputs made up: batch=8 (default 1)"),
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        help="the processor to compile for: native, x86-64-v3, x86-64-v4; ARM: aarch64, "
        "armv8.2-a+dotprod, cortex-a76, neoverse-n1, neoverse-v1; a GPU: cuda, sm_80, sm_90, sm_90a",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="what a GPU computes in: float32 (default), float16 or bfloat16"),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="threads to run on, or be made for (default: SPARSEC_THREADS, else 1)"),
]
Dense = Annotated[
    list[str] | None,
    typer.Option("--dense", metavar="LAYER", help="run this layer dense whatever is predicted, or all"),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate", metavar="FILE",
        help="sample inputs, as --input takes them: layers that find many of them zero may skip those",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")]


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int | str, ...]] | None:
    """``["x=1,3,32,32", "y=batch,8"]`` as a mapping; a size is a number or the name of one.

    Raises:
        ConfigError: a text of another form.
    """
    return {name: tuple(map(_size, sizes.split(","))) for name, sizes in _pairs(texts, "--shape")} or None


def parse_dense(names: list[str] | None) -> bool | list[str]:
    """What ``sparsec.compile(dense=...)`` takes."""
    return True if names and "all" in names else names or False


def parse_sizes(texts: list[str] | None) -> dict[str, int]:
    """``["batch=8"]`` as a mapping.

    Raises:
        ConfigError: a text of another form.
    """
    pairs = _pairs(texts, "--size")
    for name, value in pairs:
        if not value.isdigit() or int(value) < 1:
            raise ConfigError(f"--size {name}={value}: expected a positive number")
    return {name: int(value) for name, value in pairs}


def _size(text: str) -> int | str:
    text = text.strip()
    if text.isdigit() and int(text) > 0:
        return int(text)
    if not text.isidentifier():
        raise ConfigError(f"--shape: {text!r} is neither a positive number nor a name")
    return text


def _pairs(texts: list[str] | None, option: str) -> list[tuple[str, str]]:
    found = [text.rpartition("=")[::2] for text in texts or ()]
    for name, value in found:
        if not name or not value:
            raise ConfigError(f"{option}: expected NAME=VALUE, as in x=1,3,32,32 or batch=8")
    return found

"""The command line: ``sparsec compile | run | explain | bench``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sparsec.config import settings
from sparsec.errors import ConfigError, ModelError, SparsecError

if TYPE_CHECKING:
    import numpy as np

    from sparsec.runtime import Program

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compile pruned neural networks into kernels that skip the zeros.",
)

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="an .onnx file, or a compiled .sparsec file")
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
    str, typer.Option("--target", help="the processor to compile for: native, x86-64-v3 or x86-64-v4")
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="threads to run on (default: SPARSEC_THREADS, else 1)")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")]


@app.command("compile")
def compile_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="an .onnx file")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="default: MODEL with .sparsec")
    ] = None,
    shape: Shapes = None,
    target: TargetName = "native",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model and write it as one file."""
    path = output or model.with_suffix(".sparsec")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")
    started = time.perf_counter()
    report = _compile_to(path, model, shape, target)
    seconds, nbytes = time.perf_counter() - started, path.stat().st_size
    if as_json:
        _print_json({"output": str(path), "seconds": seconds, "bytes": nbytes, "report": report})
    elif not quiet:
        from sparsec.explain import bytes_text, render

        render(report, _console())
        print(f"{path}: {bytes_text(nbytes)}, compiled in {seconds:.1f} s")


@app.command()
def run(
    model: ModelPath,
    inputs: Annotated[
        Path | None, typer.Option("--input", "-i", help=".npz with an array per input, or .npy for one")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=".npz or .npy to write")] = None,
    shape: Shapes = None,
    size: Sizes = None,
    target: TargetName = "native",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a model on arrays from a file, or on random ones."""
    program = _program(model, shape, target, threads)
    feeds = _feeds(program, inputs, size, quiet)
    outputs = dict(zip((o.name for o in program.outputs), program.run(None, feeds), strict=True))
    if output is not None:
        from sparsec import feeds as arrays

        arrays.write(output, outputs)
    if as_json:
        _print_json({"outputs": [_described(name, y) for name, y in outputs.items()]})
    elif not quiet:
        for name, y in outputs.items():
            print(_line(_described(name, y)))


@app.command()
def explain(
    model: ModelPath,
    candidates: Annotated[bool, typer.Option("--candidates", help="also list what else was weighed")] = False,
    picture: Annotated[bool, typer.Option(help="draw where each layer's zeros are")] = True,
    shape: Shapes = None,
    target: TargetName = "native",
    as_json: Json = False,
) -> None:
    """Say for every layer what its zeros look like, which kernel was chosen, and why."""
    report = _report(model, shape, target)
    if as_json:
        _print_json(report)
    else:
        from sparsec.explain import render

        render(report, _console(), candidates=candidates, pictures=picture)


@app.command()
def bench(
    model: ModelPath,
    inputs: Annotated[
        Path | None, typer.Option("--input", "-i", help=".npz with an array per input, or .npy for one")
    ] = None,
    shape: Shapes = None,
    size: Sizes = None,
    target: TargetName = "native",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="turns each engine gets")] = 30,
    profile: Annotated[bool, typer.Option("--profile", help="also time every step of the program")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time a model, in turns with onnxruntime where that is installed."""
    from sparsec import bench as beside
    from sparsec.measure import interleaved, pin_to_one_core

    count = settings().threads if threads is None else threads
    program = _program(model, shape, target, threads)
    feeds = _feeds(program, inputs, size, quiet or as_json)
    if count == 1:
        pin_to_one_core()  # before onnxruntime starts threads of its own
    calls: dict[str, Callable[[], list[Any]]] = {"sparsec": lambda: program.run(None, feeds)}
    session = beside.onnxruntime_session(model, count)
    if session is not None:
        calls["onnxruntime"] = lambda: list(session.run(None, feeds))
    apart = beside.difference(*(call() for call in calls.values())) if session is not None else None
    timings = interleaved(calls, rounds, pause=0.002 if count == 1 else 0.06)
    steps = program.profile(feeds, repeats=rounds) if profile else []
    if as_json:
        described = beside.as_json(timings, apart, count, rounds)
        _print_json(described | ({"steps": [asdict(s) for s in steps]} if profile else {}))
    elif not quiet:
        beside.show(timings, apart, count)
        if profile:
            from sparsec.runtime.profile import table

            print(table(steps, program.report))


def _compile_to(path: Path, model: Path, shape: list[str] | None, target: str) -> dict[str, Any]:
    """Compile and write; the machine compiled for need not be this one.  Returns the report."""
    source, shapes = _onnx_file(model), parse_shapes(shape)  # refused before a compiler is loaded
    from sparsec.compiler import artifact
    from sparsec.frontends import import_model
    from sparsec.runtime.artifact import manifest_of
    from sparsec.runtime.files import replacing
    from sparsec.targets.x86 import target_named

    machine = target_named(target)
    data = artifact(import_model(source, shapes), machine)
    with replacing(path) as file:
        file.write(data)
    return dict(manifest_of(data)["report"])


def _program(model: Path, shape: list[str] | None, target: str, threads: int | None) -> Program:
    if _is_compiled(model, shape, target):
        from sparsec.runtime import Program

        return Program.load(model, threads)
    import sparsec

    source, shapes = _onnx_file(model), parse_shapes(shape)
    return sparsec.compile(source, shapes=shapes, target=target, threads=threads)


def _report(model: Path, shape: list[str] | None, target: str) -> dict[str, Any]:
    if _is_compiled(model, shape, target):
        from sparsec.runtime import Program

        return Program.load(model).report
    import sparsec

    source, shapes = _onnx_file(model), parse_shapes(shape)
    return sparsec.analyze(source, shapes=shapes, target=target)


def _is_compiled(model: Path, shape: list[str] | None, target: str) -> bool:
    if model.suffix != ".sparsec":
        return False
    if shape or target != "native":
        raise ConfigError(f"{model} is compiled already; --shape and --target are for .onnx files")
    return True


def _onnx_file(model: Path) -> Path:
    if model.suffix == ".sparsec":
        raise ConfigError(f"{model} is compiled already; run it with `sparsec run`")
    if not model.is_file():
        raise ModelError(f"{model}: no such file")
    return model


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int | str, ...]] | None:
    """``["x=1,3,32,32", "y=batch,8"]`` as a mapping; a size is a number or the name of one.

    Raises:
        ConfigError: a text of another form.
    """
    return {name: tuple(map(_size, sizes.split(","))) for name, sizes in _pairs(texts, "--shape")} or None


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


def _feeds(program: Program, path: Path | None, size: list[str] | None, quiet: bool) -> dict[str, Any]:
    from sparsec import feeds

    if path is not None:
        if size:
            raise ConfigError("--size is for inputs made up; --input says the sizes itself")
        return feeds.read(path, program.inputs)
    sizes = _pairs(size, "--size")
    for name, value in sizes:
        if not value.isdigit() or int(value) < 1:
            raise ConfigError(f"--size {name}={value}: expected a positive number")
    made_up = feeds.random(program.inputs, {name: int(value) for name, value in sizes})
    if not quiet:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in made_up.items())
        print(f"no --input given; random inputs: {shapes}", file=sys.stderr)
    return made_up


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


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, sort_keys=True))


def _console() -> Any:
    from rich.console import Console

    # a pipe has no width; 100 columns keep a table's lines together there
    return Console() if sys.stdout.isatty() else Console(width=100)


def main() -> None:
    """The console script: exits with 2 after one line on standard error when sparsec refuses."""
    _keep_torch_out()
    try:
        app()
    except SparsecError as error:
        if _debugging():
            raise
        print(f"sparsec: {error}", file=sys.stderr)
        sys.exit(2)


def _keep_torch_out() -> None:
    """Make ``import torch`` fail: tvm_ffi imports it wherever it is installed, which takes seconds.

    Nothing here reads a torch module, and the process is the command's own.
    """
    sys.modules.setdefault("torch", cast(Any, None))


def _debugging() -> bool:
    try:
        return settings().debug >= 1
    except ConfigError:
        return False

"""The model a command was given, compiled or not, and arrays to run it on."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.commands.options import parse_dense, parse_shapes, parse_sizes
from sparsec.errors import ArtifactError, ConfigError, ModelError

if TYPE_CHECKING:
    from sparsec.progress import Progress
    from sparsec.runtime import Program


def compile_to(
    path: Path, model: Path, shape: list[str] | None, target: str, dense: list[str] | None,
    progress: Progress, calibrate: Path | None = None, compressed: bool = False, dtype: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compile and write; the machine compiled for need not be this one.  Returns the report."""
    source, shapes = onnx_file(model), parse_shapes(shape)  # refused before a compiler is loaded
    from sparsec.compiler import artifact, machine_of, measured_on
    from sparsec.frontends import import_model
    from sparsec.runtime.artifact import manifest_of
    from sparsec.runtime.files import replacing
    from sparsec.runtime.shipping import write_compressed

    machine = machine_of(target, dtype, calibrate, threads)
    graph = import_model(source, shapes)
    measured = measured_on(machine, True)
    data = artifact(graph, machine, calibrate, parse_dense(dense), progress, measured)
    if compressed:
        write_compressed(data, path)
    else:
        with replacing(path) as file:
            file.write(data)
    return dict(manifest_of(data)["report"])


def program_of(
    model: Path, shape: list[str] | None, target: str, threads: int | None, dense: list[str] | None,
    progress: Progress, calibrate: Path | None = None,
) -> Program:  # fmt: skip
    """A program ready to run, compiled now unless the file is.

    Raises:
        ConfigError: it would be for a GPU that is not here.
    """
    if is_compiled(model, shape, target, dense, calibrate):
        from sparsec.runtime import Program

        return Program.load(model, threads)
    source, shapes = onnx_file(model), parse_shapes(shape)
    import sparsec
    from sparsec.targets.named import runs_here, target_named

    machine = target_named(target)
    if machine.gpu and not runs_here(machine):
        raise ConfigError(
            f"--target {target}: no such GPU is here to run on; `sparsec compile` writes a file for one"
        )
    return sparsec.compile(
        source, shapes=shapes, target=target, threads=threads, calibrate=calibrate,
        dense=parse_dense(dense), progress=progress,
    )  # fmt: skip


def _report_in(path: Path) -> dict[str, Any]:
    """What a compiled file says of itself, also one for a machine that this is not."""
    from sparsec.runtime import Program
    from sparsec.runtime.artifact import manifest_of
    from sparsec.runtime.shipping import expanded, is_compressed
    from sparsec.runtime.verify import verify

    try:
        return Program.load(path).report
    except ArtifactError:
        with expanded(path, None) if is_compressed(path) else nullcontext(path) as whole:
            if not verify(whole).sound:
                raise
            return dict(manifest_of(whole.read_bytes()).get("report", {}))


def report_of(
    model: Path, shape: list[str] | None, target: str, dense: list[str] | None, progress: Progress,
    calibrate: Path | None = None, dtype: str | None = None, threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What ``Program.report`` holds; no code is generated but for samples to run."""
    if is_compiled(model, shape, target, dense, calibrate):
        return _report_in(model)
    source, shapes = onnx_file(model), parse_shapes(shape)
    import sparsec

    return sparsec.analyze(
        source, shapes=shapes, target=target, calibrate=calibrate, dense=parse_dense(dense),
        progress=progress, dtype=dtype, threads=threads,
    )  # fmt: skip


def is_compiled(
    model: Path, shape: list[str] | None, target: str, dense: list[str] | None, calibrate: Path | None = None
) -> bool:
    """Whether a file is an artifact.

    Raises:
        ConfigError: it is, and options say how to compile it.
    """
    if not _is_artifact(model):
        return False
    if shape or dense or calibrate or target != "native":
        raise ConfigError(
            f"{model} is compiled already; --shape, --target, --dense and --calibrate are for .onnx files"
        )
    return True


def _is_artifact(model: Path) -> bool:
    return model.name.endswith((".sparsec", ".sparsec.zst"))


def onnx_file(model: Path) -> Path:
    """The file, which is there and no artifact.

    Raises:
        ConfigError: it is compiled already.
        ModelError: there is none.
    """
    if _is_artifact(model):
        raise ConfigError(f"{model} is compiled already; run it with `sparsec run`")
    if not model.is_file():
        raise ModelError(f"{model}: no such file")
    return model


def feeds_for(program: Program, path: Path | None, size: list[str] | None, quiet: bool) -> dict[str, Any]:
    """Inputs from a file, or made up, which standard error then says.

    Raises:
        ConfigError: sizes for inputs that a file gives.
        InputError: the arrays do not fit.
    """
    from sparsec import feeds

    if path is not None:
        if size:
            raise ConfigError("--size is for inputs made up; --input says the sizes itself")
        return feeds.read(path, program.inputs)
    made_up = feeds.random(program.inputs, parse_sizes(size))
    if not quiet:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in made_up.items())
        print(f"no --input given; random inputs: {shapes}", file=sys.stderr)
    return made_up

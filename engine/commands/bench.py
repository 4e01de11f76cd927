"""``sparsec bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsec.commands.models import feeds_for, is_compiled, program_of
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
    parse_shapes,
)
from sparsec.commands.output import console, print_json
from sparsec.commands.watch import watched
from sparsec.config import threads_of
from sparsec.errors import ConfigError
from sparsec.runtime.files import folder_of

if TYPE_CHECKING:
    from sparsec.bench.compare import LayerTime
    from sparsec.bench.engines import Engine
    from sparsec.progress import Progress
    from sparsec.runtime import Program

Against = Annotated[
    str | None,
    typer.Option(
        metavar="ENGINES",
        help="onnxruntime, openvino, torch, separated by commas, or none"
        " (default: those of the first two that are installed)",
    ),
]
BesideDense = Annotated[bool, typer.Option(help="also time sparsec's own dense kernels, layer by layer")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="write the fastest of sparsec's programs to this file")
]


def bench_command(
    model: ModelPath,
    against: Against = None,
    inputs: Inputs = None,
    shape: Shapes = None,
    size: Sizes = None,
    target: TargetName = "native",
    dense: Dense = None,
    calibrate: Calibrate = None,
    beside_dense: BesideDense = True,
    output: Output = None,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="turns each engine gets")] = 30,
    profile: Annotated[bool, typer.Option("--profile", help="also time every step of the program")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time a model in turns with other engines, check all outputs, and say which to use."""
    compiled = is_compiled(model, shape, target, dense, calibrate)
    engines = engines_asked_for(against, compiled)  # refused before a compiler is loaded
    if output is not None:
        folder_of(output)
    from sparsec.bench.compare import SPARSEC, compare, is_sparse
    from sparsec.bench.engines import Task
    from sparsec.bench.measure import pin_to_one_core
    from sparsec.bench.show import as_json as data
    from sparsec.bench.show import fastest_of_ours, table, verdict

    count = threads_of(threads)
    with watched(quiet) as progress:
        program = program_of(model, shape, target, count, dense, progress, calibrate)
        feeds = feeds_for(program, inputs, size, quiet or as_json)
        if count == 1:
            pin_to_one_core()  # before other engines start threads of their own
        programs, layers = {SPARSEC: program}, list[Any]()
        if beside_dense and not compiled and is_sparse(program):
            arguments = (model, shape, target, count)
            dense_programs, layers = _dense_programs(program, feeds, arguments, dense, progress, calibrate)
            programs |= dense_programs
        task = Task(model, _contiguous(feeds), _fixed(shape), count)
        found = compare(programs, engines, task, rounds, progress)
        steps = program.profile(feeds, repeats=rounds) if profile else []
    if output is not None:
        programs[fastest_of_ours(found)].save(output)
    said = verdict(found, layers, program.report, str(model))
    if as_json:
        described = data(found, layers, said)
        print_json(described | ({"steps": [asdict(s) for s in steps]} if profile else {}))
    elif not quiet:
        console().print(table(found))
        print("\n".join(said))
        if profile:
            from sparsec.runtime.profile import table as steps_table

            print(steps_table(steps, program.report))


def engines_asked_for(against: str | None, compiled: bool) -> list[Engine]:
    """The engines by their names; by default those that are installed and read ONNX files.

    Raises:
        ConfigError: an unknown one, one that is not installed, or a model compiled already.
    """
    from sparsec.bench.engines import ENGINES, READERS

    if against is None:
        return [] if compiled else [ENGINES[name] for name in READERS if ENGINES[name].installed]
    names = [name.strip() for name in against.split(",") if name.strip() not in ("", "none")]
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        raise ConfigError(f"--against {', '.join(unknown)}: expected {', '.join(ENGINES)} or none")
    if names and compiled:
        raise ConfigError("--against: other engines read the .onnx file; give that one")
    missing = {name: ENGINES[name].missing for name in names if ENGINES[name].missing}
    if missing:
        packages = " ".join(package for several in missing.values() for package in several)
        raise ConfigError(f"--against {', '.join(missing)}: not installed; pip install {packages}")
    return [ENGINES[name] for name in dict.fromkeys(names)]


def _dense_programs(
    program: Program, feeds: Mapping[str, Any], arguments: tuple[Path, list[str] | None, str, int],
    dense: list[str] | None, progress: Progress, calibrate: Path | None,
) -> tuple[dict[str, Program], list[LayerTime]]:  # fmt: skip
    """The model with every layer dense, and with those dense that are faster so, if there are any."""
    from sparsec.bench.compare import DENSE, MIXED, layer_times

    programs = {DENSE: program_of(*arguments, ["all"], progress)}
    layers = layer_times(program, programs[DENSE], feeds, progress=progress)
    faster = [layer.name for layer in layers if layer.faster_dense]
    if faster and len(faster) < len(layers):
        programs[MIXED] = program_of(*arguments, [*(dense or ()), *faster], progress, calibrate)
    return programs, layers


def _contiguous(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as every engine takes them without a copy."""
    import numpy as np

    return {name: np.ascontiguousarray(x) for name, x in feeds.items()}


def _fixed(shape: list[str] | None) -> dict[str, tuple[int, ...]] | None:
    """The shapes that leave nothing open, for engines that profit from that too."""
    known: dict[str, tuple[int, ...]] = {}
    for name, sizes in (parse_shapes(shape) or {}).items():
        numbers = tuple(size for size in sizes if isinstance(size, int))
        if len(numbers) == len(sizes):
            known[name] = numbers
    return known or None

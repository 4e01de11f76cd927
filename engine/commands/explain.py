"""``sparsec explain``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsec.commands.models import feeds_for, is_compiled, onnx_file, report_of
from sparsec.commands.options import (
    Calibrate,
    Dense,
    Dtype,
    Inputs,
    Json,
    ModelPath,
    Quiet,
    Shapes,
    Sizes,
    TargetName,
    Threads,
    parse_dense,
    parse_shapes,
)
from sparsec.commands.output import console, print_json
from sparsec.commands.watch import watched
from sparsec.config import threads_of
from sparsec.errors import ConfigError

if TYPE_CHECKING:
    from sparsec.ir.graph import Graph
    from sparsec.progress import Progress
    from sparsec.runtime import Program
    from sparsec.sparsity.prune import Pruning
    from sparsec.targets.target import Target


def explain_command(
    model: ModelPath,
    candidates: Annotated[bool, typer.Option("--candidates", help="also list what else was weighed")] = False,
    picture: Annotated[bool, typer.Option(help="draw where each layer's zeros are")] = True,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="also write a page with charts and the graph"),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="run the model, and dense beside it, and time every layer")
    ] = False,
    prune: Annotated[
        str | None, typer.Option("--prune", metavar="SHARE", help="what if so much were pruned: 90%")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern", metavar="PATTERN", help="in what pattern: unstructured, 16x1, 2:4, channels"
        ),
    ] = None,
    inputs: Inputs = None,
    shape: Shapes = None,
    size: Sizes = None,
    target: TargetName = "native",
    dtype: Dtype = None,
    dense: Dense = None,
    calibrate: Calibrate = None,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="turns a measurement takes")] = 10,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say for every layer what its zeros look like, which kernel was chosen, and why."""
    pruning = _pruning(prune, pattern)
    if pruning is not None and calibrate is not None:
        raise ConfigError("--calibrate does not go with --prune: nobody knows a pruned model's activations")
    if html is not None:
        from sparsec.explain.html.page import check
        from sparsec.runtime.files import folder_of

        check()
        folder_of(html)
    count = threads_of(threads)
    with watched(quiet or as_json) as progress:
        wanted = _Wanted(
            model, shape, target, dense, count, inputs, size, rounds, quiet or as_json, progress,
            calibrate, dtype,
        )  # fmt: skip
        if measure:
            report = wanted.measured(pruning)
        elif pruning is not None:
            report = wanted.as_if(pruning)
        else:
            report = report_of(model, shape, target, dense, progress, calibrate, dtype, count)
    if html is not None:
        from sparsec.explain.html.page import write

        write(html, report, model.name)
    if as_json:
        print_json(report)
    elif not quiet:
        from sparsec.explain.text import render

        render(report, console(), candidates=candidates, pictures=picture)
        if html is not None:
            print(f"{html}: written")


def _pruning(prune: str | None, pattern: str | None) -> Pruning | None:
    if prune is None and pattern is None:
        return None
    from sparsec.sparsity.prune import pruning_of

    return pruning_of(prune, pattern)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A model, how to compile it, and how to run it."""

    model: Path
    shape: list[str] | None
    target: str
    dense: list[str] | None
    threads: int
    inputs: Path | None
    size: list[str] | None
    rounds: int
    quiet: bool
    progress: Progress
    calibrate: Path | None = None
    dtype: str | None = None

    def as_if(self, pruning: Pruning) -> dict[str, Any]:
        """The report, and what the pruning is predicted to change."""
        self._refuse_compiled()
        graph, machine = self._imported()
        from sparsec.compiler import measured_on
        from sparsec.explain.what_if import analysed, as_if_pruned, compared

        records = measured_on(machine, True)
        report = analysed(graph, machine, records)
        then = analysed(as_if_pruned(graph, machine, pruning), machine, records)
        return report | {"what_if": compared(report, then, pruning)}

    def measured(self, pruning: Pruning | None) -> dict[str, Any]:
        """The report with measured times; if it is to be pruned, also of the pruned model."""
        if pruning is not None:
            self._refuse_compiled()
        from sparsec.bench.measure import pin_to_one_core
        from sparsec.explain.measured import measured

        program, dense, pruned = self._programs(pruning)
        feeds = feeds_for(program, self.inputs, self.size, self.quiet)
        if self.threads == 1:
            pin_to_one_core()
        report = measured(program, feeds, dense, self.rounds, self.progress)
        if pruned is None or pruning is None:
            return report
        from sparsec.explain.what_if import compared

        then = measured(pruned, feeds, None, self.rounds, self.progress)
        return report | {"what_if": compared(report, then, pruning)}

    def _programs(self, pruning: Pruning | None) -> tuple[Program, Program | None, Program | None]:
        """The model's, that of dense kernels, and that of the pruned model."""
        from sparsec.runtime import Program

        if self._is_compiled():
            return Program.load(self.model, self.threads), None, None
        graph, machine = self._imported()
        from sparsec.compiler import artifact, measured_on
        from sparsec.explain.what_if import as_if_pruned

        records = measured_on(machine, True)

        def program(of: Graph, dense: bool | list[str], samples: Path | None = None) -> Program:
            data = artifact(of, machine, samples, dense, self.progress, records)
            return Program.from_bytes(data, self.threads)

        own = program(graph, parse_dense(self.dense), self.calibrate)
        pruned = program(as_if_pruned(graph, machine, pruning), False) if pruning is not None else None
        return own, program(graph, True), pruned

    def _is_compiled(self) -> bool:
        return is_compiled(self.model, self.shape, self.target, self.dense, self.calibrate)

    def _refuse_compiled(self) -> None:
        if self._is_compiled():
            raise ConfigError(f"{self.model} is compiled already; --prune and --pattern are for .onnx files")

    def _imported(self) -> tuple[Graph, Target]:
        source, shapes = onnx_file(self.model), parse_shapes(self.shape)
        from sparsec.compiler import machine_of
        from sparsec.frontends import import_model

        return import_model(source, shapes), machine_of(self.target, self.dtype, self.calibrate, self.threads)

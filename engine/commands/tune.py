"""``sparsec tune``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsec.commands.models import onnx_file
from sparsec.commands.options import Json, OnnxPath, Quiet, Shapes, TargetName, Threads, parse_shapes
from sparsec.commands.output import console, print_json
from sparsec.commands.watch import watched

if TYPE_CHECKING:
    from sparsec.tuning.tune import Outcome

Minutes = Annotated[float, typer.Option(min=0.0, help="stop after this long; 0: no limit")]
Trials = Annotated[int | None, typer.Option(min=1, help="stop after so many measurements")]
RecordsFile = Annotated[
    Path | None, typer.Option("--records", help="file of measurements (default: in the folder SPARSEC_CACHE)")
]
Remote = Annotated[
    str | None,
    typer.Option(
        metavar="[KEY@]HOST:PORT", help="measure on another machine: its server, or a tracker's key"
    ),
]


def tune_command(
    model: OnnxPath,
    minutes: Minutes = 20.0,
    trials: Trials = None,
    records: RecordsFile = None,
    shape: Shapes = None,
    target: TargetName = "native",
    threads: Threads = None,
    remote: Remote = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure kernels and their settings for a model's layers; later compilations use what was found."""
    source, shapes = onnx_file(model), parse_shapes(shape)
    from sparsec.tuning.tune import tune

    with watched(quiet) as progress:
        outcome = tune(
            source, minutes=minutes or None, trials=trials, records=records, shapes=shapes, target=target,
            threads=threads, remote=remote,
            progress=lambda text, done, share: progress("% of the budget", round(100 * share), 100),
        )  # fmt: skip
    if as_json:
        print_json({**asdict(outcome), "records": str(outcome.records)})
    elif not quiet:
        _show(outcome)


def _show(outcome: Outcome) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("layer", "times", "untuned us", "tuned us", "gain", "kernel", "tried"):
        table.add_column(name, justify="left" if name in ("layer", "kernel") else "right")
    for layer in outcome.layers:
        settings_text = ", ".join(f"{word}={value}" for word, value in layer.config.items())
        gain = layer.untuned / layer.tuned if layer.untuned and layer.tuned else None
        table.add_row(
            layer.node, str(layer.count), _number(layer.untuned), _number(layer.tuned),
            f"{gain:.2f}x" if gain else "", f"{layer.kernel}({settings_text})", str(layer.trials),
        )  # fmt: skip
    console().print(table)
    if outcome.damaged:
        print(
            f"{outcome.records}: {outcome.damaged} lines are no records and were passed over", file=sys.stderr
        )
    state = "interrupted; the next run goes on from here" if outcome.interrupted else "done"
    print(f"{outcome.trials} trials, {state}; sparsec compile uses {outcome.records}")


def _number(micro: float | None) -> str:
    return "" if micro is None else f"{micro:.1f}"

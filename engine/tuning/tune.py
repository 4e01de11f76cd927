"""tune(): measures the ways to run a model's layers, for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec import pipeline
from sparsec.compiler import ANALYSIS, machine_of
from sparsec.config import settings
from sparsec.errors import ConfigError
from sparsec.frontends import import_model
from sparsec.targets.named import runs_here
from sparsec.targets.processor import this_processor
from sparsec.targets.target import Target
from sparsec.tuning.measurer import Measurer
from sparsec.tuning.records import Records
from sparsec.tuning.search import Budget, Progress, Search, chosen
from sparsec.tuning.tasks import Layer, layers_of

if TYPE_CHECKING:
    from sparsec.ir.graph import Graph

Shapes = Mapping[str, Sequence[int | str | None]]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a layer (``count`` of its kind) takes untuned and tuned, in microseconds a run of one."""

    node: str
    count: int
    untuned: float | None
    tuned: float | None
    kernel: str
    config: Mapping[str, int]
    trials: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """``trials`` made now; ``interrupted`` by the user; where records are; the layers."""

    trials: int
    interrupted: bool
    records: Path
    damaged: int
    layers: tuple[Tuned, ...]


def tune(
    model: Any, *, minutes: float | None = 20.0, trials: int | None = None, records: Path | None = None,
    example_inputs: tuple[Any, ...] | None = None, shapes: Shapes | None = None,
    target: str | Target = "native", threads: int | None = None, dynamic_shapes: Any = None,
    remote: str | None = None, progress: Progress | None = None,
) -> Outcome:  # fmt: skip
    """Measure kernels and settings for a model's layers and record what was found.

    Later compilations on such a machine use the records, of this model and of any with such layers.
    Ctrl-C ends the search early; nothing measured is lost, and the next run goes on from there.

    Args:
        model, example_inputs, shapes, target, dynamic_shapes: as :func:`sparsec.compile` takes them.
        minutes: when to stop.
        trials: stop after so many at the latest.
        records: the file of records (default: records.jsonl in the folder ``SPARSEC_CACHE``).
        threads: what programs will run on (default ``SPARSEC_THREADS``, else 1).
        remote: measure there: ``HOST:PORT`` or ``KEY@HOST:PORT`` (see sparsec.tuning.remote).
        progress: called after every trial with a line about it, how many were made, and the share
            of the budget that is spent.

    Raises:
        ConfigError: there is nowhere to keep records, nobody answers at ``remote``, this machine does
            not run the target's code, or there are several targets.
        ModelError, Unsupported: as for compile.
    """
    machine = machine_of(target, threads=threads)
    graph = import_model(model, shapes, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    return tune_graph(graph, machine, records_file(records), Budget(minutes, trials), remote, progress)


def tune_graph(
    graph: Graph, target: Target, path: Path, budget: Budget, remote: str | None = None,
    progress: Progress | None = None,
) -> Outcome:  # fmt: skip
    """:func:`tune` for an imported graph."""
    _refuse(target, remote)
    name = this_processor().key if remote is None else remote_machine(remote)
    layers = layers_of(pipeline.run(graph, target, ANALYSIS), target, name)
    found = Records.read([path])
    interrupted = False
    with Measurer(target, remote) as measurer:
        search = Search(layers, target, found, path, measurer, budget, progress or (lambda *_: None))
        try:
            search.run()
        except KeyboardInterrupt:
            interrupted = True
    return Outcome(
        search.done, interrupted, path, found.damaged, tuple(_tuned(layer, found) for layer in layers)
    )


def _refuse(target: Target, remote: str | None) -> None:
    if target.gpu:
        raise ConfigError(
            f"only processors' kernels are measured: those for {target.name} are chosen by prediction"
        )
    if target.others:
        raise ConfigError("records are of one target's kernels: tune for one target at a time")
    if remote is None and not runs_here(target):
        raise ConfigError(
            f"code for {target.name} cannot be measured here: name a machine that runs it, --remote HOST:PORT"
        )


def _tuned(layer: Layer, records: Records) -> Tuned:
    first = layer.trials[0]
    default = first.kernel, first.config
    times = records.times(layer.task)
    kernel, config = chosen(times, default) or default
    tried = len(records.tried(layer.task))
    return Tuned(layer.node.origin or layer.node.name, layer.count, times.get(default),
                 times.get((kernel, config)), kernel, dict(config), tried)  # fmt: skip


def default_records() -> Path | None:
    """Where compile() looks for records and tune() writes them."""
    folder = settings().cache
    return folder / "records.jsonl" if folder else None


def records_file(records: Path | bool | None) -> Path:
    """The file to write records to.

    Raises:
        ConfigError: there is none.
    """
    path = records if isinstance(records, Path) else default_records()
    if path is None:
        raise ConfigError("no cache folder to keep records in: set SPARSEC_CACHE, or name a file (--records)")
    return path


def remote_machine(remote: str) -> str:
    """A remote machine's name, as it says itself."""
    from sparsec.tuning.remote import name_of

    return name_of(remote)

"""compile(): from a model to a program, the whole story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsec import pipeline
from sparsec.calibrate import Calibrate, Samples, samples_of
from sparsec.config import threads_of
from sparsec.errors import ArtifactError, ConfigError
from sparsec.explain.report import report_of
from sparsec.frontends import import_model
from sparsec.ir.graph import Graph
from sparsec.passes.assign_layouts import assign_layouts
from sparsec.passes.choose_dense import ChooseDense
from sparsec.passes.choose_format import choose_format
from sparsec.passes.flatten_convolution import flatten_convolution
from sparsec.passes.fold_convolution import fold_convolution
from sparsec.passes.fuse_attention import fuse_attention
from sparsec.passes.fuse_elementwise import fuse_elementwise
from sparsec.passes.fuse_norms import fuse_norms
from sparsec.passes.infer_patterns import infer_patterns
from sparsec.passes.lower_precision import lower_precision
from sparsec.passes.pack import pack
from sparsec.passes.pack_recurrent import pack_recurrent
from sparsec.passes.remove_channels import remove_channels
from sparsec.passes.simplify import simplify
from sparsec.planning.foreign import foreign_program
from sparsec.planning.planner import plan_program
from sparsec.progress import Progress
from sparsec.runtime import Program
from sparsec.runtime.artifact import to_bytes
from sparsec.targets.named import computing_in, runs_here, target_named
from sparsec.targets.several import members_of
from sparsec.targets.target import Target

if TYPE_CHECKING:
    from pathlib import Path

    from sparsec.pipeline import Pass
    from sparsec.tuning.search import Budget

#: what happens to a graph, in order
PASSES: tuple[Pass, ...] = (
    simplify, fuse_attention, fuse_norms, simplify, remove_channels, simplify, fuse_elementwise,
    fold_convolution, flatten_convolution, simplify, infer_patterns, lower_precision, assign_layouts,
    choose_format, pack_recurrent, pack,
)  # fmt: skip

#: what describing a model needs
ANALYSIS: tuple[Pass, ...] = PASSES[: PASSES.index(pack)]

Shapes = Mapping[str, Sequence[int | str | None]]


def compile(
    model: Any, *, example_inputs: tuple[Any, ...] | None = None, shapes: Shapes | None = None,
    target: str | Target = "native", threads: int | None = None, dynamic_shapes: Any = None,
    calibrate: Samples | None = None, dense: bool | Sequence[str] = False, progress: Progress | None = None,
    tune: float | Budget | None = None, records: Path | bool = True, dtype: str | None = None,
) -> Program:  # fmt: skip
    """Compile a model into a program that skips its zeros.

    Args:
        model: path of an ONNX file, ``onnx.ModelProto``, ``torch.nn.Module`` (with
            ``example_inputs``), ``torch.export.ExportedProgram``, or a matrix (scipy.sparse or
            NumPy, outputs x inputs).
        example_inputs: what a torch module is traced with.
        shapes: sizes of inputs that the model leaves open, by input name; a kernel made for known
            sizes is faster, above all for one to four tokens.
        target: ``native``, ``x86-64-v3`` (AVX2), ``x86-64-v4`` (AVX-512); ``aarch64`` (NEON),
            ``armv8.2-a+dotprod``, ``cortex-a76``, ``neoverse-n1``, ``neoverse-v1`` (SVE); or a Target.
            GPUs: ``cuda`` (this machine's), ``sm_80``, ``sm_90``, ``sm_90a``, which need NVIDIA's nvcc.
            Several of one architecture, ``x86-64-v3,x86-64-v4``, make one plan with code for each: it
            is made for the first, and loading picks the most capable code the machine runs.
        threads: threads the program runs on, and is made for (default ``SPARSEC_THREADS``, else 1);
            a saved one runs on any number, with the same results.
        dynamic_shapes: passed to ``torch.export`` for a torch module.
        calibrate: inputs as the program will see them: a mapping of names to arrays, several of
            them, or an ``.npz`` file.  They are run once; a layer of one to four tokens that finds
            many of its inputs zero there (after ReLU) then skips zero inputs where that is
            predicted to be faster.  Results are right for any inputs; where many fewer are zero than
            in the samples, a layer that skips them is slower than it would be without.
        dense: names of layers that run dense whatever is predicted, as ``sparsec bench`` names them;
            True for all, of which no channel is left out then.
        progress: called with ``("passes", 3, 12)`` or ``("kernels", 7, 40)`` while they are done;
            it runs in the calling thread.
        tune: minutes, or a Budget of minutes and trials, to measure kernels for before (see
            :func:`sparsec.tune`).
        records: the file of what was measured before, False to go by predictions alone (default:
            records.jsonl in the folder ``SPARSEC_CACHE``, if there is one).
        dtype: what a GPU computes in where the model computes in float32: ``float32`` (default),
            ``float16`` or ``bfloat16``; inputs and outputs keep their types, sums are float32's.

    Returns:
        The program; one for a machine that this is not can be looked at and saved, and raises
        ArtifactError when it is run.

    Raises:
        ConfigError: no layer has a name given in ``dense``, or records cannot be read or written;
            or nothing runs on that many threads; or the target has no kernels for ``dtype``, or takes
            no samples and is not tuned (GPUs).
        ModelError: the model cannot be read.
        InputError: the samples do not fit the model's inputs.
        Unsupported: it uses operators sparsec cannot run; all are listed.
        BuildError: code generation failed.
    """
    machine = machine_of(target, dtype, calibrate, threads)
    graph = import_model(model, shapes, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    if tune is not None:
        tune_first(graph, machine, tune, records)
    measured = measured_on(machine, records)
    return _loaded(artifact(graph, machine, calibrate, dense, progress, measured), machine, threads)


def machine_of(
    target: str | Target, dtype: str | None = None, calibrate: Samples | None = None,
    threads: int | None = None,
) -> Target:  # fmt: skip
    """What is compiled for; ``threads`` is None for ``SPARSEC_THREADS``, else 1.

    Raises:
        ConfigError: nothing has the name, or it computes in no such dtype or learns nothing from samples;
            or nothing runs on that many threads.
    """
    machine = computing_in(target if isinstance(target, Target) else target_named(target), dtype)
    if machine.gpu and calibrate is not None:
        raise ConfigError("calibrate is for processors: no kernel for GPUs skips inputs that are zero")
    return replace(machine, threads=threads_of(threads))


def _loaded(data: bytes, target: Target, threads: int | None) -> Program:
    """The program; one for another processor can be looked at and saved."""
    try:
        return Program.from_bytes(data, threads=threads)
    except ArtifactError as why:
        if any(runs_here(member) for member in members_of(target)):
            raise
        return foreign_program(data, why, threads)


def artifact(
    graph: Graph, target: Target, calibrate: Samples | None = None, dense: bool | Sequence[str] = False,
    progress: Progress | None = None, measured: Pass | None = None,
) -> bytes:  # fmt: skip
    """The bytes of a ``.sparsec`` file; same graph, target, samples, records and dense layers, same bytes.

    ``measured``: see :func:`measured_on`.
    """
    passes = with_measured(_with_dense(_with_samples(PASSES, graph, calibrate), dense), measured)
    finished = pipeline.run(graph, target, passes, progress=progress)
    planned = plan_program(finished, target, progress)
    report = report_of(finished, planned, target)
    names = ",".join(member.name for member in members_of(target))
    manifest = {"target": names, "features": list(target.features), "report": report}
    return to_bytes(planned.plan, planned.code, planned.weights, manifest)


def analyze(
    model: Any, *, example_inputs: tuple[Any, ...] | None = None, shapes: Shapes | None = None,
    target: str | Target = "native", dynamic_shapes: Any = None, calibrate: Samples | None = None,
    dense: bool | Sequence[str] = False, progress: Progress | None = None, records: Path | bool = True,
    dtype: str | None = None, threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a model's zeros look like and what would run them, without generating code for it.

    Returns:
        The report :attr:`Program.report` holds; arguments and errors are those of
        :func:`compile`.
    """
    machine = machine_of(target, dtype, calibrate, threads)
    graph = import_model(model, shapes, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    passes = _with_dense(_with_samples(ANALYSIS, graph, calibrate), dense)
    passes = with_measured(passes, measured_on(machine, records))
    return report_of(pipeline.run(graph, machine, passes, progress=progress), None, machine)


def _with_dense(passes: tuple[Pass, ...], dense: bool | Sequence[str]) -> tuple[Pass, ...]:
    """The passes, and before the choice one that takes dense kernels for the layers named."""
    if dense is False:
        return passes
    if dense is True:  # what others would run: nothing is left out either
        passes = tuple(one for one in passes if one is not remove_channels)
    at = passes.index(choose_format)
    layers = None if dense is True else tuple(dense)
    return (*passes[:at], ChooseDense(layers), *passes[at:])


def _with_samples(passes: tuple[Pass, ...], graph: Graph, samples: Samples | None) -> tuple[Pass, ...]:
    """The passes, a run on the samples among them if there are any."""
    if samples is None:
        return passes
    at = passes.index(assign_layouts)
    finish = PASSES[PASSES.index(assign_layouts) :]
    return (*passes[:at], Calibrate(samples_of(samples, graph), finish), *passes[at:])


def tune_first(graph: Graph, target: Target, budget: float | Budget, records: Path | bool) -> None:
    """Measure for a while; the records go to ``records``."""
    from sparsec.tuning.search import Budget
    from sparsec.tuning.tune import records_file, tune_graph

    limit = budget if isinstance(budget, Budget) else Budget(minutes=float(budget))
    tune_graph(graph, target, records_file(records), limit)


def measured_on(target: Target, records: Path | bool) -> Pass | None:
    """The pass that chooses by what was measured on such a machine, None where nothing was.

    Records are of one target's kernels: several targets with one plan go by predictions, and so do GPUs.
    """
    if records is False or target.others or target.gpu:
        return None
    from sparsec.tuning.choose_measured import from_file
    from sparsec.tuning.tune import default_records

    path = default_records() if records is True else records
    return None if path is None else from_file(path)


def with_measured(passes: tuple[Pass, ...], measured: Pass | None) -> tuple[Pass, ...]:
    """The passes, and before the choice by prediction the choice by measurement."""
    if measured is None:
        return passes
    at = passes.index(choose_format)
    return (*passes[:at], measured, *passes[at:])

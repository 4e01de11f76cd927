"""compile(): from a model to a program, the whole story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsec import pipeline
from sparsec.frontends import import_model
from sparsec.ir import Graph
from sparsec.passes.assign_layouts import assign_layouts
from sparsec.passes.choose_format import choose_format
from sparsec.passes.flatten_convolution import flatten_convolution
from sparsec.passes.fold_convolution import fold_convolution
from sparsec.passes.fuse_attention import fuse_attention
from sparsec.passes.fuse_elementwise import fuse_elementwise
from sparsec.passes.infer_patterns import infer_patterns
from sparsec.passes.pack import pack
from sparsec.passes.pack_recurrent import pack_recurrent
from sparsec.passes.simplify import simplify
from sparsec.planner import plan_program
from sparsec.report import report_of
from sparsec.runtime import Program
from sparsec.runtime.artifact import to_bytes
from sparsec.targets.target import Target
from sparsec.targets.x86 import target_named

if TYPE_CHECKING:
    from sparsec.pipeline import Pass

#: what happens to a graph, in order
PASSES: tuple[Pass, ...] = (
    simplify, fuse_attention, simplify, fuse_elementwise, fold_convolution, flatten_convolution, simplify,
    infer_patterns, assign_layouts, choose_format, pack_recurrent, pack,
)  # fmt: skip

#: what describing a model needs
ANALYSIS: tuple[Pass, ...] = PASSES[: PASSES.index(pack)]

Shapes = Mapping[str, Sequence[int | str | None]]


def compile(
    model: Any, *, example_inputs: tuple[Any, ...] | None = None, shapes: Shapes | None = None,
    target: str | Target = "native", threads: int | None = None, dynamic_shapes: Any = None,
) -> Program:  # fmt: skip
    """Compile a model into a program that skips its zeros.

    Args:
        model: path of an ONNX file, ``onnx.ModelProto``, ``torch.nn.Module`` (with
            ``example_inputs``), ``torch.export.ExportedProgram``, or a matrix (scipy.sparse or
            NumPy, outputs x inputs).
        example_inputs: what a torch module is traced with.
        shapes: sizes of inputs that the model leaves open, by input name; a kernel made for known
            sizes is faster, above all for one to four tokens.
        target: ``native``, ``x86-64-v3`` (AVX2), ``x86-64-v4`` (AVX-512), or a Target.
        threads: threads the program runs on (default ``SPARSEC_THREADS``, else 1).
        dynamic_shapes: passed to ``torch.export`` for a torch module.

    Raises:
        ModelError: the model cannot be read.
        Unsupported: it uses operators sparsec cannot run; all are listed.
        BuildError: code generation failed.
    """
    machine = target if isinstance(target, Target) else target_named(target)
    graph = import_model(model, shapes, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    return Program.from_bytes(artifact(graph, machine), threads=threads)


def artifact(graph: Graph, target: Target) -> bytes:
    """The bytes of a ``.sparsec`` file; same graph and target, same bytes."""
    finished = pipeline.run(graph, target, PASSES)
    planned = plan_program(finished, target)
    report = report_of(finished, planned)
    manifest = {"target": target.name, "features": list(target.features), "report": report}
    return to_bytes(planned.plan, planned.code, planned.weights, manifest)


def analyze(
    model: Any, *, example_inputs: tuple[Any, ...] | None = None, shapes: Shapes | None = None,
    target: str | Target = "native", dynamic_shapes: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """What a model's zeros look like and what would run them, without generating code.

    Returns:
        The report :attr:`Program.report` holds; arguments and errors are those of
        :func:`compile`.
    """
    machine = target if isinstance(target, Target) else target_named(target)
    graph = import_model(model, shapes, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    return report_of(pipeline.run(graph, machine, ANALYSIS), None)

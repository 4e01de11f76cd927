"""The engines that are compared: those of ``sparsec bench``, sparsec itself, and DeepSparse."""

from __future__ import annotations

import tempfile
from pathlib import Path

import deepsparse_engine

import sparsec
from sparsec.bench import engines
from sparsec.bench.engines import FILE_ONLY, READERS, Bound, Engine, Shapes, Task, bind_program

__all__ = ["DENSE", "ENGINES", "FILE_ONLY", "READERS", "Bound", "Engine", "Shapes", "Task"]


def bind_sparsec(task: Task) -> Bound:
    """Compiled, saved and loaded, as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.sparsec"
        sparsec.compile(task.path, shapes=task.shapes, threads=task.threads).save(file)
        program = sparsec.load(file, threads=task.threads)  # mapped: the file may go
    bound = bind_program(program, task.feeds)
    facts = {
        "weight_bytes": sum(layer["bytes"] for layer in program.report["layers"]),
        "layout_bytes": sum(step.get("layout_bytes", 0) for step in program.report["steps"]),
    }
    return Bound(bound.call, bound.outputs, facts)


def bind_deepsparse(task: Task) -> Bound:
    """In its own interpreter, inputs handed over beforehand.

    Raises:
        Absent: it cannot run the model.
    """
    server = deepsparse_engine.Server(task.path, dict(task.feeds), task.threads)
    return Bound(server, server.outputs)


ENGINES: tuple[Engine, ...] = (
    Engine("sparsec", "sparsec", bind_sparsec),
    *engines.ENGINES.values(),
    Engine("deepsparse", "deepsparse", bind_deepsparse, found=deepsparse_engine.version),
)
#: all that run zeros like any other number
DENSE = (*READERS, "torch")

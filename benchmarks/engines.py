"""The engines that are compared, each called in the fastest way it offers.

Inputs are bound beforehand everywhere (a prepared program, an I/O binding, an infer request's
tensors), so that small models are not judged by how Python hands arrays over.  Everything is
float32 on a given number of threads.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import deepsparse_engine
import numpy as np
from workloads import Absent, Arrays

Shapes = Mapping[str, tuple[int, ...]] | None

#: why torch does not run a workload
FILE_ONLY = "there is an ONNX file only"


@dataclass(frozen=True)
class Task:
    """What to run: an ONNX file, its inputs and their shapes; the same as a torch module, if any."""

    path: Path
    feeds: Arrays
    shapes: Shapes = None
    threads: int = 1
    module: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Bound:
    """A model with its inputs: ``call()`` computes, ``outputs()`` reads what it computed.

    ``facts`` is what an engine has to say about the model, for a row of the results.
    """

    call: Callable[[], Any]
    outputs: Callable[[], list[np.ndarray]]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """``bind`` may raise Absent; ``distribution`` is its name on the package index.

    ``found`` asks an engine that lives elsewhere for its version, None where it is not there.
    """

    name: str
    distribution: str
    bind: Callable[[Task], Bound]
    found: Callable[[], str | None] | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be used."""
        if self.found:
            return self.found() is not None
        return importlib.util.find_spec(self.distribution) is not None

    @property
    def version(self) -> str:
        """The installed version."""
        if self.found:
            return self.found() or ""
        try:
            return version(self.distribution)
        except PackageNotFoundError:  # run from a checkout
            return "unknown"


def bind_sparsec(task: Task) -> Bound:
    """Compiled, saved and loaded, as a user would."""
    import sparsec

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.sparsec"
        sparsec.compile(task.path, shapes=task.shapes, threads=task.threads).save(file)
        program = sparsec.load(file, threads=task.threads)  # mapped: the file may go
    prepared = program.prepare(task.feeds)
    facts = {
        "weight_bytes": sum(layer["bytes"] for layer in program.report["layers"]),
        "layout_bytes": sum(step.get("layout_bytes", 0) for step in program.report["steps"]),
    }
    return Bound(prepared, lambda: [np.array(y) for y in prepared.outputs], facts)


def bind_onnxruntime(task: Task) -> Bound:
    """A session with all optimisations and an I/O binding."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(task.path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in task.feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return Bound(lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu())


def bind_openvino(task: Task) -> Bound:
    """A request with its inputs set, in float32, tuned for latency."""
    import openvino

    core = openvino.Core()
    model = core.read_model(task.path)
    if task.shapes:
        model.reshape({name: list(sizes) for name, sizes in task.shapes.items()})
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": task.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    tensors = {name: openvino.Tensor(array, shared_memory=True) for name, array in task.feeds.items()}
    for name, tensor in tensors.items():
        request.set_tensor(name, tensor)
    # infer() computes in the calling thread: faster than start_async() and wait()
    return Bound(request.infer, lambda: [np.array(t.data) for t in request.output_tensors])


def bind_torch(task: Task) -> Bound:
    """The module itself, called eagerly, as it was before export.

    Raises:
        Absent: the workload is a file only.
    """
    import torch

    if task.module is None:
        raise Absent(FILE_ONLY)
    torch.set_num_threads(task.threads)
    module, inputs = task.module(), [torch.from_numpy(x) for x in task.feeds.values()]

    def call() -> tuple[Any, ...]:
        with torch.inference_mode():
            y = module(*inputs)
        return y if isinstance(y, tuple) else (y,)

    return Bound(call, lambda: [y.numpy() for y in call()])


def bind_deepsparse(task: Task) -> Bound:
    """In its own interpreter, inputs handed over beforehand.

    Raises:
        Absent: it cannot run the model.
    """
    server = deepsparse_engine.Server(task.path, task.feeds, task.threads)
    return Bound(server, server.outputs)


ENGINES: tuple[Engine, ...] = (
    Engine("sparsec", "sparsec", bind_sparsec),
    Engine("onnxruntime", "onnxruntime", bind_onnxruntime),
    Engine("openvino", "openvino", bind_openvino),
    Engine("torch", "torch", bind_torch),
    Engine("deepsparse", "deepsparse", bind_deepsparse, deepsparse_engine.version),
)
#: dense engines that read any ONNX file
READERS = ("onnxruntime", "openvino")
#: all that run zeros like any other number
DENSE = (*READERS, "torch")

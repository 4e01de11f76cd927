"""The engines a program is compared with, each called in the fastest way it offers.

Inputs are bound beforehand everywhere (a prepared program, an I/O binding, an infer request's
tensors), so that small models are not judged by how Python hands arrays over.  Everything is
float32 on a given number of threads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsec.runtime import Program

    Array: TypeAlias = NDArray[Any]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]] | None

#: why torch does not run a model
FILE_ONLY = "there is an ONNX file only"


class Absent(Exception):
    """What an engine needs is not here, or it cannot run the model; the text says why."""


@dataclass(frozen=True)
class Task:
    """What to run: an ONNX file, its inputs and their shapes; the same as a torch module, if any."""

    path: Path
    feeds: Mapping[str, Array]
    shapes: Shapes = None
    threads: int = 1
    module: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Bound:
    """A model with its inputs: ``call()`` computes, ``outputs()`` reads what it computed.

    ``facts`` is what an engine has to say about the model.
    """

    call: Callable[[], Any]
    outputs: Callable[[], list[Array]]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """``bind`` may raise Absent; ``distribution`` is its name on the package index.

    ``readers`` are distributions it needs beside itself to read an ONNX file; ``found`` asks an
    engine that lives elsewhere for its version, None where it is not there.
    """

    name: str
    distribution: str
    bind: Callable[[Task], Bound]
    readers: tuple[str, ...] = ()
    found: Callable[[], str | None] | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be used."""
        return self.found() is not None if self.found else _is_there(self.distribution)

    @property
    def missing(self) -> tuple[str, ...]:
        """Distributions to install before it can run a file."""
        return tuple(name for name in (self.distribution, *self.readers) if not _is_there(name))

    @property
    def version(self) -> str:
        """The installed version."""
        if self.found:
            return self.found() or ""
        try:
            return version(self.distribution)
        except PackageNotFoundError:  # run from a checkout
            return "unknown"


def _is_there(name: str) -> bool:
    """Whether a module can be found; nothing is imported, and a name blocked in sys.modules counts."""
    return PathFinder.find_spec(name) is not None


def bind_program(program: Program, feeds: Mapping[str, Array]) -> Bound:
    """A compiled program with its inputs prepared."""
    prepared = program.prepare(feeds)
    return Bound(prepared, lambda: [np.array(y) for y in prepared.outputs])


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
    """The module itself, called eagerly, as it was before export; a file as onnx2torch reads it.

    Raises:
        Absent: there is a file only, and nothing to read it with.
    """
    torch = _torch()
    torch.set_num_threads(task.threads)
    module = task.module() if task.module else _module_of(task.path)
    inputs = [torch.from_numpy(x) for x in task.feeds.values()]

    def call() -> tuple[Any, ...]:
        with torch.inference_mode():
            y = module(*inputs)
        return y if isinstance(y, tuple) else (y,)

    return Bound(call, lambda: [y.numpy() for y in call()])


def _torch() -> Any:
    """The library, also where the command line has kept it out while tvm was imported."""
    if sys.modules.get("torch", ...) is None:
        del sys.modules["torch"]
    import torch

    return torch


def _module_of(path: Path) -> Any:
    if not _is_there("onnx2torch"):
        raise Absent(FILE_ONLY)
    import onnx2torch

    return onnx2torch.convert(path).eval()


#: dense engines by the name a user calls them
ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("onnxruntime", "onnxruntime", bind_onnxruntime),
        Engine("openvino", "openvino", bind_openvino),
        Engine("torch", "torch", bind_torch, readers=("onnx2torch",)),
    )
}
#: those that read any ONNX file on their own
READERS = ("onnxruntime", "openvino")

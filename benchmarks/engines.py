"""The engines that are compared, each called in the fastest way it offers.

Inputs are bound beforehand everywhere (a prepared program, an I/O binding, an infer request's
tensors), so that small models are not judged by how Python hands arrays over.  Everything is
float32 on a given number of threads.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from workloads import Arrays

Shapes = Mapping[str, tuple[int, ...]] | None


@dataclass(frozen=True)
class Bound:
    """A model with its inputs: ``call()`` computes, ``outputs()`` reads what it computed."""

    call: Callable[[], Any]
    outputs: Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class Engine:
    """``bind(path, feeds, shapes, threads)``; ``distribution`` is its name on the package index."""

    name: str
    distribution: str
    module: str
    bind: Callable[[Path, Arrays, Shapes, int], Bound]

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """The installed version."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:  # run from a checkout
            return "unknown"


def bind_sparsec(path: Path, feeds: Arrays, shapes: Shapes, threads: int) -> Bound:
    """Compiled, saved and loaded, as a user would."""
    import sparsec

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.sparsec"
        sparsec.compile(path, shapes=shapes, threads=threads).save(file)
        prepared = sparsec.load(file, threads=threads).prepare(feeds)  # mapped: the file may go
    return Bound(prepared, lambda: [np.array(y) for y in prepared.outputs])


def bind_onnxruntime(path: Path, feeds: Arrays, shapes: Shapes, threads: int) -> Bound:
    """A session with all optimisations and an I/O binding."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return Bound(lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu())


def bind_openvino(path: Path, feeds: Arrays, shapes: Shapes, threads: int) -> Bound:
    """A request with its inputs set, in float32, tuned for latency."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if shapes:
        model.reshape({name: list(sizes) for name, sizes in shapes.items()})
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    tensors = {name: openvino.Tensor(array, shared_memory=True) for name, array in feeds.items()}
    for name, tensor in tensors.items():
        request.set_tensor(name, tensor)
    # infer() computes in the calling thread: faster than start_async() and wait()
    return Bound(request.infer, lambda: [np.array(t.data) for t in request.output_tensors])


ENGINES: tuple[Engine, ...] = (
    Engine("sparsec", "sparsec", "sparsec", bind_sparsec),
    Engine("onnxruntime", "onnxruntime", "onnxruntime", bind_onnxruntime),
    Engine("openvino", "openvino", "openvino", bind_openvino),
)
#: all but ours run zeros like any other number
DENSE = ("onnxruntime", "openvino")

"""``Program``: the Python face of a compiled model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from sparsec.config import settings, threads_of
from sparsec.errors import ArtifactError, InputError
from sparsec.runtime import _executor
from sparsec.runtime._executor import Prepared
from sparsec.runtime.arrays import Placement, as_torch, placement, to_array, to_output
from sparsec.runtime.files import replacing
from sparsec.runtime.profile import StepTime, Watched, timed
from sparsec.runtime.shipping import expanded, is_compressed

Array: TypeAlias = NDArray[Any]

__all__ = ["PortInfo", "Prepared", "Program", "StepTime"]


@dataclass(frozen=True, slots=True)
class PortInfo:
    """An input or output of a program.

    ``shape`` holds numbers, and text where a length is only known when the program is called
    (``"batch"``, ``"2*n + 1"``).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def type(self) -> str:
        """The type as onnxruntime writes it, ``tensor(float)`` for float32."""
        return f"tensor({_ONNX_NAMES.get(self.dtype, self.dtype)})"

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


_ONNX_NAMES = {"float32": "float", "float64": "double"}


class Program:
    """A compiled model, ready to run on this machine's processor, or on its GPU.

    Call it with NumPy arrays or torch tensors, by position or by name::

        program = Program.load("model.sparsec", threads=2)
        y = program(x)
        [y] = program.run(None, {"x": x})   # as onnxruntime writes it

    Arrays may have any strides and alignment; those in 64-byte aligned, contiguous memory are
    read where they lie, others are copied first.  One program may be called from several
    Python threads at once; the results do not depend on the number of threads, to the bit.

    A program for a GPU takes arrays of the processor, which it copies, and such in the GPU's memory:
    torch CUDA tensors and objects with ``__cuda_array_interface__``.  With a torch CUDA tensor among
    its inputs it runs as torch's own operators do: on the current stream, without waiting, its results
    new tensors on that GPU.
    """

    __slots__ = ("_inputs", "_model", "_names", "_on_gpu", "_outputs", "_report", "_runner")

    def __init__(self, model: _executor.Model, threads: int | None = None) -> None:
        """Wrap a loaded model; use :meth:`load` or :meth:`from_bytes`."""
        self._model = model
        self._inputs = tuple(PortInfo(*port) for port in model.inputs)
        self._outputs = tuple(PortInfo(*port) for port in model.outputs)
        self._names = tuple(port.name for port in self._inputs)
        self._on_gpu = model.device == "cuda"
        self._report: dict[str, Any] | None = None
        model.threads = threads_of(threads)
        # what runs is decided here, so that watching costs nothing when it is off
        watched = settings().debug >= 3
        self._runner: _executor.Model | Watched = Watched(model, self.report) if watched else model

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], threads: int | None = None, *, verify: bool = False,
        isa: str | None = None, sha256: str | None = None,
    ) -> Program:  # fmt: skip
        """Map a model file; weights are read from disk when first used.

        A compressed file is expanded to a temporary one first, which a warning says.

        Args:
            path: a file that ``sparsec compile`` or :meth:`save` wrote.
            threads: see :attr:`threads`; by default the variable ``SPARSEC_THREADS``, else 1.
            verify: also read all weights and compare them with their checksum.
            isa: of a file with code for several instruction sets, the one to run (``x86-64-v3``); by
                default the variable ``SPARSEC_ISA``, else the most capable this processor runs.
            sha256: the SHA-256 the file must have, in hexadecimal digits; reads the whole file.
                What is pinned so is what was looked at once, code included.

        Raises:
            ArtifactError: no such file, a truncated or damaged one, one of another version, one
                made for instructions this processor lacks, or one that is not the pinned one.
        """
        if is_compressed(path):
            with expanded(path, sha256) as whole:
                return cls(_executor.load(whole, to_array, verify, isa, None), threads)
        return cls(_executor.load(path, to_array, verify, isa, sha256), threads)

    @classmethod
    def from_bytes(
        cls, data: bytes | bytearray | memoryview, threads: int | None = None, *, verify: bool = False,
        isa: str | None = None, sha256: str | None = None,
    ) -> Program:  # fmt: skip
        """A program from the bytes of a model file, which are copied; errors as :meth:`load`."""
        return cls(_executor.from_bytes(data, to_array, verify, isa, sha256), threads)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program as a model file, replacing ``path`` in one step.

        Raises:
            ArtifactError: the file cannot be written.
        """
        with replacing(path) as file:
            file.write(memoryview(self._model))

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """Names, dtypes and shapes of the inputs, in the order of positional arguments."""
        return self._inputs

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """Names, dtypes and shapes of the outputs."""
        return self._outputs

    def get_inputs(self) -> list[PortInfo]:
        """:attr:`inputs` as onnxruntime's sessions give them (``name``, ``shape``, ``type``)."""
        return list(self._inputs)

    def get_outputs(self) -> list[PortInfo]:
        """:attr:`outputs` as onnxruntime's sessions give them."""
        return list(self._outputs)

    @property
    def isa(self) -> str:
        """The name of the instruction set whose code runs, one of those the file has code for."""
        return self._model.isa

    @property
    def device(self) -> str:
        """Where it runs: ``"cpu"``, or ``"cuda"``, the GPU that the variable ``SPARSEC_DEVICE`` names."""
        return self._model.device

    @property
    def threads(self) -> int:
        """How many threads one call may use, the caller's included (1 to 256); no matter on a GPU.

        Raises:
            ConfigError: when set to another number.
        """
        return self._model.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._model.threads = threads_of(count)

    @property
    def manifest(self) -> dict[str, Any]:
        """What the file says about itself: sparsec's version, target, isas, features, ports, report.

        Raises:
            ArtifactError: the manifest is not what a sparsec compiler writes.
        """
        try:
            found = json.loads(self._model.manifest())
        except (ValueError, RecursionError) as error:
            raise ArtifactError("the manifest of the file is damaged; compile the model again") from error
        if not isinstance(found, dict):
            raise ArtifactError("the manifest of the file is damaged; compile the model again")
        return found

    @property
    def report(self) -> dict[str, Any]:
        """What the compiler found and chose, as it wrote it."""
        if self._report is None:
            found = self.manifest.get("report")
            self._report = found if isinstance(found, dict) else {}
        return self._report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on arrays given by position, by name, or both.

        Returns:
            The output array, or a tuple of them when there are several; torch tensors when an
            input was one, on the GPU when one of those was, else NumPy arrays.

        Raises:
            InputError: a name, shape or dtype that does not fit; the text says what would.
            SparsecError: a kernel failed.
        """
        feeds = self._feeds(args, kwargs)
        if self._on_gpu:
            where = self._placement(feeds)
            outputs = self._runner.run(None, feeds, where.allocate, where.find_stream)
        else:
            outputs = self._runner.run(None, feeds)
        outputs = as_torch((*args, *kwargs.values()), outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Array]:
        """Run as onnxruntime's sessions do.

        Args:
            output_names: which outputs to return, in this order; None for all.
            feeds: an array for every input, by name.

        Returns:
            NumPy arrays.

        Raises:
            InputError: as for a call.
        """
        feeds = feeds if type(feeds) is dict else dict(feeds)
        if self._on_gpu:
            return self._runner.run(output_names, feeds, None, self._placement(feeds).find_stream)
        return self._runner.run(output_names, feeds)

    def prepare(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> Prepared:
        """Bind arrays once for many runs.

        Calling the result reads the input arrays as they are at that moment and writes into the
        arrays of its ``outputs`` list; it checks and allocates nothing::

            prepared = program.prepare({"x": x})
            x[:] = ...
            prepared()
            y = prepared.outputs[0]

        Args:
            inputs: an array for every input.  Torch tensors and arrays share their memory with
                the prepared program.
            outputs: arrays to write to, by name; those missing are allocated, aligned so that
                kernels write to them directly.  On a GPU those may be torch CUDA tensors or objects with
                ``__cuda_array_interface__`` too.

        Raises:
            InputError: as for a call; also for outputs of wrong shape or dtype.
        """
        types = {port.name: port.dtype for port in self._outputs}
        given = {name: to_output(name, types.get(name, ""), y) for name, y in (outputs or {}).items()}
        where = self._placement(inputs) if self._on_gpu else Placement()
        return self._model.prepare(dict(inputs), given, where.allocate, where.find_stream)

    def profile(self, *args: Any, repeats: int = 10, **kwargs: Any) -> list[StepTime]:
        """Time each step of a run: the median over ``repeats`` runs, after one that is not timed.

        Args:
            args, kwargs: arrays as for a call, or one mapping of all of them by name.
            repeats: how many runs are timed.

        Returns:
            The steps in the order they run, with their operations and bytes.  Times are those of
            the program's threads working together; moving arrays in and out is not part of them.

        Raises:
            InputError: as for a call; also for fewer than one repeat.
        """
        named = dict(args[0]) if len(args) == 1 and isinstance(args[0], Mapping) else None
        feeds = self._feeds(args, kwargs) if named is None else named | kwargs
        stream = (self._placement(feeds).find_stream,) if self._on_gpu else ()
        return timed(self._model, self.report, feeds, repeats, *stream)

    def _placement(self, feeds: Mapping[str, Any]) -> Placement:
        return placement(feeds, tuple(port.dtype for port in self._outputs))

    def _feeds(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._inputs):
            known = ", ".join(map(str, self._inputs))
            raise InputError(f"{len(args)} arrays were given, the program takes {len(self._inputs)}: {known}")
        feeds = dict(zip(self._names, args, strict=False))
        if not kwargs:
            return feeds
        twice = feeds.keys() & kwargs.keys()
        if twice:
            raise InputError(f"input {min(twice)!r} was given twice, by position and by name")
        return feeds | kwargs

    def __reduce__(self) -> tuple[Any, ...]:
        return Program.from_bytes, (bytes(memoryview(self._model)), self.threads)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self._inputs))
        return f"Program({inputs} -> {', '.join(map(str, self._outputs))})"

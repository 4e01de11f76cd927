"""Arrays across the border: those of NumPy and torch, and of whatever shares a GPU's memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError
from sparsec.runtime._executor import DeviceArray

Array: TypeAlias = NDArray[Any]

#: CUDA's name for the stream that torch calls 0
_DEFAULT_STREAM = 1


def to_array(name: str, dtype: str, value: object) -> Array | DeviceArray:
    """An array the executor can read, for an input it could not read itself.

    Args:
        name: the input's name, for errors.
        dtype: the type it must have.
        value: a torch tensor, an object with ``__cuda_array_interface__``, or anything with a ``dtype``
            that NumPy takes.

    Raises:
        InputError: it is no array, or one of another type.
    """
    if _is_tensor(value):
        return _from_torch(name, dtype, value)
    if hasattr(value, "__cuda_array_interface__"):
        return _from_interface(f"input {name!r}", dtype, value, writable=False)
    if not hasattr(value, "dtype"):
        kind = type(value).__name__
        raise InputError(f"input {name!r} must be a {dtype} array, got {kind}; pass np.asarray(x, {dtype!r})")
    return _from_numpy(name, dtype, np.asarray(value))


def _from_numpy(name: str, dtype: str, array: Array) -> Array:
    if dtype == "bfloat16":
        raise InputError(f"input {name!r} is bfloat16, which NumPy has not: pass a torch tensor on the GPU")
    if array.dtype.name != dtype:
        raise InputError(f"input {name!r} must be {dtype}, got {array.dtype}; pass x.astype({dtype!r})")
    return np.ascontiguousarray(array, dtype=dtype).reshape(array.shape)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_dense(value: Any) -> bool:
    return value.device.type in ("cpu", "cuda") and value.layout is sys.modules["torch"].strided


def _from_torch(name: str, dtype: str, value: Any) -> Array | DeviceArray:
    if not _is_dense(value):
        raise InputError(
            f"input {name!r} must be a dense tensor on the CPU or a GPU; pass x.to_dense().cpu()"
        )
    if str(value.dtype) != f"torch.{dtype}":
        raise InputError(f"input {name!r} must be {dtype}, got {value.dtype}; pass x.to(torch.{dtype})")
    plain = value.detach().resolve_conj().resolve_neg()
    if plain.device.type == "cuda":
        return _device_view(plain)
    if dtype == "bfloat16":
        raise InputError(f"input {name!r} is bfloat16, which is for tensors on a GPU; pass x.cuda()")
    return _from_numpy(name, dtype, plain.numpy())


def _device_view(tensor: Any) -> DeviceArray:
    """A CUDA tensor's memory."""
    strides = None if tensor.is_contiguous() else tuple(s * tensor.element_size() for s in tensor.stride())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return DeviceArray(tensor.data_ptr(), dtype, tuple(tensor.shape), strides, tensor)


def _from_interface(what: str, dtype: str, value: Any, *, writable: bool) -> DeviceArray:
    """Memory described as Numba's interface, version 3, does."""
    about = value.__cuda_array_interface__
    found = np.dtype(about["typestr"]).name
    address, read_only = about["data"]
    if found != dtype:
        raise InputError(f"{what} must be {dtype}, got {found}; pass x.astype({dtype!r})")
    if about.get("mask") is not None or (writable and read_only):
        raise InputError(f"{what} must be {'a writable' if writable else 'an'} array without a mask")
    return DeviceArray(address, dtype, tuple(about["shape"]), about.get("strides"), value)


def to_output(name: str, dtype: str, value: Any) -> Any:
    """What the executor can write to, for an array that a caller wants an output in; errors as for inputs.

    What neither is a torch tensor nor lies in a GPU's memory is given back as it is.
    """
    if _is_tensor(value):
        if not _is_dense(value) or value.requires_grad:
            raise InputError(
                f"output {name!r} must be a dense tensor on the CPU or a GPU that requires no gradient"
            )
        return _device_view(value) if value.device.type == "cuda" else value.numpy()
    if hasattr(value, "__cuda_array_interface__"):
        return _from_interface(f"output {name!r}", dtype, value, writable=True)
    return value


def as_torch(values: Iterable[Any], outputs: list[Any]) -> list[Any]:
    """The outputs as torch tensors, where any of the ``values`` that went in is one."""
    torch = sys.modules.get("torch")
    if torch is None or not any(isinstance(x, torch.Tensor) for x in values):
        return outputs
    return [y if isinstance(y, torch.Tensor) else torch.from_numpy(y) for y in outputs]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a run's inputs say that its results belong.

    Attributes:
        find_stream: gives the CUDA stream a run belongs to, as a number; None: one of the runtime's own.
        allocate: makes an output of an index and a shape in the GPU's memory; None: results are copied
            to arrays of NumPy.
    """

    find_stream: Callable[[], int] | None = None
    allocate: Callable[[int, tuple[int, ...]], DeviceArray] | None = None


def placement(feeds: Mapping[str, Any], dtypes: tuple[str, ...]) -> Placement:
    """How a program on a GPU runs on these inputs.

    With a torch tensor on a GPU among them, as torch's own operators do: on torch's current stream, with
    new tensors on the same GPU.  Otherwise on the stream that a ``__cuda_array_interface__`` names.

    Args:
        feeds: the inputs by name.
        dtypes: the outputs' types.

    Raises:
        InputError: inputs name different streams.
    """
    for value in feeds.values():
        if _is_tensor(value) and value.device.type == "cuda":
            return _as_torch_does(value.device, dtypes)
    if "bfloat16" in dtypes:
        raise InputError(
            "an output is bfloat16, which NumPy has not: pass torch tensors on the GPU, or compile with "
            "float32 inputs and outputs"
        )
    streams = {stream for stream in map(_stream_of, feeds.values()) if stream is not None}
    if len(streams) > 1:
        raise InputError("inputs come from different CUDA streams; wait for them, and pass stream None")
    if not streams:
        return Placement()
    [stream] = streams
    return Placement(lambda: stream)


def _stream_of(value: Any) -> int | None:
    about = getattr(value, "__cuda_array_interface__", None)
    return about.get("stream") if isinstance(about, dict) else None


def _as_torch_does(device: Any, dtypes: tuple[str, ...]) -> Placement:
    torch: Any = sys.modules["torch"]

    def find_stream() -> int:
        return int(torch.cuda.current_stream(device).cuda_stream) or _DEFAULT_STREAM

    def allocate(output: int, shape: tuple[int, ...]) -> DeviceArray:
        return _device_view(torch.empty(shape, dtype=getattr(torch, dtypes[output]), device=device))

    return Placement(find_stream, allocate)

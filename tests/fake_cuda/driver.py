"""The stand-in for CUDA's driver library, from Python: built by cc, kernels as Python functions.

Nothing here is a GPU's: device memory is memory of the process, and a launch calls a function.  What the
stand-in holds the runtime to is the driver's interface: contexts, bounds of memory, the order of streams
(work is done when somebody waits for it, and not before), what may be called while a stream is recorded.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparsec.runtime

Array = NDArray[Any]
#: blocks, threads, shared bytes, and each parameter's 8 bytes as a number
Kernel = Callable[[int, int, int, Sequence[int]], None]

_HERE = Path(__file__).resolve().parent
_CSRC = Path(sparsec.runtime.__file__).parent / "csrc"
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint,
    ctypes.POINTER(ctypes.c_uint64), ctypes.c_int,
)  # fmt: skip
_COUNTS = (
    "allocations", "contexts", "modules", "streams", "events", "graphs", "executables", "copies_in",
    "copies_out", "copies_within", "launches", "graph_launches", "captures", "synchronisations", "violations",
)  # fmt: skip
#: those of things that live, which are 0 when all was given back
LIVING = _COUNTS[:7]

INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, NOT_FOUND, ILLEGAL_ADDRESS, LAUNCH_FAILED = 1, 2, 100, 500, 700, 719

_MACHINE_CUDA = 190


def cubin(machine: int = _MACHINE_CUDA) -> bytes:
    """The header of an ELF file for a machine, which is all that the stand-in looks at."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0)


def build(folder: Path) -> Path:
    """The library, in ``folder``."""
    library = folder / "libfakecuda.so"
    sources = sorted(map(str, _HERE.glob("*.c")))
    flags = [
        "-std=c11",
        "-D_POSIX_C_SOURCE=200809L",
        "-shared",
        "-fPIC",
        "-O1",
        "-g",
        "-pthread",
        "-Wall",
        "-Wextra",
    ]
    subprocess.run(["cc", *flags, "-Werror", f"-I{_CSRC}", *sources, "-o", str(library)], check=True)
    return library


@dataclass(frozen=True)
class DeviceMemory:
    """An array in the stand-in's memory, as ``__cuda_array_interface__`` tells of it."""

    driver: FakeDriver
    address: int
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None = None
    stream: int | None = None
    read_only: bool = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": np.dtype(self.dtype).str, "data": (self.address, self.read_only),
            "version": 3, "strides": self.strides, "stream": self.stream,
        }  # fmt: skip

    @property
    def values(self) -> Array:
        """What lies there now, whatever streams have not done yet; writable."""
        count = int(np.prod(self.shape, dtype=int))
        return self.driver.view(self.address, self.dtype)[:count].reshape(self.shape)


class FakeDriver:
    """The loaded library: kernels, memory, counts and failures."""

    def __init__(self, library: Path) -> None:
        """Load what :func:`build` made; the runtime finds the same by ``SPARSEC_LIBCUDA``."""
        self.path = library
        #: what kernels raised, as text: an exception would keep alive all that called them
        self.failures: list[str] = []
        self._kernels: dict[str, Kernel] = {}
        self._library = ctypes.CDLL(str(library))
        self._library.fake_room.restype = ctypes.c_size_t
        self._library.fake_calls.restype = ctypes.c_long
        self._library.fake_counts.restype = ctypes.POINTER(ctypes.c_long)
        self._callback = _CALLBACK(self._launch)
        self._library.fake_set_launch(self._callback)
        self.machine()

    def machine(
        self, devices: int = 1, capability: tuple[int, int] = (9, 0), shared: int = 227 << 10,
        memory: int = 1 << 40,
    ) -> None:  # fmt: skip
        """What GPUs there are."""
        self._library.fake_machine(devices, *capability, shared, ctypes.c_size_t(memory))

    def reset(self) -> None:
        """Forget kernels, failures and all counts but those of living things."""
        self._kernels.clear()
        self.failures.clear()
        self._library.fake_reset()

    def kernel(self, name: str, parameters: int, function: Kernel) -> None:
        """Let modules have a kernel with so many parameters of 8 bytes."""
        if name not in self._kernels:
            self._library.fake_kernel(name.encode(), parameters)
        self._kernels[name] = function

    def fail(self, function: str, nth: int, code: int) -> None:
        """Let the ``nth`` call from now of a driver's function report an error; 700 and 719 last."""
        self._library.fake_fail(function.encode(), ctypes.c_long(nth), code)

    @property
    def counts(self) -> dict[str, int]:
        """What lives, and what was done since the last reset."""
        found = self._library.fake_counts()
        return {name: found[i] for i, name in enumerate(_COUNTS)}

    @property
    def living(self) -> dict[str, int]:
        """What was made and not given back."""
        return {name: count for name, count in self.counts.items() if name in LIVING and count}

    @property
    def depth(self) -> int:
        """How many contexts this thread has pushed."""
        return int(self._library.fake_depth())

    def calls(self, function: str) -> int:
        """How often a function was called since the last reset."""
        return int(self._library.fake_calls(function.encode()))

    def view(self, address: int, dtype: str = "uint8") -> Array:
        """Device memory from an address to the end of its allocation.

        Raises:
            IndexError: nothing is allocated there.
        """
        room = self._library.fake_room(ctypes.c_ulonglong(address))
        if not room:
            raise IndexError(f"no memory is allocated at {address:#x}")
        size = np.dtype(dtype).itemsize
        data = (ctypes.c_ubyte * (room // size * size)).from_address(address)
        return np.frombuffer(data, dtype)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver; an error raises RuntimeError."""
        code = self._library[function](*arguments)
        if code:
            raise RuntimeError(f"{function} reports {code}")

    @staticmethod
    def unsigned(value: int) -> ctypes.c_ulonglong:
        """An address, size or handle as :meth:`call` takes it."""
        return ctypes.c_ulonglong(value)

    def enter(self, device: int = 0) -> None:
        """Make a GPU's context current, as torch does for a process; :meth:`leave` ends it."""
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxPushCurrent_v2", context)

    def leave(self, device: int = 0) -> None:
        """Undo :meth:`enter`."""
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self.call("cuDevicePrimaryCtxRelease_v2", device)

    def array(self, values: Array, **options: Any) -> DeviceMemory:
        """A copy of an array in device memory, inside :meth:`enter`; ``offset`` bytes after its start."""
        offset = options.pop("offset", 0)
        address = ctypes.c_ulonglong()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(values.nbytes, 1) + offset))
        made = DeviceMemory(self, address.value + offset, values.shape, values.dtype.name, **options)
        if values.size:
            made.values[...] = values
        return made

    def free(self, memory: DeviceMemory, offset: int = 0) -> None:
        """Give memory of :meth:`array` back."""
        self.call("cuMemFree_v2", ctypes.c_ulonglong(memory.address - offset))

    def stream(self) -> int:
        """A new stream, inside :meth:`enter`."""
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        assert stream.value is not None
        return stream.value

    def synchronize(self, stream: int) -> None:
        """Wait for a stream, inside :meth:`enter`."""
        self.call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def _launch(self, name: bytes, blocks: int, threads: int, shared: int, values: Any, count: int) -> int:
        try:
            self._kernels[name.decode()](blocks, threads, shared, values[:count])
        except BaseException:
            self.failures.append(traceback.format_exc())
            return LAUNCH_FAILED
        return 0

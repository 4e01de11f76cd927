"""driver: which GPU this machine has, asked of its driver."""

from __future__ import annotations

import ctypes

from sparsec.config import settings

#: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MAJOR, _MINOR = 75, 76


def capability() -> tuple[int, int] | None:
    """The compute capability of the GPU that programs run on; None without a GPU or its driver.

    The library is the one ``SPARSEC_LIBCUDA`` names, the GPU that of the number in ``SPARSEC_DEVICE``.
    """
    try:
        library = ctypes.CDLL(settings().libcuda)
    except OSError:
        return None
    device = ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGet(ctypes.byref(device), settings().device):
        return None
    major, minor = (_attribute(library, device, attribute) for attribute in (_MAJOR, _MINOR))
    return None if major is None or minor is None else (major, minor)


def _attribute(library: ctypes.CDLL, device: ctypes.c_int, attribute: int) -> int | None:
    value = ctypes.c_int()
    failed = library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return None if failed else value.value

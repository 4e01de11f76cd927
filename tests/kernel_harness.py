"""Runs one generated kernel on this machine, outputs poisoned, without plan or executor."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm

POISON = np.float32(np.nan)


def aligned(array: Any) -> Any:
    """A copy whose data starts at a multiple of 64 bytes."""
    array = np.ascontiguousarray(array)
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def compiled(function: Any, mcpu: str) -> Callable[..., None]:
    """Machine code of a kernel for ``mcpu``."""
    module = tvm.compile(function, target={"kind": "llvm", "mcpu": mcpu})
    entry = module[str(function.attrs["global_symbol"]) if "global_symbol" in function.attrs else "kernel"]
    return entry  # type: ignore[no-any-return]


def call(
    entry: Callable[..., None], buffers: Sequence[Any], sizes: Sequence[int], tiles: tuple[int, int],
    scratch_bytes: int = 1 << 20,
) -> None:  # fmt: skip
    """One call; ``buffers`` are aligned arrays in parameter order."""
    scratch = tvm.runtime.tensor(np.zeros(max(16, scratch_bytes // 4), np.float32))
    pointers = [ctypes.c_void_p(b.ctypes.data) for b in buffers]
    entry(scratch, *pointers, *sizes, *tiles)


def to_panels(x: Any, panel: int) -> Any:
    """``x[tokens, features]`` in token panels; lanes beyond the last token hold NaN."""
    tokens, features = x.shape
    count = -(-tokens // panel)
    padded = np.full((count * panel, features), POISON, np.float32)
    padded[:tokens] = x
    return aligned(padded.reshape(count, panel, features).transpose(0, 2, 1))


def from_panels(y: Any, tokens: int) -> Any:
    """The inverse of :func:`to_panels`."""
    count, features, panel = y.shape
    return y.transpose(0, 2, 1).reshape(count * panel, features)[:tokens]

"""What emulator/artifact.c is given and what it answers: whole artifacts on machines that are not at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.runtime.artifact import manifest_of

_CSRC = Path(__file__).parents[1] / "runtime" / "csrc"
RUNNER = Path(__file__).parent / "emulator" / "artifact.c"


def executor_sources() -> list[Path]:
    """The C files of the executor without Python."""
    return [p for p in sorted(_CSRC.glob("*.c")) if p.name != "shim.c" and not p.name.startswith("python_")]


def record(index: int, threads: int, feeds: Mapping[str, Any]) -> bytes:
    """A case as artifact.c reads it: model ``index`` on some inputs."""
    parts = [np.array([index, threads], np.int64).tobytes()]
    for array in feeds.values():
        parts += [np.array(array.shape, np.int64).tobytes(), array.tobytes()]
    return b"".join(parts)


def outputs_of(raw: bytes, ranks: Sequence[int]) -> list[Any]:
    """float32 outputs as artifact.c writes them."""
    found = []
    for rank in ranks:
        shape = tuple(np.frombuffer(raw, np.int64, rank))
        raw = raw[8 * rank :]
        count = int(np.prod(shape))
        found.append(np.frombuffer(raw, np.float32, count).reshape(shape))
        raw = raw[4 * count :]
    assert not raw
    return found


def kernels_of(data: bytes) -> frozenset[str]:
    """The kernels of an artifact's steps."""
    steps = manifest_of(data)["report"]["steps"]
    return frozenset(step["kernel"].rpartition("_")[0] for step in steps)

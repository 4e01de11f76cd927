"""cost: the terms that the predictions of CUDA kernels are made of, in cycles of the GPU's clock.

A kernel takes the time of launching it and of whichever resource it uses longest: arithmetic units,
L2 or memory.  Blocks run in waves, and a last wave that is not full takes as long as a full one.  The
figures of a GPU are its data sheet's (:class:`sparsec.targets.target.Gpu`); the shares of them that
kernels reach are a kernel's own.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sparsec.targets.target import Gpu, Problem, Target

#: what of its peak rates memory and L2 give to kernels that stream
MEMORY_SHARE, L2_SHARE = 0.85, 0.7
#: columns that a prediction counts with where only the run tells how many there are
UNKNOWN_COLUMNS = 32


def gpu_of(target: Target) -> Gpu:
    """The figures of a target's GPU."""
    assert target.gpu, f"{target.name} is no GPU"
    return target.gpu


def columns_of(problem: Problem) -> int:
    """Tokens, or positions of all images, to predict for."""
    if problem.columns is not None:
        return problem.columns
    return problem.conv.positions if problem.conv else UNKNOWN_COLUMNS


def item_bytes(problem: Problem) -> int:
    """Bytes of a value."""
    return int(np.dtype(problem.dtype).itemsize)


def kernel_cycles(
    target: Target, *, operations: float, rate: float, blocks: float, resident: int = 1,
    memory_bytes: float = 0.0, l2_bytes: float = 0.0,
) -> float:  # fmt: skip
    """Cycles of one launch.

    Args:
        target: whose GPU.
        operations: floating-point operations of all blocks, padding included.
        rate: operations a cycle that one multiprocessor does in this kernel.
        blocks: of the grid.
        resident: blocks that a multiprocessor runs at once.
        memory_bytes: read from or written to memory at least once.
        l2_bytes: read by all blocks together, from L2 or beyond.
    """
    gpu = gpu_of(target)
    # where there are fewer blocks, those that run have a multiprocessor to themselves
    resident = max(1, min(resident, ceil(blocks / gpu.multiprocessors)))
    slots = gpu.multiprocessors * resident
    waves = blocks / slots if blocks > 4 * slots else ceil(blocks / slots)
    compute = waves * resident * (operations / max(1.0, blocks)) / rate
    # few blocks do not keep memory busy
    busy = min(1.0, blocks / gpu.multiprocessors)
    memory = memory_bytes / (gpu.dram_bytes * MEMORY_SHARE * busy)
    cache = l2_bytes / (gpu.l2_bytes * L2_SHARE * busy)
    return gpu.launch + max(compute, memory, cache)

"""What the machine can do at most: float32 multiply-adds, and bytes read from where they lie.

    python benchmarks/limits.py --threads 2

Two kernels in TIR, run by sparsec's own executor on the given number of threads: multiply-adds
that need nothing but registers, and sums over arrays of growing size.  The shortest call
counts, since nothing can make a machine faster than it is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.measure import pin_to_one_core
from sparsec.runtime import Program
from sparsec.runtime.artifact import to_bytes
from sparsec.runtime.plan import Argument, ArgumentKind, Buffer, BufferKind, Plan, Port, Step
from sparsec.targets.build import kernel_object, link
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Target
from sparsec.targets.x86 import native

#: accumulators: enough for two multiply-adds of four cycles at once, and no more than AVX2 has
CHAINS = 12
#: multiply-adds of every accumulator in a tile
STEPS = 20_000
#: floats a tile of a sum reads
CHUNK = 16 << 10
#: bytes of the arrays that are read
SIZES = tuple((256 << 10) << shift for shift in range(0, 12, 2))
#: how long each is tried
SECONDS = 0.3


@dataclass(frozen=True)
class Limits:
    """GFLOP/s of multiply-adds, and GB/s of reads by the bytes that are read over and over."""

    fma_gflops: float
    read_gbs: Mapping[int, float]

    def gbs(self, nbytes: int) -> float:
        """What an array of so many bytes can be read at."""
        return self.read_gbs[min((s for s in self.read_gbs if s >= nbytes), default=max(self.read_gbs))]


def _multiply_adds(target: Target, name: str) -> Any:
    def body(k: Kernel) -> None:
        with k.tiles() as tile:
            chains = k.registers(CHAINS)
            for i in range(CHAINS):
                k.assign(chains, i, k.vector(k["x"], i * k.lanes))
            factor = k.bind(k.vector(k["x"], CHAINS * k.lanes))
            term = k.bind(k.vector(k["x"], (CHAINS + 1) * k.lanes))
            with k.loop(STEPS):
                for i in range(CHAINS):
                    k.assign(chains, i, chains[i] * factor + term)
            _store_sum(k, [chains[i] for i in range(CHAINS)], tile)

    return prim_func(name, target.lanes, [("x", "float32"), ("y", "float32")], (), body)


def _sum(target: Target, name: str) -> Any:
    def body(k: Kernel) -> None:
        width = 8 * k.lanes
        with k.tiles() as tile:
            chains = k.registers(8)
            for i in range(8):
                k.assign(chains, i, k.splat(0.0))
            with k.loop(CHUNK // width) as step:
                at = k.bind(tile * CHUNK + step * width)
                for i in range(8):
                    k.assign(chains, i, chains[i] + k.vector(k["x"], at + i * k.lanes))
            _store_sum(k, [chains[i] for i in range(8)], tile)

    return prim_func(name, target.lanes, [("x", "float32"), ("y", "float32")], (), body)


def _store_sum(k: Kernel, chains: Sequence[Any], tile: Any) -> None:
    total = chains[0]
    for chain in chains[1:]:
        total = total + chain
    k.put(k["y"], tile * k.lanes, total)


def _program(emit: Any, target: Target, floats: int, tiles: int, threads: int) -> Program:
    """A program of one kernel from x[floats] to y[tiles * lanes]."""
    name = emit.__name__.strip("_")
    sizes = Sizes()
    buffers = (
        Buffer(BufferKind.INPUT, 0, sizes.of(4 * floats)),
        Buffer(BufferKind.OUTPUT, 0, sizes.of(4 * tiles * target.lanes)),
    )
    pointers = [Argument(ArgumentKind.POINTER, i) for i in range(2)]
    ends = (Argument(ArgumentKind.TILE_BEGIN), Argument(ArgumentKind.TILE_END))
    arguments = (Argument(ArgumentKind.SCRATCH), *pointers, *ends)
    # long enough for all threads to be called
    step = Step(name, arguments, sizes.of(tiles), sizes.of(64), nanoseconds=10**6, node=name)
    x = Port("x", "float32", (sizes.of(floats),), 0)
    y = Port("y", "float32", (sizes.of(tiles * target.lanes),), 1)
    plan = Plan((), tuple(sizes.expressions), buffers, (), (step,), (x,), (y,))
    key = f"{name}|{CHAINS}|{STEPS}|{CHUNK}|{target.lanes}"
    code = link([kernel_object(key, lambda: emit(target, name), target)], target)
    return Program.from_bytes(to_bytes(plan, code, (), {"features": list(target.features)}), threads)


def _seconds(program: Program, x: np.ndarray) -> float:
    """The shortest call."""
    call = program.prepare({"x": x})
    call()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - start)
    return best


def measured(threads: int, sizes: Sequence[int] = SIZES) -> Limits:
    """This machine's, on so many threads."""
    target = native()
    floats = (CHAINS + 2) * target.lanes
    tiles = 8 * threads
    x = np.full(floats, 0.5, np.float32)
    took = _seconds(_program(_multiply_adds, target, floats, tiles, threads), x)
    gflops = 2e-9 * tiles * STEPS * CHAINS * target.lanes / took
    rates = {}
    for size in sizes:
        program = _program(_sum, target, size // 4, size // 4 // CHUNK, threads)
        x = _aligned(size // 4)
        rates[size] = round(1e-9 * size / _seconds(program, x), 2)
    return Limits(round(gflops, 2), rates)


def _aligned(floats: int) -> np.ndarray:
    """Ones the executor reads where they lie."""
    raw = np.empty(floats + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    raw[start : start + floats] = 1
    return raw[start : start + floats]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads: int = parser.parse_args().threads
    if threads == 1:
        pin_to_one_core()
    found = measured(threads)
    print(json.dumps({"fma_gflops": found.fma_gflops, "read_gbs": dict(found.read_gbs)}))


if __name__ == "__main__":
    main()

"""What two cores of this machine give at this moment: to a loop in registers, and to one that reads memory.

A virtual machine's cores are threads of a host that others use too: a ratio of two threads to one says
something about a program only while a loop in registers scales (`fraction`), and a program that reads
weights from memory can gain no more than one that only reads (`reader`).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

#: ten independent chains of fused multiply-adds: enough to keep two units of latency 4 or 5 busy
LOOPS = """
#ifdef __aarch64__
typedef float lanes __attribute__((vector_size(16)));
#define REGISTER "w"
#else
typedef float lanes __attribute__((vector_size(32)));
#define REGISTER "x"
#endif
#define TEN(each) each(0) each(1) each(2) each(3) each(4) each(5) each(6) each(7) each(8) each(9)
#define BEGIN(n) lanes sum##n = {n};
#define STEP(n) sum##n = sum##n * 0.999f + 1.0f; __asm__ volatile("" : "+" REGISTER(sum##n));
#define END(n) total += sum##n;
float spin(long steps) {
    TEN(BEGIN)
    while (steps--) { TEN(STEP) }
    lanes total = {0};
    TEN(END)
    return total[0];
}
typedef lanes anywhere __attribute__((aligned(4)));
#define ADD(n) sum##n += values[n];
float sum(const anywhere *values, long bytes) {
    TEN(BEGIN)
    for (long left = bytes / (10 * sizeof(lanes)); left--; values += 10) { TEN(ADD) }
    lanes total = {0};
    TEN(END)
    return total[0];
}
"""
#: seconds a look lasts, on one core and on both
LOOK = 0.004


def fraction() -> float:
    """Time of the loop on one core over its time on two at once: 1.0 where both cores are whole."""
    spin, steps = _loops().spin, _steps()
    alone = _seconds(spin, steps)
    other = _helper().submit(_seconds, spin, steps)
    both = max(_seconds(spin, steps), other.result())
    return alone / both


def reader(size: int, threads: int) -> Callable[[], None]:
    """What reads ``size`` bytes of memory, on one thread or half of them on each of two."""
    data = np.ones((threads, size // threads // 4), np.float32)

    def read() -> None:
        first, *others = [(share.ctypes.data_as(ctypes.c_void_p), share.nbytes) for share in data]
        waiting = [_helper().submit(_loops().sum, *share) for share in others]
        _loops().sum(*first)
        for other in waiting:
            other.result()

    return read


@cache
def _loops() -> Any:
    """The loops, compiled for this machine.

    Raises subprocess.CalledProcessError where there is no C compiler that takes them.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "loops.c"), Path(folder, "loops.so")
        source.write_text(LOOPS)
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", library, source], check=True)
        loops = ctypes.CDLL(str(library))
    loops.spin.argtypes, loops.spin.restype = [ctypes.c_long], ctypes.c_float
    loops.sum.argtypes, loops.sum.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_float
    return loops


@cache
def _steps() -> int:
    """Turns of the loop in a look."""
    spin, sample = _loops().spin, 100_000
    return int(sample * LOOK / min(_seconds(spin, sample) for _ in range(20)))


@cache
def _helper() -> ThreadPoolExecutor:
    """The thread of the second core; it sleeps between looks."""
    return ThreadPoolExecutor(1)


def _seconds(spin: Any, steps: int) -> float:
    start = time.perf_counter()
    spin(steps)
    return time.perf_counter() - start

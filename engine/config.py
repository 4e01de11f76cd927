"""Every ``SPARSEC_*`` environment variable, in one table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import SupportsIndex

from sparsec.errors import ConfigError

#: name -> (default, meaning)
VARIABLES: Mapping[str, tuple[str, str]] = {
    "SPARSEC_DEBUG": ("0", "1 a line per pass, 2 each pass's IR diff, 3 each kernel, 4 TIR, 5 assembly"),
    "SPARSEC_DUMP": ("", "folder that receives the graph after every pass, 000_imported.txt onward"),
    "SPARSEC_THREADS": ("1", "threads a program runs on unless told otherwise"),
    "SPARSEC_CACHE": ("~/.cache/sparsec", "folder of compiled kernels; empty string: no cache"),
    "SPARSEC_CACHE_BYTES": ("2147483648", "bytes of compiled kernels kept; the least recently used go"),
    "SPARSEC_FACTS": ("measured", "measured: what `sparsec machine --measure` kept; shipped: never that"),
    "SPARSEC_ISA": ("", "of a file with code for several instruction sets, the one to run (x86-64-v3)"),
    "SPARSEC_CC": ("cc", "the C compiler that links kernels for this machine's architecture"),
    "SPARSEC_AARCH64_CC": ("aarch64-linux-gnu-gcc", "the one that links kernels for ARM on another machine"),
    "SPARSEC_CUDA": ("", "the CUDA toolkit's folder; empty: nvcc is looked for"),
    "SPARSEC_CUDA_GRAPHS": ("1", "0: a GPU's kernels are launched one by one, never as a recorded graph"),
    "SPARSEC_DEVICE": ("0", "which GPU runs CUDA programs"),
    "SPARSEC_LIBCUDA": ("libcuda.so.1", "the GPU driver's library, which runs CUDA programs"),
}

#: on how many threads one program can run; the C runtime holds to the same number
MAXIMUM_THREADS = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """The variables' values, read once per call of :func:`settings`."""

    debug: int
    dump: Path | None
    threads: int
    cache: Path | None
    cache_bytes: int
    cc: str
    aarch64_cc: str
    facts: str
    cuda: str
    libcuda: str
    device: int


def settings() -> Settings:
    """Read the environment.

    Raises:
        ConfigError: a variable that must be a number is not one.
    """
    cache = _text("SPARSEC_CACHE")
    dump = _text("SPARSEC_DUMP")
    return Settings(
        debug=_number("SPARSEC_DEBUG", low=0),
        dump=Path(dump).expanduser() if dump else None,
        threads=_number("SPARSEC_THREADS", 1, MAXIMUM_THREADS),
        cache=Path(cache).expanduser() if cache else None,
        cache_bytes=_number("SPARSEC_CACHE_BYTES", low=0),
        cc=_text("SPARSEC_CC"),
        aarch64_cc=_text("SPARSEC_AARCH64_CC"),
        facts=_one_of("SPARSEC_FACTS", ("measured", "shipped")),
        cuda=_text("SPARSEC_CUDA"),
        libcuda=_text("SPARSEC_LIBCUDA"),
        device=_number("SPARSEC_DEVICE", low=0),
    )


def threads_of(count: SupportsIndex | None) -> int:
    """A number of threads that somebody asked for; that of ``SPARSEC_THREADS`` for None.

    Raises:
        ConfigError: nothing runs on that many.
    """
    if count is None:
        return settings().threads
    if not isinstance(count, SupportsIndex) or not 1 <= index(count) <= MAXIMUM_THREADS:
        raise ConfigError(f"threads={count!r}: expected a whole number from 1 to {MAXIMUM_THREADS}")
    return index(count)


def _text(name: str) -> str:
    return os.environ.get(name, VARIABLES[name][0])


def _one_of(name: str, choices: Sequence[str]) -> str:
    raw = _text(name)
    if raw not in choices:
        raise ConfigError(f"{name}={raw!r}: expected {' or '.join(choices)}")
    return raw


def _number(name: str, low: int, high: int | None = None) -> int:
    raw = _text(name)
    if not raw.isdigit() or int(raw) < low or (high is not None and int(raw) > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name}={raw!r}: expected a whole number {span}")
    return int(raw)

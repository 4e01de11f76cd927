"""calls: a kernel call on a GPU as lowering describes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from sparsec.ir.types import Type
from sparsec.targets.calls import Call, Context
from sparsec.targets.cuda.build import kernel_cubin


@dataclass(frozen=True, slots=True)
class _Emission:
    """What makes a kernel's TIR; two of one key make the same."""

    key: str
    name: str
    emit: Callable[[str], Any] = field(compare=False)


@lru_cache(maxsize=512)
def _emitted(emission: _Emission) -> Any:
    return emission.emit(emission.name)


def device_call(
    context: Context, stem: str, key: object, emit: Callable[[str], Any], reads: tuple[str, ...],
    numbers: tuple[int, ...], blocks: int, cycles: float, makes: tuple[tuple[str, Type], ...] = (),
) -> Call:  # fmt: skip
    """A call of one of our kernels on a GPU.

    Args:
        context: what is lowered.
        stem: the kernel's word in names and reports.
        key: all that ``emit(name)`` depends on beside the target; its repr tells two apart.
        emit: makes the function, by :func:`sparsec.targets.cuda.builder.device_function`.
        reads: values and packed constants in the order of its pointers, the value it makes last.
        numbers: its sizes, as expressions.
        blocks: blocks of the grid, an expression.
        cycles: predicted cycles of the GPU's clock.
        makes: values for the node's next calls.
    """
    target = context.target
    described = f"{stem}|{key!r}|{target.mcpu}|{_sources()}"
    name = f"{stem}_{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    function = _emitted(_Emission(described, name, emit))
    return Call(
        name, lambda: kernel_cubin(function, target), reads, numbers, blocks,
        context.sizes.of(int(function.attrs["sparsec_shared"])), cycles / target.gigahertz / 1e3,
        threads=int(function.attrs["sparsec_threads"]), makes=makes, function=function,
    )  # fmt: skip


@cache
def _sources() -> str:
    """A digest of the emitters, so that two versions of a kernel never have one name."""
    digest = hashlib.sha256()
    for package in ("", ".kernels", ".parts", ".leftover"):
        for part in sorted(files(f"sparsec.targets.cuda{package}").iterdir(), key=lambda p: p.name):
            if part.name.endswith(".py"):
                digest.update(part.read_bytes())
    return digest.hexdigest()[:16]

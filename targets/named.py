"""Targets by name, and the one that stands for this machine."""

from __future__ import annotations

import platform
from dataclasses import replace

from sparsec.errors import ConfigError
from sparsec.targets import arm, x86
from sparsec.targets.cuda import gpus
from sparsec.targets.processor import cpu_features
from sparsec.targets.several import joined
from sparsec.targets.target import Target

#: every target but this machine's processor
TARGETS = (x86.AVX2, x86.AVX512, *arm.TARGETS, *gpus.TARGETS)

NAMES = ("native", "cuda", *(target.name for target in TARGETS))


def target_named(name: str) -> Target:
    """The target called ``name``, one of :data:`NAMES`, or several of them joined by commas.

    ``native`` is this machine's processor, ``cuda`` its GPU.

    Several share one plan, made for the first (see :mod:`sparsec.targets.several`).

    Raises:
        ConfigError: the name is unknown, or this machine cannot be a native target; or several
            are of different architectures.
    """
    if "," in name:
        return joined([target_named(part.strip()) for part in name.split(",")])
    if name in _OF_THIS_MACHINE:
        return _OF_THIS_MACHINE[name]()
    for target in TARGETS:
        if target.name == name:
            return target
    raise ConfigError(f"unknown target {name!r}: choose one of {', '.join(NAMES)}")


def native() -> Target:
    """This machine: its vector level, its own instruction set, and what is known of its core.

    Raises:
        ConfigError: it lacks AVX2 or NEON.
    """
    return arm.native() if is_arm() else x86.native()


#: targets that depend on where they are named
_OF_THIS_MACHINE = {"native": native, "cuda": gpus.native}


def computing_in(target: Target, dtype: str | None) -> Target:
    """The target, with programs that compute in ``dtype`` what models compute in float32; None: as it is.

    Raises:
        ConfigError: it has no kernels for that.
    """
    if dtype is None:
        return target
    if dtype not in target.dtypes:
        if dtype in gpus.DTYPES:
            raise ConfigError(f"{target.name} computes in float32 only; {dtype} is for GPUs: sm_80, sm_90a")
        raise ConfigError(f"unknown dtype {dtype!r}: choose one of {', '.join(gpus.DTYPES)}")
    others = tuple(replace(other, dtype=dtype) for other in target.others)
    return replace(target, dtype=dtype, others=others)


def level() -> Target:
    """The best of the targets that this machine runs, with the figures that ship.

    Raises:
        ConfigError: it runs none.
    """
    return arm.level() if is_arm() else x86.level()


def runs_here(target: Target) -> bool:
    """Whether this machine has all that code for a target may use."""
    if target.gpu:
        return gpus.runs_here(target)
    return target.architecture == platform.machine() and set(target.features) <= cpu_features()


def is_arm() -> bool:
    """Whether this machine is a 64-bit ARM."""
    return platform.machine() in ("aarch64", "arm64")

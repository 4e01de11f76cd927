"""What travels from where CUDA programs are compiled to where they run: plans and code, no large weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsec.targets.target import Problem, Target


@dataclass(frozen=True)
class Packed:
    """An array that a kernel packs from a weight: ``pack(weight[M, K])``'s array of that label."""

    weight: str
    kernel: str
    problem: Problem
    config: dict[str, int]
    label: str


@dataclass(frozen=True)
class Carried:
    """A program without its large weights; ``constants`` are arrays or how to make them, in order."""

    case: str
    kernel: str
    plan: Any
    code: Any
    constants: tuple[Any, ...]
    digests: dict[str, str]
    target: Target
    choices: tuple[str, ...]

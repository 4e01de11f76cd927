"""csr_conv: convolution with unstructured weights, by constant offsets (see window_visits)."""

from __future__ import annotations

from collections.abc import Mapping

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.kernels import window_visits
from sparsec.targets.target import Problem, Target

name = "csr_conv"
format = "csr"

emit = window_visits.emit
scratch_floats = window_visits.scratch_floats
pack = window_visits.pack


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Any ungrouped convolution."""
    return window_visits.accepts(problem, target)


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """One configuration per tile shape."""
    assert problem.conv is not None
    found = window_visits.windows(problem.conv, target)
    return tuple(window_visits.config_of(w, problem, target, 0, False) for w in found)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core."""
    blocks = _blocks(problem, config)
    visits = min(blocks * problem.rows, pattern.nonzeros + problem.rows) / config["group"]
    steps = 1.02 * pattern.nonzeros / config["group"]
    bytes_read = nbytes(problem, pattern, config, target)
    return window_visits.predict(problem, target, config, steps, visits, bytes_read)


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A value and an offset for every nonzero, and the rows of every visit."""
    visits = min(_blocks(problem, config) * problem.rows, pattern.nonzeros + problem.rows)
    stored = 1.02 * pattern.nonzeros
    return window_visits.stored_bytes(problem, config, target, stored, stored, visits)


def _blocks(problem: Problem, config: Mapping[str, int]) -> int:
    assert problem.conv is not None
    return -(-problem.conv.channels // config["channels"])

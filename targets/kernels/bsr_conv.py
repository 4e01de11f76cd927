"""bsr_conv: convolution with weights pruned in blocks of output channels (see window_visits).

Groups of rows share their columns: one load of X serves the whole group.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.kernels import window_visits
from sparsec.targets.kernels.bsr_spmm import group_heights, group_steps
from sparsec.targets.target import Problem, Target

name = "bsr_conv"
format = "bsr"

emit = window_visits.emit
scratch_floats = window_visits.scratch_floats
pack = window_visits.pack


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """An ungrouped convolution with at least one weight in ten to skip."""
    if problem.rows < 4 or pattern.density > 0.9 or not group_heights(pattern):
        return False
    return window_visits.accepts(problem, target)


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """One configuration per tile shape and group height that blocks of the weight allow."""
    assert problem.conv is not None
    found = window_visits.windows(problem.conv, target)
    heights = group_heights(pattern)
    return tuple(window_visits.config_of(w, problem, target, h, True) for h in heights for w in found)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core."""
    assert problem.conv is not None
    blocks = -(-problem.conv.channels // config["channels"])
    steps = group_steps(pattern, config["group"])
    visits = min(blocks * problem.rows / config["group"], steps + problem.rows / config["group"])
    bytes_read = nbytes(problem, pattern, config, target)
    return window_visits.predict(problem, target, config, steps, visits, bytes_read)


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every element of a stored group, and one offset a group."""
    steps = group_steps(pattern, config["group"])
    return window_visits.stored_bytes(
        problem, config, target, steps * config["group"], steps, 4 * problem.rows
    )

"""bsr_spmm: weights pruned in blocks of rows times token panels (see panel_visits).

A block of r x c is run as c steps of groups of rows that share their column: one load of X
serves the whole group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.kernels import panel_visits
from sparsec.targets.target import Packing, Problem, Target

name = "bsr_spmm"
format = "bsr"


def group_heights(pattern: Pattern) -> list[int]:
    """Rows a group may have, tallest first, where blocks of the weight are full enough to try."""
    return sorted({_group(b.rows) for b in pattern.blocks if b.fill > 0.3} - {1}, reverse=True)


def _group(rows: int) -> int:
    return next((g for g in (4, 3, 2) if rows % g == 0), 1)


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Token panels, and at least one weight in ten to skip; prediction decides whether blocks pay."""
    if problem.panel == 0 or problem.panel % target.lanes or problem.rows < 4:
        return False
    if pattern.density > 0.9:
        return False
    return bool(group_heights(pattern))


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """One configuration per group height that blocks of the weight allow, best fill first."""
    found = []
    for group in group_heights(pattern):
        vectors = min(2 if group >= 3 and target.registers < 32 else 4, problem.panel // target.lanes)
        block = panel_visits.block_of_inner(problem, target)
        chunk = panel_visits.chunk_of_rows(problem, target, group)
        found.append({"group": group, "block": block, "chunk": chunk, "vectors": vectors, "shared": 1})
    return tuple(found)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core."""
    blocks = -(-problem.inner // config["block"])
    steps = group_steps(pattern, config["group"])
    visits = min(blocks * problem.rows / config["group"], steps + problem.rows / config["group"])
    return panel_visits.predict(problem, target, config, steps, visits)


def group_steps(pattern: Pattern, group: int) -> float:
    """Groups of rows times columns that hold a nonzero."""
    fills = [b.fill for b in pattern.blocks if b.rows % group == 0]
    return pattern.nonzeros / max(max(fills, default=0.01), 0.01) / group


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every element of a stored group, and one offset a group."""
    steps = group_steps(pattern, config["group"])
    return panel_visits.stored_bytes(problem, config, steps * config["group"], steps, 4 * problem.rows)


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``."""
    return panel_visits.pack(weight, problem, config)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    return panel_visits.emit(problem, packing, target, name)

"""csr_spmm: unstructured weights times token panels, K-blocked (see panel_visits)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.kernels import panel_visits
from sparsec.targets.target import Packing, Problem, Target

name = "csr_spmm"
format = "csr"


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Any weight, on token panels."""
    return problem.panel > 0 and problem.panel % target.lanes == 0


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """Eight accumulators as two rows of four vectors where the panel is that wide."""
    vectors = min(4, problem.panel // target.lanes)
    group = max(1, min(8 // vectors, problem.rows))
    block = panel_visits.block_of_inner(problem, target)
    chunk = panel_visits.chunk_of_rows(problem, target, group)
    best = {"group": group, "block": block, "chunk": chunk, "vectors": vectors, "shared": 0}
    narrow = {**best, "block": max(1, block // 2)}
    return (best, narrow)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core."""
    blocks = -(-problem.inner // config["block"])
    live = problem.rows - pattern.dead_rows
    # a row of zeros is visited in the first and the last block, without a loop that could be mispredicted
    visits = (min(blocks * live, pattern.nonzeros + live) + 0.5 * pattern.dead_rows) / config["group"]
    # rows of a group are padded to the longest: little, since they are sorted by length
    return panel_visits.predict(problem, target, config, 1.02 * pattern.nonzeros / config["group"], visits)


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A value and an offset for every nonzero, and the rows of every visit."""
    blocks = -(-problem.inner // config["block"])
    visits = min(blocks * problem.rows, pattern.nonzeros + problem.rows)
    stored = 1.02 * pattern.nonzeros
    return panel_visits.stored_bytes(problem, config, stored, stored, visits)


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``."""
    return panel_visits.pack(weight, problem, config)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    return panel_visits.emit(problem, packing, target, name)

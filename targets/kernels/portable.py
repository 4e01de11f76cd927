"""portable: packings that code of other vectors reads as they are.

What a kernel packs may depend on how many lanes a vector has, or only on sizes that lanes cut
differently.  The rules here are those of the second kind: for a configuration that a weight was
packed with, the one with which other vectors read the same arrays.  A kernel without a rule, and a
rule's None, mean that the arrays are bound to the lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from sparsec.targets.target import Problem, Target

Config: TypeAlias = Mapping[str, int]
#: (problem, config, the vectors packed for, those to read with) -> the configuration to read with
Rule: TypeAlias = Callable[[Problem, Config, Target, Target], "dict[str, int] | None"]


def read_with(
    kernel: str, problem: Problem, config: Config, packed: Target, target: Target
) -> dict[str, int] | None:
    """The configuration with which ``target`` reads what ``packed`` stored with ``config``, if it can."""
    if packed.lanes == target.lanes:
        return dict(config)
    rule = _RULES.get(kernel)
    return None if rule is None else rule(problem, config, packed, target)


def _accumulators(target: Target) -> int:
    """What kernels of token panels hold beside their operands, as their ``space`` has it."""
    return 8 if target.registers < 32 else 16


def _widest(problem: Problem, rows: int, target: Target) -> int | None:
    """Vectors of a panel to take at a time with so many rows, None where no vector fits the panel."""
    available, left = divmod(problem.panel, target.lanes)
    if left or not available:
        return None
    fits = [v for v in (4, 2, 1) if available % v == 0 and rows * v <= _accumulators(target)]
    return fits[0] if fits else 1


def _panels(problem: Problem, config: Config, packed: Target, target: Target) -> dict[str, int] | None:
    """Rows of weights in groups: lanes hold tokens, which are not packed."""
    vectors = _widest(problem, config["group"], target)
    return None if vectors is None else {**config, "vectors": vectors}


def _hybrid(problem: Problem, config: Config, packed: Target, target: Target) -> dict[str, int] | None:
    """The same twice: ``shared`` is the vectors of groups of four rows that share loads."""
    vectors, shared = _widest(problem, config["group"], target), _widest(problem, 4, target)
    return None if vectors is None or shared is None else {**config, "vectors": vectors, "shared": shared}


def _dense_panels(problem: Problem, config: Config, packed: Target, target: Target) -> dict[str, int] | None:
    """Row tiles of a given height: as many vectors as registers hold beside X and a broadcast."""
    available, left = divmod(problem.panel, target.lanes)
    height = config["height"]
    fits = [
        v for v in (4, 2, 1) if left == 0 and available % v == 0 and height * v + v + 1 <= target.registers
    ]
    return {**config, "vectors": fits[0]} if fits and available else None


def _bands(problem: Problem, config: Config, packed: Target, target: Target) -> dict[str, int] | None:
    """Bands of rows across lanes: a band is so many floats, whatever vectors it is read in."""
    vectors, left = divmod(config["vectors"] * packed.lanes, target.lanes)
    held = vectors * (problem.columns or 1)
    return None if left or not vectors or held > target.registers // 2 else {**config, "vectors": vectors}


def _same(problem: Problem, config: Config, packed: Target, target: Target) -> dict[str, int] | None:
    """Vectors of a fixed number of elements, on whatever registers."""
    return dict(config)


def _listed(problem: Problem, config: Config, packed: Target, target: Target) -> dict[str, int] | None:
    """Sparse columns one by one; whole ones in chunks of whole vectors."""
    return dict(config) if not config["whole"] or config["chunk"] % target.lanes == 0 else None


_RULES: Mapping[str, Rule] = {
    "csr_spmm": _panels, "bsr_spmm": _panels, "nm_spmm": _panels, "hybrid_spmm": _hybrid,
    "dense_gemm": _dense_panels, "dense_gemv": _bands, "csr_gemv": _same, "active_gemv": _listed,
}  # fmt: skip

#: kernels with a rule
KERNELS = tuple(_RULES)

"""cost: the terms that every kernel's prediction is a sum of, in cycles of one core.

A kernel counts its steps, visits, vectors and bytes from the pattern's statistics; what each of them takes
is said here, from the target's facts (:class:`sparsec.targets.facts.Facts`).  The figures that are no
facts of a machine were fitted on Zen 3; ``benchmarks/choices.py`` shows how well all of it predicts.

    step       a nonzero of each row of a group, times the vectors of X that are in hand
    visit      a group of rows begins or ends: accumulators in and out, a loop's end
    tile       a part of X comes to L1
    stream     weights come from the level of memory that holds them between runs
    epilogue   what is fused into the end of a row, by vectors
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsec.ir.expr import Call, walk

if TYPE_CHECKING:
    from sparsec.targets.target import Problem, Target

#: vector loads a cycle
LOADS = 2
#: cycles until a sum is ready for the next
LATENCY = 4.0
#: cycles that accumulators of a visit take on their way in and out, each
ACCUMULATOR = 2.2
#: cycles a visit takes beside them: a refill of the pipeline, sometimes after a wrong guess
VISIT = 10.0
#: shares of L3: weights of fewer bytes stay there between runs, of more come from memory
KEPT = (0.3, 0.9)
#: share of the shorter of computing and reading that does not overlap with the longer
STALLED = 0.1
#: cycles a vector takes in functions that have no instruction
FUNCTIONS = {
    "exp": 20, "erf": 16, "tanh": 16, "sigmoid": 22, "log": 24, "pow": 80, "sin": 60, "cos": 60,
}  # fmt: skip


def step_cycles(group: int, vectors: int, shared: bool, target: Target, turns: float = 1.0) -> float:
    """A nonzero (or a zero in its place) of each row of a group, times some vectors of X.

    ``shared``: the rows' nonzeros are in one column, whose vectors are loaded once.  ``turns``: what a
    load of X takes beside one that lies within a cache line.
    """
    columns = 1 if shared else group
    loads = columns * vectors * turns + group + 0.5 * columns
    return max(loads / LOADS, group * vectors / target.fmas, LATENCY)


def visit_cycles(group: int, vectors: int) -> float:
    """A visit of a group of rows beside its steps: 28 cycles for 8 accumulators, measured on Zen 3."""
    return VISIT + ACCUMULATOR * group * vectors


def tile_cycles(elements: float, target: Target) -> float:
    """A part of X, float32, that comes from L2 in order."""
    return elements * 4 / target.l2_bytes


def stream_cycles(nbytes: float, target: Target) -> float:
    """Weights that are read once a run, from the level that holds them between runs.

    ``target.l3`` is what they find of L3 beside a program's other weights.  Other cores want some
    of it too: above :data:`KEPT` of it a growing share comes from memory.
    """
    if nbytes < target.l2 / 2:
        return nbytes / target.l2_bytes
    low, high = KEPT
    share = min(1.0, max(0.0, (nbytes / target.l3 - low) / (high - low)))
    return nbytes * (share / target.dram_bytes + (1 - share) / target.l3_bytes)


def overlapped(compute: float, stream: float) -> float:
    """Computing while weights are read."""
    return max(compute, stream) + STALLED * min(compute, stream)


def epilogue_cycles(problem: Problem) -> float:
    """What a vector of results takes in the epilogue."""
    if problem.epilogue is None:
        return 0.0
    calls = [e for e in walk(problem.epilogue) if isinstance(e, Call)]
    return float(sum(FUNCTIONS.get(c.function, 1) for c in calls))

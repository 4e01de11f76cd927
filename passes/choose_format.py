"""choose_format: for every weight, the kernel predicted fastest; dense is always a candidate.

What was sparse stays sparse: no packing larger than the weight's own bytes is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from sparsec.errors import IRError
from sparsec.ir.attributes import ConstAttrs
from sparsec.ir.graph import Candidate, Choice, Graph, Node, replace, with_nodes
from sparsec.sparsity.pattern import Pattern, infer
from sparsec.targets.layers import is_layer, weight_matrix
from sparsec.targets.problem import predicted_columns, problem_of
from sparsec.targets.target import Kernel, Problem, Target

if TYPE_CHECKING:
    from sparsec.ir.types import Array

#: predicted bytes are right to within so much of the weight's own, and so many bytes of tables
_UNSURE, _TABLES = 0.1, 4096

#: with so few zeros what a sparse kernel could win is less than the error of its prediction
_NEARLY_DENSE = 0.95

#: how much faster than dense a kernel that skips has to be on token panels by its prediction: it may err by
#: that much, and programs on other cores slow what reads scattered memory more than what streams; and on a
#: GPU, whose figures are a data sheet's
_CERTAIN = 1.15

#: the kernel that skips zero inputs, and how much faster it has to be by its prediction: samples
#: are not the inputs to come, and whoever compiles without samples must not be better off
_SKIPS_INPUTS, _MARGIN = "active_gemv", 1.2


def choose_format(graph: Graph, target: Target) -> Graph:
    """Give every layer without one a choice."""
    nodes = graph.node_map()
    todo = {n.name for n in graph.nodes if is_layer(nodes, n, target.dtypes) and not n.choice}
    if not todo:
        return graph
    chosen = [_with_choice(graph, nodes, n, target) if n.name in todo else n for n in graph.nodes]
    return with_nodes(graph, chosen)


def _with_choice(graph: Graph, nodes: dict[str, Node], n: Node, target: Target) -> Node:
    problem = problem_of(nodes, n)
    w = nodes[n.args[1]]
    pattern = cast(ConstAttrs, w.attrs).pattern or infer(weight_matrix(n, graph.consts[w.name]))
    ranked = candidates(problem, pattern, beside_others(graph, nodes, n, target))
    if not ranked:
        raise IRError(f"{n.name} ({n.op}): no kernel of {target.name} runs {problem}")
    weight = weight_matrix(n, graph.consts[w.name])
    while _is_larger(ranked[0], weight, problem, target):
        ranked = ranked[1:]
    _, kernel, config = ranked[0]
    choice = Choice(
        kernel.name, kernel.format, tuple(sorted(config.items())), (), (1, None),
        _reason(pattern, [c for c, _, _ in ranked], problem, target), tuple(c for c, _, _ in ranked),
    )  # fmt: skip
    return replace(n, choice=(choice,))


def _is_larger(
    best: tuple[Candidate, Kernel, dict[str, int]], weight: Array, problem: Problem, target: Target
) -> bool:
    """Whether a packing takes more bytes than the weight; it is made only where predictions cannot tell."""
    candidate, kernel, config = best
    if stores_all(kernel, config) or candidate.nbytes + _TABLES < (1 - _UNSURE) * weight.nbytes:
        return False
    return kernel.pack(weight, problem, config, target).nbytes > weight.nbytes


def stores_all(kernel: Kernel, config: Mapping[str, int]) -> bool:
    """Whether a configuration keeps every weight, zero or not, and only skips inputs if anything."""
    return kernel.format == "dense" or bool(config.get("whole"))


def beside_others(graph: Graph, nodes: dict[str, Node], n: Node, target: Target) -> Target:
    """The target with the share of L3 that a layer's weight finds, since all weights are read every run."""
    weights = {m.args[1] for m in graph.nodes if is_layer(nodes, m, target.dtypes)}
    total = sum(graph.consts[w].nbytes for w in weights)
    share = graph.consts[n.args[1]].nbytes / max(1, total)
    return replace(target, l3=max(1, int(target.l3 * share)))


def candidates(
    problem: Problem, pattern: Pattern, target: Target
) -> list[tuple[Candidate, Kernel, dict[str, int]]]:
    """Every kernel that fits, at its best predicted configuration, fastest first."""
    found = []
    for order, kernel in enumerate(target.kernels):
        skips = kernel.format != "dense" and kernel.name != _SKIPS_INPUTS
        if (skips and pattern.density > _NEARLY_DENSE) or not kernel.accepts(problem, pattern, target):
            continue
        options = [(kernel.predict(problem, pattern, c, target), i, c) for i, c in
                   enumerate(kernel.space(problem, pattern, target))]  # fmt: skip
        if not options:
            continue
        cycles, _, config = min(options, key=lambda o: o[:2])
        # without a number of columns the figure is for one panel
        micro = cycles / target.gigahertz / 1e3
        size = kernel.nbytes(problem, pattern, config, target)
        whole = np.dtype(problem.dtype).itemsize * problem.rows * problem.inner
        if size > (1 + _UNSURE) * whole and not stores_all(kernel, config):
            continue
        candidate = Candidate(kernel.name, kernel.format, round(micro, 2), size)
        weighed = micro * (1.0 if kernel.format == "dense" else _margin(kernel, problem, target))
        found.append((weighed, order, candidate, kernel, config))
    found.sort(key=lambda f: f[:2])
    return [(c, kernel, config) for _, _, c, kernel, config in found]


def _margin(kernel: Kernel, problem: Problem, target: Target) -> float:
    certain = _CERTAIN if problem.panel or target.gpu else 1.0
    return certain * (_MARGIN if kernel.name == _SKIPS_INPUTS else 1.0)


def _reason(pattern: Pattern, ranked: list[Candidate], problem: Problem, target: Target) -> str:
    best = ranked[0]
    dense = next(c for c in ranked if c.format == "dense")
    unit = "image" if problem.conv else f"{predicted_columns(problem, target)} tokens"
    where = "" if problem.columns else f" per {unit}"
    if best.format == "dense":
        other = next((c for c in ranked if c.format != "dense"), None)
        if pattern.nonzeros and pattern.density > 0.9:
            return f"dense: only {100 * pattern.sparsity:.1f} % of the weights are zero"
        if other is None and problem.conv and problem.conv.groups > 1:
            return (
                f"dense: the weights of {problem.conv.groups} groups are too small each for skipping to pay"
            )
        if other is None:
            return "dense: no sparse kernel fits"
        near = "; too near to count on" if other.microseconds < dense.microseconds else ""
        return (
            f"dense: predicted {dense.microseconds:.1f} us{where}, {other.kernel} would take "
            f"{other.microseconds:.1f} us at {100 * pattern.sparsity:.1f} % zeros{near}"
        )
    gain = dense.microseconds / max(best.microseconds, 1e-3)
    return (
        f"{best.kernel}: predicted {best.microseconds:.1f} us{where}, {gain:.1f}x as fast as dense "
        f"({dense.microseconds:.1f} us), {_because(pattern, best, problem)}"
    )


def _because(pattern: Pattern, best: Candidate, problem: Problem) -> str:
    """What in the weight, or in its inputs, the kernel lives on."""
    zeros = f"since {100 * pattern.sparsity:.1f} % of the weights are skipped"
    if best.kernel == _SKIPS_INPUTS and problem.active is not None:
        return f"since {100 * (1 - problem.active):.1f} % of its inputs were zero in the calibration samples"
    if best.format == "bsr":
        return f"{zeros} and the rest comes in blocks that share loads"
    if best.format == "nm":
        return f"{zeros} and every row has the same number left"
    if best.format == "ell":
        return f"{zeros} and the inputs are looked up in registers"
    if best.format == "hybrid":
        return f"{zeros}, with {_apart(pattern)}"
    return zeros


def _apart(pattern: Pattern) -> str:
    """What hybrid_spmm does not run as csr."""
    apart, unused = pattern.uneven.describe(), pattern.dead_columns
    kinds = (apart and f"{apart} apart", unused and f"{unused} unused inputs left out")
    return " and ".join(kind for kind in kinds if kind)

"""choose_measured: for layers whose kernels were measured on such a machine, the one that was fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sparsec.ir.attributes import ConstAttrs
from sparsec.ir.graph import Candidate, Choice, Graph, Node, replace, with_nodes
from sparsec.passes.choose_format import beside_others, candidates
from sparsec.targets.layers import is_layer
from sparsec.targets.problem import problem_of
from sparsec.targets.processor import this_processor
from sparsec.tuning.records import Config, Records
from sparsec.tuning.search import chosen
from sparsec.tuning.tasks import task_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sparsec.sparsity.pattern import Pattern
    from sparsec.targets.target import Kernel, Problem, Target


def from_file(path: Path) -> ChooseMeasured | None:
    """The pass for this machine; None for a file that has no records."""
    found = Records.read([path])
    return ChooseMeasured(found, this_processor().key) if len(found) else None


@dataclass(frozen=True, slots=True)
class ChooseMeasured:
    """The pass: runs before choose_format, which takes the layers this one has no records of."""

    records: Records
    machine: str

    def __call__(self, graph: Graph, target: Target) -> Graph:
        nodes = graph.node_map()
        done = [self._with_choice(graph, nodes, n, target) for n in graph.nodes]
        changed = any(a is not b for a, b in zip(done, graph.nodes, strict=True))
        return with_nodes(graph, done) if changed else graph

    def _with_choice(self, graph: Graph, nodes: dict[str, Node], n: Node, target: Target) -> Node:
        if n.choice or not is_layer(nodes, n):
            return n
        pattern = cast(ConstAttrs, nodes[n.args[1]].attrs).pattern
        if pattern is None:
            return n
        problem = problem_of(nodes, n)
        times = self.records.times(task_of(problem, pattern, target, self.machine))
        target = beside_others(graph, nodes, n, target)
        ranked = candidates(problem, pattern, target)
        usable = {k: t for k, t in times.items() if any(kernel.name == k[0] for _, kernel, _ in ranked)}
        if not usable or not ranked:
            return n
        return replace(n, choice=(_choice(problem, pattern, target, usable, ranked),))


def _choice(
    problem: Problem, pattern: Pattern, target: Target, times: Mapping[tuple[str, Config], float],
    ranked: list[tuple[Candidate, Kernel, dict[str, int]]],
) -> Choice:  # fmt: skip
    _, kernel, config = ranked[0]
    default = kernel.name, tuple(sorted(config.items()))
    best = chosen(times, default) or default
    found = [_measured(candidate, times) for candidate, _, _ in ranked]
    kernel = next(k for _, k, _ in ranked if k.name == best[0])
    predicted = kernel.predict(problem, pattern, dict(best[1]), target) / target.gigahertz / 1e3
    size = kernel.nbytes(problem, pattern, dict(best[1]), target)
    winner = Candidate(kernel.name, kernel.format, round(predicted, 2), size, measured=times.get(best))
    others = [c for c in found if c.kernel != kernel.name]
    others.sort(key=lambda c: (c.measured is None, c.measured or c.microseconds))
    return Choice(
        kernel.name, kernel.format, best[1], (), (1, None), _reason(winner, others, default, times),
        (winner, *others),
    )  # fmt: skip


def _measured(candidate: Candidate, times: Mapping[tuple[str, Config], float]) -> Candidate:
    """A kernel with the least time of its measured configurations."""
    found = [t for (name, _), t in times.items() if name == candidate.kernel]
    return replace(candidate, measured=min(found)) if found else candidate


def _reason(
    winner: Candidate, others: list[Candidate], default: tuple[str, Config],
    times: Mapping[tuple[str, Config], float],
) -> str:  # fmt: skip
    spent = winner.measured
    if spent is None:
        return f"{winner.kernel}: predicted {winner.microseconds:.1f} us; what was measured is no faster"
    text = f"{winner.kernel}: measured {spent:.1f} us"
    dense = next((c.measured for c in others if c.format == "dense" and c.measured), None)
    if winner.format != "dense" and dense is not None:
        text += f", {dense / spent:.1f}x as fast as dense ({dense:.1f} us)"
    elif winner.format == "dense" and others and others[0].measured:
        text += f"; {others[0].kernel} took {others[0].measured:.1f} us"
    untuned = times.get(default)
    if untuned is not None and untuned > spent:
        text += f"; untuned it took {untuned:.1f} us"
    return text

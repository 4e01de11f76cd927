"""choose_dense: layers that are to run dense whatever is predicted, because someone measured or says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sparsec.errors import ConfigError
from sparsec.ir.attributes import ConstAttrs
from sparsec.ir.graph import Choice, Graph, Node, replace, with_nodes
from sparsec.passes.choose_format import beside_others, candidates
from sparsec.sparsity.pattern import infer
from sparsec.targets.layers import is_layer, weight_matrix
from sparsec.targets.problem import problem_of
from sparsec.targets.target import Target


@dataclass(frozen=True, slots=True)
class ChooseDense:
    """The pass: chooses the dense kernel predicted fastest, before choose_format sees the layer.

    ``layers``: names of layers, the model's or the graph's; None for all.
    """

    layers: tuple[str, ...] | None = None

    def __call__(self, graph: Graph, target: Target) -> Graph:
        nodes = graph.node_map()
        layers = [n for n in graph.nodes if is_layer(nodes, n, target.dtypes)]
        known = {name for n in layers for name in _names(n)}
        unknown = set(self.layers or ()) - known
        if unknown:
            raise ConfigError(
                f"dense: no layer is called {', '.join(sorted(unknown))}; those whose kernel is chosen are "
                + ", ".join(n.origin or n.name for n in layers)
            )
        wanted = known if self.layers is None else set(self.layers)
        todo = {n.name for n in layers if wanted & _names(n) and not n.choice}
        if not todo:
            return graph
        chosen = [_dense(graph, nodes, n, target) if n.name in todo else n for n in graph.nodes]
        return with_nodes(graph, chosen)


def _names(n: Node) -> set[str]:
    return {n.name, n.origin} if n.origin else {n.name}


def _dense(graph: Graph, nodes: dict[str, Node], n: Node, target: Target) -> Node:
    problem, w = problem_of(nodes, n), nodes[n.args[1]]
    pattern = cast(ConstAttrs, w.attrs).pattern or infer(weight_matrix(n, graph.consts[w.name]))
    ranked = candidates(problem, pattern, beside_others(graph, nodes, n, target))
    best = next(one for one in ranked if one[0].format == "dense")
    ranked.remove(best)
    _, kernel, config = best
    choice = Choice(
        kernel.name, kernel.format, tuple(sorted(config.items())), (), (1, None),
        "dense: asked for", tuple(c for c, _, _ in (best, *ranked)),
    )  # fmt: skip
    return replace(n, choice=(choice,))
